"""The service as a process: it listens, answers what it has let in when it is asked to end, and ends."""

from __future__ import annotations

import ipaddress
import logging
import signal
from collections.abc import Sequence
from contextlib import suppress

import uvicorn

from cxr.errors import CxrError
from cxr.page.count import Counted
from cxr.page.engine import Engine
from cxr.page.films import FilmReader
from cxr.page.guard import Guard
from cxr.page.limits import Limits
from cxr.page.metrics import Metrics
from cxr.page.service import PATHS, Service
from cxr.page.watch import ChampionWatch

_IDLE_SECONDS = 30
_HEADER_BYTES = 16 * 1024

log = logging.getLogger("cxr.page")


class PageError(CxrError):
    """The service cannot listen."""


def serve_page(
    limits: Limits,
    *,
    host: str,
    port: int,
    names: Sequence[str],
    model: str,
    fast: bool,
    every_seconds: float,
) -> None:
    """Serve until the process is asked to end (SIGINT, SIGTERM).

    Args:
        limits: of uploads, requests and time.
        host, port: where to listen.
        names: host names, beside addresses and `localhost`, by which it may be called.
        model: alias or number of the version that answers.
        fast: answer through the exported network where the version has one.
        every_seconds: between two looks at the registry.

    Raises:
        PageError: the port is taken, or the address is none of this machine.
    """
    metrics = Metrics()
    engine, reader = Engine(limits, metrics), FilmReader(limits)
    watch = ChampionWatch(engine, model=model, fast=fast, every_seconds=every_seconds)
    service = Service(engine, reader, watch, limits)
    app = Counted(Guard(service.app(), names=names), metrics, paths=PATHS)
    config = uvicorn.Config(
        app,
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
        timeout_graceful_shutdown=int(limits.answer_seconds),
    )
    _announce(host, port)
    engine.start()
    watch.start()
    try:
        _run(uvicorn.Server(config), host, port)
    finally:
        watch.stop()
        reader.close()
        engine.stop()


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
            "films and read the model's card. Put it behind a proxy that asks for an account",
            host,
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
