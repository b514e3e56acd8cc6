"""The audit log of answers: who asked, for which image, which version answered, and when. One JSON object a line.

    {"time": "2026-03-01T11:30:00+00:00", "requested_by": "MODALITY1", "image_sha256": "...", "version": "12"}

`image_sha256` is the SHA-256 of the image's SOP Instance UID: a hospital that knows the UID finds the line, and nobody
finds the patient from it. A line is on the disk before its answer leaves, so that no answer is without one; a crash
between the two leaves a second line for the same image. What a full disk leaves of a last line is cut off at the next
start.
"""

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from cxr.common.errors import ParamsError
from cxr.pacs.journal import digest_of

_LONGEST_LINE = 4096
_START = b'{"time": "'


class AuditLog:
    """A file that lines are added to. Raises ParamsError if it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            _cut_torn_line(self._file)
        except OSError as error:
            raise ParamsError(f"{path} cannot be written: {error.strerror}; name another --audit-log") from None

    def add(self, *, requested_by: str, sop_uid: str, version: str) -> None:
        """Add a line; when this returns it is on the disk. Raises OSError if the disk is full."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "requested_by": requested_by,
            "image_sha256": digest_of(sop_uid),
            "version": version,
        }
        written = f"{json.dumps(line)}\n".encode()
        if os.write(self._file, written) < len(written):  # one write: a line is whole, unless the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        os.fsync(self._file)


def _cut_torn_line(file: int) -> None:
    size = os.fstat(file).st_size
    start = max(0, size - _LONGEST_LINE)
    torn = os.pread(file, size - start, start).rpartition(b"\n")[2] if size else b""
    if torn and torn.startswith(_START[: len(torn)]):  # not in a file of another kind, given by mistake
        os.ftruncate(file, size - len(torn))
