"""Gives a few threads to clients in turn, so that one who sends many images does not keep the others waiting."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict, deque
from contextvars import ContextVar

from starlette.requests import Request

CLIENT: ContextVar[str] = ContextVar("client", default="")
"""The address of the client whose request is in progress."""

_NETWORK_BITS = 64


def client_of(request: Request) -> str:
    """Return the address of a client as `network_of` does.

    Behind a proxy that is trusted (cxr.webapp.server) it is the address that the proxy names.
    """
    return network_of(request.client.host if request.client else "")


def network_of(host: str) -> str:
    """Return an address: of IPv6 its network, of which one machine may use every address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _NETWORK_BITS), strict=False))


class FairTurns:
    """`at_once` turns at a time, for one event loop.

    Who waits is served client by client, not in the order of arrival.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def take(self) -> None:
        """Wait for a turn; whoever got one calls `give_back`."""
        if self._free and not self._waiting:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(CLIENT.get(), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Pass a turn to the next client that waits."""
        while self._waiting:
            client, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns  # behind the other clients
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
