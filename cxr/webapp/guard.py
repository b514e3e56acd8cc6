"""Who may ask: the page itself and programs on this machine, but no page of another site.

There is no login, so a browser that visits another site must not be able to use this service. A name that another
site bends to this machine (DNS rebinding) is refused by the Host header: an address or `localhost` cannot be bent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr.webapp.limits import RefusedError

_SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_READING = {"GET", "HEAD", "OPTIONS"}


class Guard:
    """ASGI middleware: refuses foreign names and foreign pages, adds the headers that keep the page to itself.

    `names` are host names beside `localhost` by which the service may be called.
    """

    def __init__(self, app: ASGIApp, *, names: Iterable[str]) -> None:
        self.app = app
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY_HEADERS)
            await send(message)

        try:
            self._check(scope["method"], Headers(scope=scope))
        except RefusedError as refusal:
            await refusal_response(refusal)(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)

    def _check(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise RefusedError(
                421, "unknown host", "call the service by its address or as localhost; other names need --allow-host"
            )
        if method in _READING:
            return
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        if site not in {"same-origin", "none"} or (origin is not None and _host_of(origin) != host.lower()):
            raise RefusedError(403, "another site", "only the service's own page and programs may send images")

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or _is_address(name)


def refusal_response(refusal: RefusedError) -> JSONResponse:
    """Return a refusal as every error of the service looks."""
    headers = {} if refusal.retry_seconds is None else {"retry-after": str(refusal.retry_seconds)}
    content = {"error": {"reason": refusal.reason, "message": refusal.message}}
    return JSONResponse(content, refusal.status, headers)


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
