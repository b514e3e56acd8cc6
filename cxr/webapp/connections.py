"""How many connections one client may hold: a process has a limited number of sockets, and uvicorn lets them all go.

Whoever opens connections and says nothing needs no token. A connection above the limit is answered with status 429 and
closed; so is, without an answer, one that has brought no request after some time. Those of a trusted proxy are its
readers' and are not counted: it has limits of its own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

from cxr.webapp.fair_turns import network_of
from cxr.webapp.guard import error_response
from cxr.webapp.limits import RejectedError

_MOST_CONNECTIONS = 256
_SILENT_SECONDS = 30.0


class Connection(H11Protocol):
    """A connection of the web app; uvicorn makes one for each."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Take a connection, or refuse it."""
        super().connection_made(transport)
        if self._is_one_too_many():
            transport.write(_too_many())
            transport.close()
        else:
            self._deadline = self.loop.call_later(_SILENT_SECONDS, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _is_one_too_many(self) -> bool:
        if self.client is None or self._is_proxy(self.client[0]):
            return False
        own = network_of(self.client[0])
        held = sum(1 for one in self.connections if network_of(getattr(one, "client", ("",))[0]) == own)
        return held > _most_connections()

    def _is_proxy(self, host: str) -> bool:
        networks = self.config.forwarded_allow_ips if self.config.proxy_headers else []
        return any(ipaddress.ip_address(host) in ipaddress.ip_network(network) for network in networks or [])

    def _close_if_silent(self) -> None:
        if not self.cycle:  # there was no request yet
            self.transport.close()


def _most_connections() -> int:
    """Return how many connections a client may hold: a quarter of the open files of this process at most."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, files // 4)


def _too_many() -> bytes:
    response = error_response(
        RejectedError(429, "busy", "this client holds as many connections as it may; close some", retry_seconds=5)
    )
    headers = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    return b"HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\n" + headers + b"\r\n" + bytes(response.body)
