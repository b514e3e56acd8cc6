"""Everything that takes space, each with why it stays or that it may go."""

from __future__ import annotations

import configparser
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cxr.common.command_params import CleanParams
from cxr.common.errors import DataError
from cxr.common.params import Paths
from cxr.registry import retention, tracking_store
from cxr.registry.retention import StoredVersion
from tasks.retention.dvc_cache import cache_items, named_objects, recorded_objects
from tasks.retention.items import Item, checkpoints, exchanged_scores, folders, scores, worktrees

_DAY_S = 24 * 3600


def plan(root: Path, params: CleanParams, paths: Paths, *, exchange: str | None, now_s: float) -> list[Item]:
    """Return every item: versions, fetched copies, scores, worktrees, checkpoints, DVC's objects.

    Raises:
        SourceError: the exchange of scores cannot be reached or denies access.
        RegistryError: the registry does not answer, or does not say which versions must stay.
        DataError: a dvc.lock cannot be read, or git does not list the branches.
    """
    versions = retention.stored_versions()
    kept = {version.number: _why_kept(version, index, params, now_s) for index, version in enumerate(versions)}

    def young(path: Path) -> str:
        return _young(path.stat().st_mtime, params, now_s)

    def of_version(path: Path) -> str:
        return kept.get(path.name.split("-")[1], "") or young(path)

    def exchanged(name: str, written_s: float) -> str:
        return kept.get(name.split("-")[1], "") or _young(written_s, params, now_s)

    newest = sorted((root / ".runs").glob("*"), key=_changed_s)[-params.keep_worktrees :]

    def worktree(path: Path) -> str:
        return "one of the newest" if path in newest and params.keep_worktrees else young(path)

    return [
        *_version_items(versions, kept),
        *folders("fetched copy of", tracking_store.mlruns_folder() / "cache", of_version, pattern="version-*"),
        *scores(root / paths.scores, of_version),
        *(exchanged_scores(exchange, root / paths.scores, exchanged) if exchange else ()),
        *worktrees(root, worktree),
        *checkpoints(root / paths.checkpoints, young),
        *sorted(
            _cache(root, [version for version in versions if kept[version.number]], young),
            key=lambda item: item.kept_as,
        ),
    ]


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a run at work has removed it
        return 0.0


def _why_kept(version: StoredVersion, index: int, params: CleanParams, now_s: float) -> str:
    if version.needed_as:
        return version.needed_as
    if index < params.keep_versions:
        return "one of the newest"
    return _young(version.created_s, params, now_s)


def _young(time_s: float, params: CleanParams, now_s: float) -> str:
    return f"younger than {params.keep_days} days" if now_s - time_s < params.keep_days * _DAY_S else ""


def _version_items(versions: list[StoredVersion], kept: dict[str, str]) -> Iterator[Item]:
    for version in versions:

        def remove(number: str = version.number) -> None:
            retention.remove_version(number)

        yield Item("version", version.number, version.size_bytes, kept[version.number], remove)


def _cache(root: Path, versions: list[StoredVersion], young: Callable[[Path], str]) -> Iterator[Item]:
    """Yield DVC's objects. All stay where it is not known which of them a version that stays was made from."""
    with tempfile.TemporaryDirectory() as scratch:
        named = named_objects(_locks(root, Path(scratch)))
        fetched = retention.fetch_data_locks(versions, Path(scratch))
        unknown = [version.number for version in versions if version.number not in fetched]
        named |= recorded_objects(fetched.values())
    reason = f"data of version {', '.join(unknown)} unknown" if unknown else ""
    yield from cache_items(cache_folder(root), named, lambda path: reason or young(path))


def _locks(root: Path, scratch: Path) -> Iterator[Path]:
    """Yield the dvc.lock and .dvc files of the checkout, its worktrees, and the tips of its branches and tags."""
    for folder in (root, *(root / ".runs").glob("*")):
        yield from (
            path for path in (folder / "dvc.lock", *folder.glob("*.dvc"), *folder.glob("data/*.dvc")) if path.is_file()
        )
    for name in branch_tips(root):
        shown = _git(root, "show", f"{name}:dvc.lock")
        if shown.returncode == 0:  # a commit need not have one
            (scratch / name).write_text(shown.stdout, encoding="utf-8")
            yield scratch / name


def branch_tips(root: Path) -> list[str]:
    """Return what the branches and tags of a checkout point to; nothing in a folder without git.

    Raises:
        DataError: git does not list them, so that it is not known which data they name.
    """
    try:
        listed = _git(root, "for-each-ref", "--format=%(objectname)")
        if listed.returncode == 0:
            return listed.stdout.split()
        cause = listed.stderr.partition("\n")[0]
    except FileNotFoundError:
        cause = "git is not installed"
    if not (root / ".git").exists():
        return []
    raise DataError(
        f"git cannot list the branches ({cause}), so nothing is removed; see to it that `git branch` works in the "
        "project's folder, then run the same command again"
    )


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False)


def cache_folder(root: Path) -> Path:
    """Return DVC's cache: `cache.dir` of its local or shared configuration, else .dvc/cache."""
    for name in ("config.local", "config"):
        configuration = configparser.ConfigParser()
        configuration.read(root / ".dvc" / name)
        if given := configuration.get("cache", "dir", fallback=""):
            return root / ".dvc" / given
    return root / ".dvc" / "cache"
