"""The optional token of the web app: programs send it as a header, browsers sign in with it once.

The token comes from CXR_APP_TOKEN or the file in CXR_APP_TOKEN_FILE (cxr.common.secret_files). A program sends
`Authorization: Bearer TOKEN`. A browser posts it to /sign-in and gets a cookie that scripts cannot read, that no other
site can send, and that holds no token: an end and its HMAC under the token. So a session outlives a restart of the
service, and a new token ends all sessions. The token is never in an address, a log or an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cxr.common.errors import ParamsError
from cxr.webapp.fair_turns import client_of
from cxr.webapp.guard import error_response
from cxr.webapp.limits import Limits, RejectedError, read_body
from cxr.webapp.rate_limit import RateLimit

TOKEN_VARIABLE = "CXR_APP_TOKEN"
SIGN_IN_PATH = "/sign-in"
OPEN_PATHS = frozenset({SIGN_IN_PATH, "/sign-in.js", "/app.css", "/icon.svg", "/health", "/ready"})
"""Served without the token: what the sign-in needs, and two words for probes, which have no token to send.

/metrics is not among them: counts of each class over time say something about patients, and Prometheus can send a
token.
"""
COOKIE = "cxr-session"
SESSION_SECONDS = 12 * 3600
"""A working day; whoever has copied the cookie can use it as long."""

_CLOCK_SECONDS = 3600  # a session begun while the clock was further ahead does not outlive its correction
_LEAST_CHARACTERS = 32  # nobody finds a shorter one from its HMAC, or by trying
_MOST_BYTES = 4096
_MOST_TRIES_PER_MINUTE = 10


@dataclass(frozen=True)
class Token:
    """The shared secret; comparisons take the same time whatever is given."""

    secret: str = field(repr=False)

    def is_same(self, given: str) -> bool:
        """Say whether `given` is the token."""
        return hmac.compare_digest(self._mac("token", self.secret), self._mac("token", given))

    def new_session(self) -> str:
        """Return a cookie's value that is good for SESSION_SECONDS."""
        end = str(int(time.time()) + SESSION_SECONDS)
        return f"{end}.{self._mac('session', end)}"

    def is_session(self, value: str) -> bool:
        """Say whether a cookie's value was made with this token and has not ended."""
        end, _, mac = value.partition(".")
        if not hmac.compare_digest(self._mac("session", end).encode(), mac.encode()):
            return False
        return 0 < int(end) - time.time() <= SESSION_SECONDS + _CLOCK_SECONDS

    def _mac(self, purpose: str, text: str) -> str:
        message = f"{purpose} {text}".encode("utf-8", "surrogateescape")
        return hmac.new(self.secret.encode(), message, hashlib.sha256).hexdigest()


def take_token() -> Token | None:
    """Return the token of the environment, and take it out there, so that no child process has it; None without one.

    Raises:
        ParamsError: it is too short, or cannot stand in a header.
    """
    secret = os.environ.pop(TOKEN_VARIABLE, "")
    if not secret:
        return None
    if len(secret) < _LEAST_CHARACTERS or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ParamsError(
            f"{TOKEN_VARIABLE} must have {_LEAST_CHARACTERS} characters or more, of ASCII and without spaces; draw one "
            "with python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return Token(secret)


class TokenGate:
    """ASGI middleware: passes on what has the token or a session. Stands behind the Guard, which knows the origin."""

    def __init__(self, app: ASGIApp, token: Token | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, lead a reader to the sign-in, or reject it."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._may_pass(scope):
            await self.app(scope, receive, send)
        elif scope["path"] == "/" and scope["method"] == "GET":
            await RedirectResponse(SIGN_IN_PATH, 303)(scope, receive, send)
        else:
            response = error_response(RejectedError(401, "no token", "sign in, or send the token as a Bearer header"))
            response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if self.token is None:
            return True
        headers = Headers(scope=scope)
        if "authorization" in headers:
            scheme, _, given = headers["authorization"].partition(" ")
            return scheme.lower() == "bearer" and self.token.is_same(given.strip())
        # Every browser names the origin of what it posts, and the Guard has compared it: no cookie passes without.
        if scope["method"] not in {"GET", "HEAD"} and "origin" not in headers:
            return False
        return self.token.is_session(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))


class _SignIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: str


class SignInRoute:
    """Starts and ends the sessions of browsers."""

    def __init__(self, token: Token | None, limits: Limits) -> None:
        self.token, self._limits = token, replace(limits, max_upload_bytes=_MOST_BYTES)
        self._tries = RateLimit(_MOST_TRIES_PER_MINUTE, "attempts to sign in")

    async def start(self, request: Request) -> Response:
        """Give a browser with the token its cookie."""
        self._tries.take(client_of(request))
        body = await read_body(request, self._limits)
        try:
            given = _SignIn.model_validate_json(body).token
        except ValidationError:
            raise RejectedError(422, "invalid sign-in", 'send {"token": "..."}') from None
        if self.token is None or not self.token.is_same(given):
            raise RejectedError(401, "wrong token", "this is not the service's token; ask whoever runs it")
        response = JSONResponse({"status": "signed in"})
        secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE, self.token.new_session(), SESSION_SECONDS, httponly=True, secure=secure, samesite="strict"
        )
        return response

    async def end(self) -> Response:
        """Take a browser's cookie away."""
        response = JSONResponse({"status": "signed out"})
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response
