"""A git worktree for a run with other parameters, so that the main checkout stays as it is.

It lies in .runs/<run>, takes the committed code and the parameters as they stand in the main checkout, shares
DVC's cache and the downloads with it, and stays for a look at its report until newer runs push it out.
"""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from cxr.common.errors import CxrError, ParamsError
from cxr.common.locks import lock_if_free, worktree_lock
from cxr.common.params import override, read_params
from cxr.registry.tracking_store import FOLDER_VARIABLE, mlruns_folder

FOLDER = ".runs"
CARRIED = ("params.yaml", "dvc.lock")
"""Taken over as they stand in the main checkout, committed or not; all other files as committed."""

_WORDS = {"sample", "imagenet", "none"}
"""What stands in place of a path in the parameters."""


class WorkspaceError(CxrError):
    """No worktree can be made from the main checkout as it stands."""


def open_workspace(root: Path, *, run: str, overrides: dict[str, Any], keep: int) -> Path:
    """Return .runs/<run> with `overrides` set in its params.yaml; older ones beyond `keep` in all go, if unused.

    Raises:
        WorkspaceError: the main checkout holds uncommitted changes of code, or git refuses.
        ParamsError: an override does not fit.
    """
    _refuse_uncommitted(root)
    _repair_moved(root)
    _remove_older(root, run=run, keep=keep)
    workspace = root / FOLDER / run
    _check_out(root, workspace)
    _share_cache(root, workspace)
    try:
        downloads = (root / read_params(workspace / "params.yaml").paths.downloads).resolve()
        override(workspace / "params.yaml", {**overrides, "paths.downloads": str(downloads)})
        override(workspace / "params.yaml", _only_in_checkout(root, workspace))
    except ParamsError:
        close_workspace(root, workspace)
        raise
    return workspace


def close_workspace(root: Path, workspace: Path) -> None:
    """Remove a workspace; what its stages made stays in DVC's cache."""
    if _is_worktree(root, workspace):
        _git(root, "worktree", "remove", "--force", str(workspace))
    else:
        shutil.rmtree(workspace)
        _git(root, "worktree", "prune")


def shared_environment(root: Path) -> dict[str, str]:
    """Return what makes a workspace's steps record in the main checkout's tracking store."""
    return {FOLDER_VARIABLE: str(root.resolve() / mlruns_folder())}


def _is_worktree(root: Path, workspace: Path) -> bool:
    """Say whether git takes a folder for a worktree of `root`: not after a removal that was killed, nor in a copy."""
    known = _git(root, "worktree", "list", "--porcelain").splitlines()
    return (workspace / ".git").exists() and f"worktree {workspace.resolve()}" in known


def _repair_moved(root: Path) -> None:
    """Tell git where the worktrees are that were moved together with the checkout: both name the other by its path."""
    for link in (root / FOLDER).glob("*/.git"):
        if link.is_file() and not Path(link.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).exists():
            with suppress(WorkspaceError):  # what git cannot repair is made anew when it is needed
                _git(root, "worktree", "repair", str(link.parent))


def _check_out(root: Path, workspace: Path) -> None:
    """Bring a new or a used workspace to the main checkout's commit and parameters."""
    if _is_worktree(root, workspace):
        _git(workspace, "checkout", "--quiet", "--force", "--detach", _git(root, "rev-parse", "HEAD").strip())
        shutil.copyfile(root / "params.yaml", workspace / "params.yaml")  # its dvc.lock says what lies there: it stays
        return
    if workspace.exists():
        close_workspace(root, workspace)
    _git(root, "worktree", "prune")
    _git(root, "worktree", "add", "--quiet", "--detach", str(workspace), "HEAD")
    for name in CARRIED:
        if (root / name).exists():
            shutil.copyfile(root / name, workspace / name)


def _only_in_checkout(root: Path, workspace: Path) -> dict[str, str]:
    """Return what the parameters name by a path in the main checkout that git does not hold: the absolute paths."""
    params = read_params(workspace / "params.yaml")
    named = {"ingest.watch": params.ingest.watch, "train.weights": params.train.weights}
    named |= {f"ingest.sources.{n}.location": source.location for n, source in enumerate(params.ingest.sources)}
    return {
        name: str((root / path).resolve())
        for name, path in named.items()
        if path not in _WORDS and (root / path).exists() and not (workspace / path).exists()
    }


def _refuse_uncommitted(root: Path) -> None:
    changed = [line[3:] for line in _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()]
    uncommitted = sorted(set(changed) - set(CARRIED))
    if uncommitted:
        raise WorkspaceError(
            f"a run with overrides uses the committed code, and these changes are not committed:"
            f" {', '.join(uncommitted[:5])}{' ...' if len(uncommitted) > 5 else ''}; commit them first"
        )


def _remove_older(root: Path, *, run: str, keep: int) -> None:
    folder = root / FOLDER
    if not folder.is_dir():
        return
    folders = (path for path in folder.iterdir() if path.is_dir() and path.name != run)
    others = sorted(folders, key=lambda path: path.stat().st_mtime)
    for old in others[: max(0, len(others) - (keep - 1))]:
        with lock_if_free(worktree_lock(root, old.name)) as unused:
            if unused:
                close_workspace(root, old)


def _share_cache(root: Path, workspace: Path) -> None:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        cache = repo.cache.local_cache_dir
    local = root / ".dvc" / "config.local"
    if local.exists():
        shutil.copyfile(local, workspace / ".dvc" / "config.local")
    with Repo(str(workspace)) as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = str(cache)


def _git(root: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WorkspaceError(f"git {' '.join(arguments[:2])} failed: {done.stderr.strip()}")
    return done.stdout
