"""A limit of time for all of a request: libraries limit the time between two bytes alone.

A service that sends a byte now and then would hold its client for ever.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any
from weakref import WeakSet

_AGAIN_SECONDS = 1.0


class LateError(TimeoutError):
    """A request and its answer took longer than they may."""


def noting_sockets(connection: Any, sockets: WeakSet[socket.socket]) -> Any:
    """Return a class of HTTP connections, of the standard library or urllib3, that adds each socket to `sockets`."""

    class Noting(connection):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    return Noting


def noting_pool(pool: Any, sockets: WeakSet[socket.socket]) -> Any:
    """Return a class of urllib3's pools of connections, whose connections add each socket to `sockets`."""
    return type(pool.__name__, (pool,), {"ConnectionCls": noting_sockets(pool.ConnectionCls, sockets)})


@contextmanager
def cut_after(seconds: float, sockets: WeakSet[socket.socket]) -> Iterator[None]:
    """Shut connections down when the block takes longer than it may; those too that it opens to try again.

    Args:
        seconds: that the block may take.
        sockets: that the block opens or waits for.

    Raises:
        LateError: it took longer; in place of what the block raised. An answer without a length ends like a whole
            one then, so the block may also have ended well.
    """
    late, ended = Event(), Event()

    def cut() -> None:
        pause = seconds
        while not ended.wait(pause):
            late.set()
            pause = _AGAIN_SECONDS
            with suppress(RuntimeError):  # another thread adds one: next time
                _shut(list(sockets))

    watch = Thread(target=cut, daemon=True)
    watch.start()
    try:
        yield
    except Exception:
        if not late.is_set():
            raise
    finally:
        ended.set()
        watch.join()
    if late.is_set():
        raise LateError(f"no whole answer within {seconds:g} s")


def _shut(opened: list[socket.socket]) -> None:
    for one in opened:
        with suppress(OSError):
            socket.socket.shutdown(one, socket.SHUT_RDWR)  # that of TLS would wait for the other side
