"""Accepts requests of the own page and of programs on this machine; rejects those of other sites' pages.

A browser that visits another site must not be able to use this service, with a token (cxr.webapp.sign_in) or without.
The Host header reveals DNS rebinding: another site can point its own name at this machine, but not an IP address or
`localhost`. What another site's page sends is told by Origin and by Fetch Metadata; it may link here, no more.
"""

from __future__ import annotations

import ipaddress
import re
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
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?")


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
        hosts = headers.getlist("host")
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if not self._is_own_name(host):
            raise RejectedError(
                421,
                "unknown host",
                "call the service by its IP address or as localhost; allow other names with --allow-host",
            )
        if not _is_of_this_site(method, headers, host):
            raise RejectedError(403, "another site", "only the web app's own page and programs may use the service")

    def _is_own_name(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        return found is not None and (found[1] in self.names or _is_address(found[1].strip("[]")))


def error_response(error: RejectedError) -> JSONResponse:
    """Return an error in the form that all errors of the service share."""
    headers = {} if error.retry_seconds is None else {"retry-after": str(error.retry_seconds)}
    content = {"error": {"reason": error.reason, "message": error.message}}
    return JSONResponse(content, error.status, headers)


def _is_of_this_site(method: str, headers: Headers, host: str) -> bool:
    """Say whether a request comes from the own page, a program, or a person who followed a link."""
    if headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
        link = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
        return method == "GET" and link
    origin = headers.get("origin")
    return method in _SAFE_METHODS or origin is None or _is_own_origin(origin, host)


def _is_own_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and parts.netloc.lower() == host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
