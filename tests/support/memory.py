"""A process that has hardly any memory left."""

import contextlib
import resource
from pathlib import Path

_BLOCK = 1 << 16
_MORE = 8 << 20

_FILLING: list[bytearray] = []


def leave_memory(size_bytes: int) -> None:
    """Take all memory that this process may still get, but for `size_bytes`.

    A limit alone is not felt by one that has run other tests: it has much freed memory of its own.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _MORE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for size in (_BLOCK << 4, _BLOCK):
        with contextlib.suppress(MemoryError):
            while True:
                _FILLING.append(bytearray(size))
    del _FILLING[-size_bytes // _BLOCK :]
