"""HTTP to a PACS with limits of time: to connect, between two bytes, and of a request with its whole answer.

Libraries have no limit for the last one: a service that sends a byte a minute would hold the worker for ever.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Event, Timer
from typing import Any
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter

TIMEOUTS_SECONDS = (10, 120)
"""To connect, and between two bytes."""
ANSWER_SECONDS = 900.0
"""Of a request with its whole answer: an image of 400 MB at 4 Mbit/s."""


def limited_session() -> requests.Session:
    """Return a session with these limits, for one thread. What takes longer raises requests.Timeout."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _LimitedAdapter())
    return session


class _LimitedAdapter(HTTPAdapter):
    def __init__(self) -> None:
        self._sockets: WeakSet[socket.socket] = WeakSet()
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools of connections, which note each socket that they open."""
        super().init_poolmanager(*args, **options)
        pools = self.poolmanager.pool_classes_by_scheme
        self.poolmanager.pool_classes_by_scheme = {
            scheme: type(pool.__name__, (pool,), {"ConnectionCls": _noting(pool.ConnectionCls, self._sockets)})
            for scheme, pool in pools.items()
        }

    def send(self, *args: Any, **options: Any) -> requests.Response:
        """Send a request and read its whole answer."""
        late = Event()
        watch = Timer(ANSWER_SECONDS, self._cut, [late])
        watch.daemon = True
        watch.start()
        try:
            response = super().send(*args, **(options | {"timeout": TIMEOUTS_SECONDS}))
            _ = response.content
        except requests.RequestException:
            if not late.is_set():
                raise
        finally:
            watch.cancel()
        if late.is_set():  # an answer without a length ends like a whole one
            raise requests.Timeout("the answer took too long")
        return response

    def _cut(self, late: Event) -> None:
        late.set()
        for opened in list(self._sockets):
            with suppress(OSError):
                socket.socket.shutdown(opened, socket.SHUT_RDWR)  # also under TLS, whose own one would wait


def _noting(kind: Any, sockets: WeakSet[socket.socket]) -> Any:
    class NotingConnection(kind):  # type: ignore[misc]  # plain or with TLS
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    return NotingConnection
