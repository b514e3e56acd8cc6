"""HTTP to a PACS with limits of time: to connect, between two bytes, and of a request with its whole answer."""

from __future__ import annotations

import socket
from typing import Any
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter

from cxr.common.deadline import LateError, cut_after, noting_pool

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
            scheme: noting_pool(pool, self._sockets) for scheme, pool in pools.items()
        }

    def send(self, *args: Any, **options: Any) -> requests.Response:
        """Send a request and read its whole answer."""
        try:
            with cut_after(ANSWER_SECONDS, self._sockets):
                response = super().send(*args, **(options | {"timeout": TIMEOUTS_SECONDS}))
                _ = response.content
        except LateError as error:
            raise requests.Timeout(str(error)) from None
        return response
