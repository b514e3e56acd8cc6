"""Counts and times every request, whatever its outcome; logs those that failed."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr.webapp.metrics import Metrics

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})

log = logging.getLogger("cxr.webapp")


class AccessLog:
    """ASGI middleware. Only `paths` are recorded by name; any other path is recorded as "other"."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, paths: frozenset[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and record its response."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        started, status = time.perf_counter(), 500

        async def send_recorded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_recorded)
        finally:
            self.metrics.requests.labels(method, path, str(status)).inc()
            self.metrics.request_seconds.labels(path).observe(time.perf_counter() - started)
            if status == 500:
                log.warning("app: %s %s failed", method, path)
