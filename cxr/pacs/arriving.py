"""A limit of memory for what arrives by C-STORE: pynetdicom itself reads objects of any size.

Bytes are counted from before they are read until their message is answered. A connection that would bring too many is
closed, and its sender may try again; all others go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from pynetdicom import evt

_TOGETHER = 2
"""How many of the largest objects may arrive at once."""

_PDU_BYTES = 1 << 20
"""Of one part of a message, above the 16 kB that the node asks for. Its announced length is read at once."""

log = logging.getLogger("cxr")


class Arriving:
    """Counts what arrives at a node and is not yet answered. Safe in several threads.

    Args:
        most_bytes: of an object with its message.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._sizes: WeakKeyDictionary[Any, deque[int]] = WeakKeyDictionary()  # of messages; the last one arrives
        self._counting = Lock()

    @property
    def handlers(self) -> list[tuple[Any, Callable[[Any], None]]]:
        """The handlers that the node's server needs."""
        return [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_DIMSE_RECV, self._arrived),
            (evt.EVT_DIMSE_SENT, self._answered),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]

    def _opened(self, event: Any) -> None:
        """Count what is read from a new connection, before it is read."""
        connection = event.assoc.dul.socket
        receive = connection.recv
        with self._counting:
            self._sizes[event.assoc] = deque([0])

        def counted(count: int) -> bytearray:
            self._add(event.assoc, count)
            data: bytearray = receive(count)
            return data

        connection.recv = counted

    def _add(self, association: Any, count: int) -> None:
        """Count bytes that will be read. Raises OSError, which closes the connection, if they are too many."""
        with self._counting:
            sizes = self._sizes.setdefault(association, deque([0]))
            together = sum(map(sum, self._sizes.values())) + count
            if count <= _PDU_BYTES and sizes[-1] + count <= self._most and together <= _TOGETHER * self._most:
                sizes[-1] += count
                return
        log.warning(
            "pacs: a connection that brings an image is closed: an image may have %d bytes, and all that arrive at the "
            "same time %d",
            self._most,
            _TOGETHER * self._most,
        )
        raise OSError("too much arrives")

    def _arrived(self, event: Any) -> None:
        with self._counting:
            self._sizes.setdefault(event.assoc, deque([0])).append(0)

    def _answered(self, event: Any) -> None:
        with self._counting:
            sizes = self._sizes.get(event.assoc)
            if sizes is not None and len(sizes) > 1:
                sizes.popleft()

    def _closed(self, event: Any) -> None:
        with self._counting:
            self._sizes.pop(event.assoc, None)
        if event.assoc.dul.socket.socket is not None:  # pynetdicom leaks it where the peer has closed its side
            event.assoc.dul.socket.socket.close()
