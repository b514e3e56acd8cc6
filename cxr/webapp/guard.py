"""Accepts requests of the own page and of programs on this machine; rejects those of other sites' pages.

There is no login, so a browser that visits another site must not be able to use this service. The Host header reveals
DNS rebinding: another site can point its own name at this machine, but not an IP address or `localhost`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr.webapp.limits import RejectedError

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
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


class Guard:
    """ASGI middleware: rejects foreign host names and other sites' pages, and adds security headers.

    `names` are host names besides `localhost` under which the service may be called.
    """

    def __init__(self, app: ASGIApp, *, names: Iterable[str]) -> None:
        self.app = app
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY_HEADERS)
            await send(message)

        try:
            self._check(scope["method"], Headers(scope=scope))
        except RejectedError as rejected:
            await error_response(rejected)(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)

    def _check(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_own_name(host):
            raise RejectedError(
                421,
                "unknown host",
                "call the service by its IP address or as localhost; allow other names with --allow-host",
            )
        if method in _SAFE_METHODS:
            return
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        if site not in {"same-origin", "none"} or (origin is not None and _host_of(origin) != host.lower()):
            raise RejectedError(403, "another site", "only the web app's own page and programs may send images")

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or _is_address(name)


def error_response(error: RejectedError) -> JSONResponse:
    """Return an error in the form that all errors of the service share."""
    headers = {} if error.retry_seconds is None else {"retry-after": str(error.retry_seconds)}
    content = {"error": {"reason": error.reason, "message": error.message}}
    return JSONResponse(content, error.status, headers)


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
