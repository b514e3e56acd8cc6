"""Limits of memory and patience for what arrives by C-STORE: pynetdicom reads objects of any size, and waits for ever.

Bytes are counted from before they are read until their message is answered. A connection that would bring too many, or
falls silent in the middle of a message, is closed, and its sender may try again; all others go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from pynetdicom import evt
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ

_TOGETHER = 2
"""How many of the largest objects may arrive at once."""

_PDU_BYTES = 1 << 20
"""Of one part of a message, above the 16 kB that the node asks for. Its announced length is read at once."""

_SILENT_SECONDS = 60.0
"""Between two pieces of a part of a message."""

_ANSWERED = (C_STORE_RQ, C_ECHO_RQ)
"""Messages that get an answer."""

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
        connection.socket.settimeout(_SILENT_SECONDS)
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
            reason = self._refusal(count, sizes[-1] + count, together)
            if reason is None:
                sizes[-1] += count
                return
        log.warning("pacs: a connection is closed: %s", reason)
        raise OSError(reason)

    def _refusal(self, part: int, message: int, together: int) -> str | None:
        if part > _PDU_BYTES:
            return f"a part of a message has {part} bytes; a sender of DICOM has no use for more than {_PDU_BYTES}"
        if message > self._most:
            return f"an image has more than {self._most} bytes; raise --max-object-mb if it is a chest X-ray"
        if together > _TOGETHER * self._most:
            return f"images that arrive at the same time have more than {_TOGETHER * self._most} bytes together"
        return None

    def _arrived(self, event: Any) -> None:
        with self._counting:
            sizes = self._sizes.setdefault(event.assoc, deque([0]))
            if isinstance(event.message, _ANSWERED):
                sizes.append(0)
            else:
                sizes[-1] = 0

    def _answered(self, event: Any) -> None:
        with self._counting:
            sizes = self._sizes.get(event.assoc)
            if sizes is not None and len(sizes) > 1:
                sizes.popleft()

    def _closed(self, event: Any) -> None:
        """Forget what has arrived in part; whole messages count until they are answered or gone."""
        event.assoc.dimse.message = None
        with self._counting:
            if event.assoc in self._sizes:
                self._sizes[event.assoc][-1] = 0
        if event.assoc.dul.socket.socket is not None:  # pynetdicom leaks it where the peer has closed its side
            event.assoc.dul.socket.socket.close()
