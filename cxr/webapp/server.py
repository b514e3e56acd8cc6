"""The service as a process: it listens, answers what it has let in when it is asked to end, and ends."""

from __future__ import annotations

import ipaddress
import logging
import signal
from collections.abc import Sequence
from contextlib import suppress

import uvicorn

from cxr.common.errors import CxrError
from cxr.webapp.access_log import Counted
from cxr.webapp.champion_watch import ChampionWatch
from cxr.webapp.decode_pool import DecodePool
from cxr.webapp.engine import Engine
from cxr.webapp.guard import Guard
from cxr.webapp.limits import Limits
from cxr.webapp.metrics import Metrics
from cxr.webapp.service import PATHS, Service

_IDLE_SECONDS = 30
_HEADER_BYTES = 16 * 1024

log = logging.getLogger("cxr.webapp")


class PageError(CxrError):
    """The service cannot listen."""


class Page:
    """The parts of a service, put together: `app` is for a server of ASGI."""

    def __init__(
        self, limits: Limits, *, names: Sequence[str], model: str, fast: bool, registry_seconds: float
    ) -> None:
        metrics = Metrics()
        self.engine, self.reader = Engine(limits, metrics), DecodePool(limits)
        self.watch = ChampionWatch(self.engine, model=model, fast=fast, every_seconds=registry_seconds)
        service = Service(self.engine, self.reader, self.watch, limits)
        self.app = Counted(Guard(service.app(), names=names), metrics, paths=PATHS)
        self.limits = limits

    def config(self, host: str, port: int) -> uvicorn.Config:
        """Return how it is served."""
        return uvicorn.Config(
            self.app,
            host=host,
            port=port,
            http="h11",  # it bounds the size of headers
            h11_max_incomplete_event_size=_HEADER_BYTES,
            ws="none",
            lifespan="off",
            access_log=False,  # it would tell what a client wrote into the address
            log_config=None,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=int(self.limits.answer_seconds),
        )

    def close(self) -> None:
        """Answer what was let in, begin nothing."""
        self.watch.stop()
        self.reader.close()
        self.engine.stop()


def serve_page(page: Page, *, host: str, port: int) -> None:
    """Serve until the process is asked to end (SIGINT, SIGTERM).

    Raises:
        PageError: the port is taken, or the address is none of this machine.
    """
    _announce(host, port)
    page.engine.start()
    page.watch.start()
    try:
        _run(uvicorn.Server(page.config(host, port)), host, port)
    finally:
        page.close()


def _run(server: uvicorn.Server, host: str, port: int) -> None:
    # Uvicorn ends well and raises the signal again, for whoever else listens; here that would be a traceback.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        try:
            server.run()
        except SystemExit:
            raise PageError(f"cannot listen on {host} port {port}; is another service there? try PORT=8001") from None


def _announce(host: str, port: int) -> None:
    address = f"[{host}]" if ":" in host else host
    log.info("page: http://%s:%d, Ctrl-C ends it", address, port)
    if not _is_loopback(host):
        log.warning(
            "page: WARNING: %s can be reached from other machines, and there is no login: whoever reaches it can send "
            "images and read the model's card. Put it behind a proxy that asks for an account",
            host,
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
