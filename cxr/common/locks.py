"""File locks between threads, processes and, on a shared file system, machines.

The operating system releases a lock when its holder ends or is killed, so no lock is ever stale. The lock files stay;
they are empty and have no meaning without a holder.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.2


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock `path` during the block; wait while another holder has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:  # opened in each call, so that threads exclude each other too
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def any_file_lock(paths: list[Path]) -> Iterator[Path]:
    """Hold the first free lock of `paths` during the block and yield its path; wait while none is free."""
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
