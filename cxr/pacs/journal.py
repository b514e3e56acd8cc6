"""A feed of changes for a PACS that has none: a file with one line an object, in the order in which they were found.

A line is a digest, because the file may hold no UID. It is appended whole; what a crash leaves of a last line is cut
off, and its object is found again.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from cxr.pacs.feed import NEW_INSTANCE, Change, Changes


class Journal:
    """Objects by number, from 1; safe in several threads of one process.

    Args:
        path: of the file; made with its folder.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        whole = path.read_bytes() if path.exists() else b""
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(path, end)
        self._resources = whole[:end].decode().split()
        self._known = set(self._resources)
        self._lock = Lock()

    def __contains__(self, resource: str) -> bool:
        return resource in self._known

    def __len__(self) -> int:
        return len(self._resources)

    def __getitem__(self, place: int) -> str:
        return self._resources[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._resources)

    def append(self, resource: str) -> None:
        """Add an object that is not there yet; when this returns it is on the disk."""
        with self._lock:
            if resource in self._known:
                return
            with self._path.open("ab") as file:
                file.write(f"{resource}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            self._resources.append(resource)
            self._known.add(resource)

    def changes(self, since: int, limit: int) -> Changes:
        """Return up to `limit` lines after line `since`."""
        lines = tuple(
            Change(since + place, NEW_INSTANCE, resource, resource)
            for place, resource in enumerate(self._resources[since : since + limit], start=1)
        )
        last = lines[-1].number if lines else since
        return Changes(lines, last, done=last >= len(self._resources))


def digest_of(uid: str) -> str:
    """Return what stands for a UID in files and log lines: its SHA-256."""
    return hashlib.sha256(uid.encode()).hexdigest()
