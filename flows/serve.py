"""Serve everything on one machine until Ctrl-C: Prefect's server, a worker, MLflow's server, the schedules, the watch.

    make serve                                        # Prefect on 4200, MLflow on 5000
    make serve PREFECT_PORT=4300 MLFLOW_PORT=5100
    make doctor                                       # in another terminal: is all of it well?

All of it listens on this machine alone. Its state is in .prefect/ of this checkout, its logs in .prefect/logs.
A part that dies is started again; one that dies over and over ends everything, with its last words. Before each
start of the worker, what a dead one left behind is put in order (flows.upkeep). With MLFLOW_TRACKING_URI set to a
server's address no MLflow server is started; to a database, the one started here uses that database. An alias that
somebody moves in MLflow is answered within a minute (flows.watch, flows.judge).
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import requests

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import CxrError
from cxr.common.files import write_json
from cxr.common.locks import sole_lock
from cxr.registry.champion import webhook
from cxr.registry.tracking_store import is_server, mlruns_folder, tracking_uri
from flows.stages import child_environment
from flows.supervised import start_supervised, stop_supervised

HOST = "127.0.0.1"
POOL = "local"
STATE = Path(".prefect")
MLFLOW_PAGE_VARIABLE = "CXR_MLFLOW_PAGE"
"""Tells the flow runs where MLflow's page is, for the links on their own pages; they write to the store directly."""
WORKER_QUERY_VARIABLE = "PREFECT_WORKER_QUERY_SECONDS"
START_SECONDS = 300.0
STOP_SECONDS = 20.0
LOOK_SECONDS = 1.0
MOST_RESTARTS = 5
RESTARTS_WITHIN_SECONDS = 600.0
_LAST_LINES = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ServeError(CxrError):
    """A part cannot be started or does not stay up."""


@dataclass
class Part:
    """One process of the set, and how to see that it answers."""

    name: str
    command: list[str]
    log: Path
    answers: Callable[[], bool]
    around: Callable[[], None] = lambda: None
    """Called before each start and after the end."""
    process: "subprocess.Popen[str] | None" = None
    deaths: deque[float] = field(default_factory=deque)


class Parts:
    """The processes of the set: started in order, watched, stopped the other way round."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self.root = root
        self.environment = environment
        self.started: list[Part] = []

    def start(self, *parts: Part) -> None:
        """Start parts together and wait until each answers.

        Raises:
            ServeError: one ended, or did not answer in time.
        """
        for part in parts:
            self._launch(part)
        deadline = time.monotonic() + START_SECONDS
        for part in parts:
            while not part.answers():
                if (part.process and part.process.poll() is not None) or time.monotonic() > deadline:
                    raise ServeError(f"{part.name} did not start; {_last_words(part.log)}")
                time.sleep(LOOK_SECONDS / 4)

    def watch(self) -> NoReturn:
        """Start again what dies, for as long as it helps.

        Raises:
            ServeError: a part died too often.
        """
        while True:
            for part in self.started:
                code = part.process.poll() if part.process else None
                if code is not None:
                    self._again(part, code)
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        """Stop all parts, the last that was started first."""
        for part in reversed(self.started):
            if part.process:
                stop_supervised(part.process)
            with suppress(ServeError):  # where the server died it cannot be put in order
                part.around()

    def _launch(self, part: Part) -> None:
        part.around()
        with part.log.open("a") as log:
            part.process = start_supervised(
                part.command, folder=self.root, environment=self.environment, output=log, grace_seconds=STOP_SECONDS
            )
        if part not in self.started:
            self.started.append(part)

    def _again(self, part: Part, code: int) -> None:
        now = time.monotonic()
        part.deaths.append(now)
        while part.deaths[0] < now - RESTARTS_WITHIN_SECONDS:
            part.deaths.popleft()
        if len(part.deaths) > MOST_RESTARTS:
            raise ServeError(f"{part.name} died {len(part.deaths)} times in a short while; {_last_words(part.log)}")
        print(f"{part.name} died (exit code {code}); it is started again", flush=True)
        self.start(part)


def serve(root: Path, *, prefect_port: int, mlflow_port: int) -> NoReturn:
    """Start the whole set, say so when it is ready, and keep it up until a signal.

    Raises:
        ServeError: a port is taken, or a part does not start or stay up.
    """
    own_mlflow = not is_server(tracking_uri())
    _require_free(prefect_port, "PREFECT_PORT")
    if own_mlflow:
        _require_free(mlflow_port, "MLFLOW_PORT")
    prefect, mlflow = f"http://{HOST}:{prefect_port}", f"http://{HOST}:{mlflow_port}"
    environment = serve_environment(root, f"{prefect}/api") | (_mlflow_environment(mlflow) if own_mlflow else {})
    watcher = f"http://{HOST}:{_free_port()}"
    logs = _fresh_logs(root)
    parts = Parts(root, environment)

    def prefect_command(*arguments: str) -> None:
        _run_once(root, environment, "prefect", "--no-prompt", *arguments)

    def order() -> None:
        if changes := _run_once(root, environment, "flows.upkeep", "--pool", POOL):
            print(changes, flush=True)

    try:
        servers = [_server(prefect, prefect_port, logs)]
        if own_mlflow:
            servers.append(_mlflow(mlflow, mlflow_port, logs))
        parts.start(*servers)
        prefect_command("work-pool", "create", POOL, "--type", "process", "--overwrite")
        prefect_command("deploy", "--all")
        parts.start(_worker(prefect, logs, order))
        parts.start(_watch(watcher, logs, messages=own_mlflow))
        addresses = {"prefect": f"{prefect}/api", "mlflow": mlflow if own_mlflow else None, "watch": watcher}
        with _announced(root / STATE, {**addresses, "pid": os.getpid()}):
            print(_ready(prefect, mlflow if own_mlflow else "as MLFLOW_TRACKING_URI says"), flush=True)
            parts.watch()
    finally:
        print("stopping", flush=True)
        parts.stop()


def serve_environment(root: Path, api: str) -> dict[str, str]:
    """Return the environment of all parts and of the flow runs below them; what is set already stays."""
    given = {name: os.environ[name] for name in ("PREFECT_HOME",) if name in os.environ}
    # prefect.yaml names the folder of the runs by PWD, which a shell keeps right and a change of folder here would not.
    state = {
        "PREFECT_HOME": str(root / STATE),
        "PWD": str(root),
        "CXR_POOL": POOL,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    state |= {WORKER_QUERY_VARIABLE: os.environ.get(WORKER_QUERY_VARIABLE, "5")}  # of the minute that a judgement has
    return child_environment({**state, **given, "PREFECT_API_URL": api})


def _mlflow_environment(page: str) -> dict[str, str]:
    """Return where MLflow's page is, and what its server and the watch need to sign and send moves of aliases."""
    mlruns_folder().mkdir(exist_ok=True)
    secrets = webhook.read_secrets(mlruns_folder() / webhook.KEYS_FILE)
    page = os.environ.get(MLFLOW_PAGE_VARIABLE, page)  # people may reach it by another name
    return {MLFLOW_PAGE_VARIABLE: page, **webhook.TO_THIS_MACHINE, **secrets.as_environment()}


def _server(address: str, port: int, logs: Path) -> Part:
    arguments = ["server", "start", "--host", HOST, "--port", str(port), "--log-level", "WARNING"]
    return Part("Prefect", _module("prefect", *arguments), logs / "prefect.log", lambda: _ok(f"{address}/api/health"))


def _mlflow(address: str, port: int, logs: Path) -> Part:
    where = ["--backend-store-uri", tracking_uri(), "--artifacts-destination", str(mlruns_folder() / "artifacts")]
    command = _module("mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(port), *where)
    return Part("MLflow", command, logs / "mlflow.log", lambda: _ok(f"{address}/health"))


def _worker(address: str, logs: Path, order: Callable[[], None]) -> Part:
    name = f"{socket.gethostname()} {os.getpid()}"

    def polls() -> bool:
        answer = requests.post(f"{address}/api/work_pools/{POOL}/workers/filter", json={}, timeout=10)
        return any(worker["name"] == name and worker["status"] == "ONLINE" for worker in answer.json())

    command = _module("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name)
    return Part("worker", command, logs / "worker.log", polls, order)


def _watch(address: str, logs: Path, *, messages: bool) -> Part:
    command = _module("flows.watch", "--host", HOST, "--port", address.rpartition(":")[2])
    command += ["--address", f"{address}/"] if messages else []  # another MLflow server does not reach this machine
    return Part("watch", command, logs / "watch.log", lambda: _ok(f"{address}/health"))


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def _run_once(root: Path, environment: Mapping[str, str], name: str, *arguments: str) -> str:
    """Run `python -m NAME ARGUMENTS` and return what it printed."""
    done = subprocess.run(
        _module(name, *arguments),
        cwd=root,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = " | ".join(done.stdout.strip().splitlines()[-_LAST_LINES:])
        raise ServeError(f"`{shlex.join([name, *arguments])}` failed: {last}")
    return done.stdout.strip()


def _ok(address: str) -> bool:
    with suppress(requests.RequestException):
        return requests.get(address, timeout=10).ok
    return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def _require_free(port: int, variable: str) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError:
            raise ServeError(
                f"port {port} of this machine is in use, perhaps by another `make serve`; "
                f"stop that, or take another: make serve {variable}={port + 100}"
            ) from None


def _fresh_logs(root: Path) -> Path:
    """Return the folder of the logs; those of the run before stay beside the new ones as *.before."""
    logs = root / STATE / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for log in list(logs.glob("*.log")):
        log.replace(log.with_suffix(".before"))
    return logs


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{log} ends with: {' | '.join(lines[-_LAST_LINES:]) or 'nothing'}"


@contextmanager
def _announced(state: Path, addresses: dict[str, Any]) -> Iterator[None]:
    """Lead `make doctor` and Prefect's clients in this checkout to the servers, for as long as these run.

    `serve.json` is for the doctor, `profiles.toml` is Prefect's own: `prefect deployment ls` needs no address.
    """
    profile = f'active = "served"\n\n[profiles.served]\nPREFECT_API_URL = "{addresses["prefect"]}"\n'
    write_json(state / "serve.json", addresses)
    (state / "profiles.toml").write_text(profile)
    try:
        yield
    finally:
        for name in ("serve.json", "profiles.toml"):
            (state / name).unlink(missing_ok=True)


def _ready(prefect: str, mlflow: str) -> str:
    return f"""
Ready.
Prefect  {prefect}
MLflow   {mlflow}

Start a run, from another terminal:
  ./run prefect deployment run rebuild/weekly --watch
Check everything: make doctor          Logs: {STATE}/logs
Ctrl-C stops all of it."""


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Stop once; a second signal is ignored: it would leave the parts running behind, and their ports in use."""
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which a child inherits
    raise KeyboardInterrupt


def main() -> int:
    """Read the ports and serve until a signal."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--prefect-port", type=int, default=4200, help="of Prefect's page and API (%(default)s)")
    parser.add_argument("--mlflow-port", type=int, default=5000, help="of MLflow's page and API (%(default)s)")
    arguments = parser.parse_args()
    for number in _SIGNALS:  # a shell's background job starts with SIGINT ignored
        signal.signal(number, _interrupt)
    root = Path.cwd()
    try:
        with sole_lock(root / STATE / "serve.lock", what="`make serve` of this checkout"):
            serve(root, prefect_port=arguments.prefect_port, mlflow_port=arguments.mlflow_port)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    run_command(main)
