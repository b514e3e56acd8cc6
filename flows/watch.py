"""Notice within seconds that somebody moved an alias in MLflow, and start the run that answers (flows.judge).

    ./run flows.watch                                # `make serve`, compose and Kubernetes start it by themselves
    ./run flows.watch --host 0.0.0.0 --port 8090 --address https://cxr.example.org/aliases   # with messages of MLflow

The store is looked at every 20 seconds. With --address MLflow's server also sends each move to this receiver, signed
(cxr.registry.champion.webhook). A message is only a reason to look: what is done follows from the store, which can be
written to past the server. A message needs its signature, and /health answers this machine alone. Needs
PREFECT_API_URL, the deployment judge/on-demand and an account that may read the registry.
"""

import ipaddress
import json
import logging
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectException

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import CxrError
from cxr.registry.champion import webhook
from cxr.registry.champion.requests import Request, open_requests
from cxr.registry.tracking_store import mlruns_folder

DEPLOYMENT = "judge/on-demand"
LOOK_SECONDS = 20.0
RETRY_SECONDS = 300.0
"""Before a request whose run failed gets another one."""
_REQUEST_SECONDS = 10.0
_MOST_DIGITS = 10  # of a length

log = logging.getLogger("cxr.watch")


@dataclass
class Watch:
    """What the receiver and the looks share. Without `signing`, the secret of MLflow's messages, none is accepted."""

    signing: str
    subscribed: bool = False
    problem: str = ""
    woken: threading.Event = field(default_factory=threading.Event)
    _asked: list[Request] = field(default_factory=list)
    _run: UUID | None = None
    _started: float = 0.0

    def look(self) -> None:
        """Start a run where somebody asks for something and no run is at it; an outage is logged once."""
        try:
            asked = open_requests()
            if asked:
                with get_client(sync_client=True) as client:
                    self._answer(asked, client)
            problem = ""
        except (CxrError, PrefectException, httpx.HTTPError) as error:
            problem = str(error) or type(error).__name__
        if problem and problem != self.problem:
            log.warning("%s; looking again every %.0f s", problem, LOOK_SECONDS)
        self.problem = problem

    def _answer(self, asked: list[Request], client: SyncPrefectClient) -> None:
        state = self._state(client)
        if state and not state.is_final():
            return
        failed = state is not None and not state.is_completed()
        if failed and asked == self._asked and time.monotonic() - self._started < RETRY_SECONDS:
            return
        run = client.create_flow_run_from_deployment(_deployment(client).id)
        self._asked, self._run, self._started = asked, run.id, time.monotonic()
        log.info("%s: run %s", ", ".join(f"{one.alias} on {one.version or 'no version'}" for one in asked), run.name)

    def _state(self, client: SyncPrefectClient) -> State[Any] | None:
        """Return the state of the last run, None without one: nobody started it yet, or somebody has deleted it."""
        try:
            return client.read_flow_run(self._run).state if self._run else None
        except ObjectNotFound:
            return None


def _deployment(client: SyncPrefectClient) -> DeploymentResponse:
    try:
        return client.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound:
        raise CxrError(
            f"Prefect's server has no deployment {DEPLOYMENT}, so nobody judges the aliases moved in MLflow; "
            "`./run prefect --no-prompt deploy --all` makes it"
        ) from None


def watch(*, host: str, port: int, address: str) -> None:
    """Receive and look until a signal.

    Args:
        host, port: where to listen; port 0 takes a free one.
        address: under which MLflow's server reaches this receiver; "" for no messages.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look at a run
    found = Watch(webhook.read_secrets(mlruns_folder() / webhook.KEYS_FILE).signing if address else "")
    with receiver(found, host=host, port=port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if address:
            _subscribe(found, address)
        try:
            while True:
                found.look()
                found.woken.wait(LOOK_SECONDS)
                found.woken.clear()
        finally:
            if found.subscribed:
                webhook.unsubscribe()
            server.shutdown()


def _subscribe(found: Watch, address: str) -> None:
    try:
        webhook.subscribe(address, found.signing)
        found.subscribed = True
    except CxrError as error:
        log.warning("%s; without messages, the store is looked at every %.0f s", error, LOOK_SECONDS)


def receiver(found: Watch, *, host: str, port: int) -> ThreadingHTTPServer:
    """Return a server that listens for MLflow's messages, each in a thread of its own; port 0 takes a free one."""
    return ThreadingHTTPServer((host, port), handler(found))


def handler(found: Watch) -> type[BaseHTTPRequestHandler]:
    """Return what answers the requests to a receiver."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS

        def do_GET(self) -> None:
            state = {"subscribed": found.subscribed, "problem": found.problem}
            if not _is_of_this_machine(self.client_address[0], self.headers.get("Host", "")):
                self._send(403)
            else:
                self._send(200 if self.path == "/health" else 404, json.dumps(state).encode())

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or len(length) > _MOST_DIGITS or int(length) > webhook.MOST_BYTES:
                self._send(413)
            elif not webhook.is_genuine(self.rfile.read(int(length)), dict(self.headers), found.signing):
                self._send(401)
            else:
                found.woken.set()
                self._send(204)

        def _send(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep what strangers send out of the log."""

    return Handler


def _is_of_this_machine(client: str, host: str) -> bool:
    """Say whether a request comes from here, and not from a page that leads its own name here (DNS rebinding)."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return all(ipaddress.ip_address(one).is_loopback for one in (client, name.replace("localhost", "127.0.0.1")))
    except ValueError:
        return False


def main() -> None:
    """Read the command line and watch."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="to listen on; 0: a free one (%(default)s)")
    parser.add_argument("--address", default="", help="of this receiver, for MLflow's server (default: no messages)")
    arguments = parser.parse_args()
    watch(host=arguments.host, port=arguments.port, address=arguments.address)


if __name__ == "__main__":
    run_command(main)
