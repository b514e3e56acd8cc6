"""Locks that are files: they hold between threads, processes and, on a shared file system, machines.

The operating system lets go of a lock when its holder is gone, killed outright included: none is ever stale.
The files stay; an empty file that nobody holds means nothing.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.2


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock `path` for the length of the block; wait for it as long as another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:  # each call opens it anew, so that threads exclude each other too
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def any_file_lock(paths: list[Path]) -> Iterator[Path]:
    """Hold the first of `paths` that nobody holds, waiting for one to come free; yields which it is."""
    while True:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield path
                return
        time.sleep(_POLL_SECONDS)
