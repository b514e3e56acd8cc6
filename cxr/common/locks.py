"""File locks between threads, processes and, on a shared file system, machines.

The operating system releases a lock when its holder ends or is killed, so no lock is ever stale. The lock files stay;
they are empty and have no meaning without a holder. On a file system without flock a lock is an OSError: filelock's
substitute, a file that exists, would outlive a killed holder.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, repeat
from pathlib import Path

from filelock import FileLock, Timeout

from cxr.common.errors import BusyError

_POLL_SECONDS = 0.2

log = logging.getLogger("cxr")


@contextmanager
def file_lock(path: Path, *, waits_for: str = "") -> Iterator[None]:
    """Hold the lock `path` during the block; wait while another has it, and say so where `waits_for` names that one."""
    with lock_if_free(path) as free:
        if free:
            yield
            return
    if waits_for:
        log.warning("waiting for %s to end", waits_for)
    with _lock(path):
        yield


@contextmanager
def sole_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock `path` during the block. Raises BusyError where another holder has it; `what` is what it does."""
    with lock_if_free(path) as free:
        if not free:
            raise BusyError(
                f"{what} is busy: another process is at it; nothing was changed. Wait until it ends, then run the same "
                "command again"
            )
        yield


def downloads_lock(downloads: Path) -> AbstractContextManager[None]:
    """Let one process at a time write to the folder `downloads`; others wait."""
    return file_lock(downloads.with_name(f".{downloads.name}.lock"), waits_for=f"another download into {downloads}")


def step_lock(checkpoints: Path, step: str) -> AbstractContextManager[None]:
    """Let one process at a time run a step of the project whose `paths.checkpoints` is given; see `sole_lock`."""
    return sole_lock(step_lock_file(checkpoints, step), what=f"`./run {step}` in this project")


def step_lock_file(checkpoints: Path, step: str) -> Path:
    """Return the lock that whoever runs a step of a project holds."""
    return checkpoints / f"{step}.lock"


@contextmanager
def any_file_lock(paths: list[Path], *, waits_for: str) -> Iterator[Path]:
    """Hold the first free lock of `paths` during the block and yield its path.

    While none is free it waits, and says so: `waits_for` names who may have them.
    """
    for said in chain([False], repeat(True)):
        for path in paths:
            try:
                held = _lock(path).acquire(blocking=False)
            except Timeout:
                continue
            with held:
                yield path
            return
        if not said:
            log.warning("waiting for %s to end", waits_for)
        time.sleep(_POLL_SECONDS)


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock `path` during the block unless another holder has it; yield whether this block holds it."""
    try:
        held = _lock(path).acquire(blocking=False)
    except Timeout:
        yield False
        return
    with held:
        yield True


def is_held(path: Path) -> bool:
    """Return whether somebody holds the lock `path`; no lock file is made."""
    if not path.exists():
        return False
    with lock_if_free(path) as free:
        return not free


def worktree_lock(root: Path, run: str) -> Path:
    """Return the lock that whoever uses the worktree .runs/<run> of the checkout `root` holds; git ignores it."""
    return root / ".dvc" / "tmp" / f"{run}.lock"


def _lock(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, poll_interval=_POLL_SECONDS, fallback_to_soft=False)
