"""A limit of time for all of a request: libraries limit the time between two bytes alone.

A service that sends a byte now and then would hold its client for ever.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Timer
from typing import Any
from weakref import WeakSet


class LateError(TimeoutError):
    """A request and its answer took longer than they may."""


def noting_sockets(connection: Any, sockets: WeakSet[socket.socket]) -> Any:
    """Return a class of HTTP connections, of the standard library or urllib3, that adds each socket to `sockets`."""

    class Noting(connection):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    return Noting


@contextmanager
def cut_after(seconds: float, sockets: WeakSet[socket.socket]) -> Iterator[None]:
    """Shut connections down when the block takes longer than it may.

    Args:
        seconds: that the block may take.
        sockets: that the block opens or waits for.

    Raises:
        LateError: it took longer; in place of what the block raised. An answer without a length ends like a whole
            one then, so the block may also have ended well.
    """
    late = Event()

    def cut() -> None:
        late.set()
        for opened in list(sockets):
            with suppress(OSError):
                socket.socket.shutdown(opened, socket.SHUT_RDWR)  # that of TLS would wait for the other side

    watch = Timer(seconds, cut)
    watch.daemon = True
    watch.start()
    try:
        yield
    except Exception:
        if not late.is_set():
            raise
    finally:
        watch.cancel()
    if late.is_set():
        raise LateError(f"no whole answer within {seconds:g} s")
