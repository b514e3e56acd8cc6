"""One thing that takes space, and the folders of a checkout as such things."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.common.errors import DataError
from cxr.common.locks import is_held, lock_if_free, step_lock_file, worktree_lock
from cxr.inference.score_exchange import exchanged_parts

if TYPE_CHECKING:
    from cxr.common.s3 import RemoteObject

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
    """Return the bytes of all files below a folder, or of a file; links are not followed.

    What a run at work removes meanwhile has none.
    """
    if not path.is_dir() or path.is_symlink():
        return _file_size(path)
    return sum(_file_size(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _file_size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def folders(kind: str, parent: Path, kept_as: Callable[[Path], str], *, pattern: str = "*") -> Iterator[Item]:
    """Yield the entries of a folder as items, without those that a run at work removes meanwhile."""
    for path in sorted(parent.glob(pattern)) if parent.is_dir() else []:

        def remove(path: Path = path) -> None:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

        try:
            item = Item(kind, str(path.relative_to(parent)), folder_size(path), kept_as(path), remove)
        except FileNotFoundError:  # of `kept_as`, which asks for its age
            continue
        yield item


def scores(folder: Path, kept_as: Callable[[Path], str]) -> Iterator[Item]:
    """Yield the scores of each version in paths.scores; those of one that is scoring stay."""
    for item in folders("scores of", folder, kept_as, pattern="version-*"):
        yield _unless_scoring(item, folder / item.name)


def exchanged_scores(address: str, folder: Path, kept_as: Callable[[str, float], str]) -> Iterator[Item]:
    """Yield the parts of each version in the bucket by which machines share their scores; see score_exchange.

    Args:
        address: of the exchange.
        folder: paths.scores, whose locks say what is scoring on this machine.
        kept_as: why a version's parts stay, by the name of its folder and the time of its newest part.
    """
    from cxr.common.s3 import Prefix  # boto3 takes a second to import, which is lost without an exchange

    bucket = Prefix(address)
    for name, parts in exchanged_parts(address).items():

        def remove(name: str = name, parts: list[RemoteObject] = parts) -> None:
            if {part.key for part in exchanged_parts(address).get(name, [])} - {part.key for part in parts}:
                raise DataError(f"it is {_IN_USE}")  # on another machine, which has begun since
            for part in parts:
                bucket.remove(part)

        newest_s = max(part.written_s for part in parts)
        item = Item(
            "exchanged scores of", name, sum(part.size_bytes for part in parts), kept_as(name, newest_s), remove
        )
        yield _unless_scoring(item, folder / name)


def _unless_scoring(item: Item, folder: Path) -> Item:
    """Keep an item while a process of this machine scores into `folder`."""

    def is_scoring() -> bool:
        return any(is_held(lock) for lock in folder.parent.glob(f".{folder.name}-*.lock"))

    def remove() -> None:
        if is_scoring():
            raise DataError(f"it is {_IN_USE}")
        item.remove()

    return replace(item, kept_as=_IN_USE if is_scoring() else item.kept_as, remove=remove)


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
