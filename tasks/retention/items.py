"""One thing that takes space, and the folders of a checkout as such things."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cxr.common.errors import DataError
from cxr.common.locks import is_held, lock_if_free, step_lock_file, worktree_lock

_IN_USE = "in use by a run"


@dataclass(frozen=True)
class Item:
    """A thing that takes space.

    kind        what it is, such as "version" or "worktree"
    name        which one, unique within its kind
    size_bytes  what removing it frees
    kept_as     why it stays; "" where it may go
    remove      removes it; doing so again is no error
    """

    kind: str
    name: str
    size_bytes: int
    kept_as: str
    remove: Callable[[], None]


def folder_size(path: Path) -> int:
    """Return the bytes of all files below a folder, or of a file; links are not followed."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir() or file.is_symlink())


def folders(kind: str, parent: Path, kept_as: Callable[[Path], str], *, pattern: str = "*") -> Iterator[Item]:
    """Yield the entries of a folder as items."""
    for path in sorted(parent.glob(pattern)) if parent.is_dir() else []:

        def remove(path: Path = path) -> None:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

        yield Item(kind, str(path.relative_to(parent)), folder_size(path), kept_as(path), remove)


def checkpoints(folder: Path, kept_as: Callable[[Path], str]) -> Iterator[Item]:
    """Yield the checkpoints of trainings in paths.checkpoints; while one trains all stay, and state files always do."""
    training = step_lock_file(folder, "train")

    def reason(path: Path) -> str:
        if not path.is_dir():
            return "state of a command"
        return _IN_USE if is_held(training) else kept_as(path)

    for item in folders("checkpoints of", folder, reason):

        def remove(item: Item = item) -> None:
            with lock_if_free(training) as free:  # a training may have begun since
                if not free:
                    raise DataError(f"it is {_IN_USE}")
                item.remove()

        yield replace(item, remove=remove)


def worktrees(root: Path, kept_as: Callable[[Path], str]) -> Iterator[Item]:
    """Yield the worktrees of runs with other parameters (flows/workspaces.py); one that a run uses stays."""

    def reason(path: Path) -> str:
        return _IN_USE if is_held(worktree_lock(root, path.name)) else kept_as(path)

    for item in folders("worktree", root / ".runs", reason):

        def remove(item: Item = item) -> None:
            with lock_if_free(worktree_lock(root, item.name)) as free:  # a run may have begun since
                if not free:
                    raise DataError(f"it is {_IN_USE}")
                item.remove()
            environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
            subprocess.run(["git", "worktree", "prune"], cwd=root, env=environment, check=False, capture_output=True)

        yield Item(item.kind, item.name, item.size_bytes, item.kept_as, remove)
