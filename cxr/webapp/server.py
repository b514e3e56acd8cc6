"""The service as a process: it listens, and on a signal answers the accepted requests and exits."""

from __future__ import annotations

import ipaddress
import logging
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn

from cxr.common.engines import Engine
from cxr.common.errors import CxrError, ParamsError
from cxr.webapp.access_log import AccessLog
from cxr.webapp.batcher import Batcher
from cxr.webapp.champion_watch import ChampionWatch
from cxr.webapp.connections import Connection
from cxr.webapp.decode_pool import DecodePool
from cxr.webapp.guard import Guard
from cxr.webapp.limits import Limits
from cxr.webapp.metrics import Metrics
from cxr.webapp.service import PATHS, Service
from cxr.webapp.sign_in import TOKEN_VARIABLE, Token, TokenGate

_IDLE_SECONDS = 30
_HEADER_BYTES = 16 * 1024

log = logging.getLogger("cxr.webapp")


class ListenError(CxrError):
    """The service cannot listen on its address."""


class WebApp:
    """The parts of the service, wired together; `app` is the ASGI application.

    `proxies` are the addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed: without them each
    request comes from who has opened its connection.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        names: Sequence[str],
        token: Token | None,
        proxies: Sequence[str],
        model: str,
        engine: Engine,
        champion_poll_s: float,
        feedback: Path,
    ) -> None:
        metrics = Metrics()
        self.batcher, self.decode_pool = Batcher(limits, metrics), DecodePool(limits)
        self.watch = ChampionWatch(self.batcher, model=model, engine=engine, poll_seconds=champion_poll_s)
        self.service = Service(self.batcher, self.decode_pool, self.watch, limits, feedback, token=token)
        guarded = Guard(TokenGate(self.service.app(), token), names=names)
        self.app = AccessLog(guarded, metrics, paths=PATHS)
        self.limits, self.proxies = limits, list(proxies)

    def config(self, host: str, port: int) -> uvicorn.Config:
        """Return the configuration of the HTTP server."""
        return uvicorn.Config(
            self.app,
            host=host,
            port=port,
            http=Connection,  # of h11, which bounds the size of headers
            h11_max_incomplete_event_size=_HEADER_BYTES,
            ws="none",
            lifespan="off",
            access_log=False,  # it would log whatever a client puts into the URL
            log_config=None,
            log_level="warning",
            server_header=False,
            proxy_headers=bool(self.proxies),
            forwarded_allow_ips=self.proxies,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=int(self.limits.inference_timeout_s),
        )

    def close(self) -> None:
        """Answer the accepted images and accept no more."""
        self.watch.stop()
        self.decode_pool.close()
        self.batcher.stop()


def check_openness(host: str, token: Token | None, *, without_token: bool) -> None:
    """Check that who can reach `host` needs the token, or that this was decided otherwise. Raises ParamsError."""
    if token is None and not without_token and not is_loopback(host):
        raise ParamsError(
            f"{host} can be reached from other machines, and there is no token: set {TOKEN_VARIABLE} or "
            f"{TOKEN_VARIABLE}_FILE, or say --without-token where a proxy with accounts stands before it"
        )


def serve(webapp: WebApp, *, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ListenError: the port is taken, or the address does not belong to this machine.
    """
    _announce(host, port, webapp.service.sign_in.token)
    webapp.batcher.start()
    webapp.decode_pool.start()
    webapp.watch.start()
    try:
        _run(uvicorn.Server(webapp.config(host, port)), host, port)
    finally:
        webapp.close()


def _run(server: uvicorn.Server, host: str, port: int) -> None:
    # Uvicorn shuts down cleanly and raises the signal again for other handlers; here that would print a traceback.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        try:
            server.run()
        except SystemExit:
            raise ListenError(f"cannot listen on {host} port {port}; is it in use? try PORT=8001") from None


def _announce(host: str, port: int, token: Token | None) -> None:
    address = f"[{host}]" if ":" in host else host
    log.info("app: http://%s:%d%s, stop with Ctrl-C", address, port, ", with a token" if token else "")
    if token is None and not is_loopback(host):
        log.warning(
            "app: WARNING: %s can be reached from other machines, and there is no token: anyone on the network can "
            "send images and read the model card",
            host,
        )


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def trusted(name: str) -> str:
    """Return the address or network of a proxy as uvicorn takes it. Raises ParamsError for anything else."""
    try:
        return str(ipaddress.ip_network(name))
    except ValueError as error:
        raise ParamsError(f"--trust-proxy {name}: {error}; give an address or a network such as 10.0.0.0/8") from None
