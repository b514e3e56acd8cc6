"""`make serve` over a tiny project: real server, real worker, runs started from the command line, and a kill."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cxr.common.params import override
from flows.serve import ServeError, serve
from tests.support.prefect_servers import clean_environment, wait_for
from tests.support.servers import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CACHED = dict.fromkeys(["ingest", "train", "evaluate"], "Cached")


@dataclass(frozen=True)
class Served:
    """A tiny project that is served; `told` is what `make serve` has printed."""

    root: Path
    process: "subprocess.Popen[str]"
    environment: dict[str, str]
    told: Path
    mlflow: str

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `python -m ARGUMENTS` in the project, as a user does in another terminal."""
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def start_run(self) -> str:
        """Start a rebuild from the command line without waiting; return the run's id."""
        done = self.command("prefect", "deployment", "run", "rebuild/weekly")
        assert done.returncode == 0, done.stderr
        return next(line.split()[-1] for line in done.stdout.splitlines() if "UUID" in line)

    def api(self, method: str, path: str, **body: Any) -> Any:
        """Ask the server."""
        url = f"{self.environment['PREFECT_API_URL']}/{path}"
        return httpx.request(method, url, json=body or None, timeout=60).raise_for_status().json()

    def state_of(self, run: str) -> str:
        """Return the name of the run's state."""
        return str(self.api("GET", f"flow_runs/{run}")["state_name"])

    def wait_for_state(self, run: str, state: str) -> None:
        """Wait until the run is in `state`; another end fails the test."""
        ends = {"Completed", "Failed", "Crashed", "Cancelled", "TimedOut"}
        wait_for(lambda: self.state_of(run) in {state} | ends, log=self.told, seconds=600)
        assert self.state_of(run) == state, (self.root / ".prefect" / "logs" / "worker.log").read_text()[-3000:]

    def stages_of(self, run: str) -> dict[str, str]:
        """Return stage -> state of its task run."""
        found = self.api("POST", "task_runs/filter", flow_runs={"id": {"any_": [run]}})
        return {task["name"]: task["state_name"] for task in found if task["name"] != "promote"}

    def processes(self) -> list[psutil.Process]:
        """Return all processes below `make serve`."""
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def served(tiny_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(tiny_template, root)
    ports = free_ports(2)
    environment = clean_environment(
        PREFECT_HOME=str(root / ".prefect"),
        PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS="1",
        PREFECT_WORKER_QUERY_SECONDS="1",
    )
    told = root / ".prefect.out"
    command = [sys.executable, "-m", "flows.serve", f"--prefect-port={ports[0]}", f"--mlflow-port={ports[1]}"]
    with told.open("w") as out:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=out, stderr=out, text=True)
        try:
            wait_for(lambda: "Ready." in told.read_text() or process.poll() is not None, seconds=900)
            assert process.poll() is None, told.read_text()
            leads = environment | {"PREFECT_API_URL": f"http://127.0.0.1:{ports[0]}/api"}
            yield Served(root, process, leads, told, f"http://127.0.0.1:{ports[1]}")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def test_of_two_rebuilds_at_once_the_second_waits_and_then_finds_all_cached(served: Served) -> None:
    first, second = served.start_run(), served.start_run()
    served.wait_for_state(first, "Completed")
    served.wait_for_state(second, "Completed")
    stages = [served.stages_of(first), served.stages_of(second)]
    assert CACHED in stages
    assert dict.fromkeys(CACHED, "Completed") in stages
    waited = first if stages[0] == CACHED else second
    states = {state["name"] for state in served.api("GET", f"flow_run_states/?flow_run_id={waited}")}
    assert "AwaitingConcurrencySlot" in states
    assert httpx.get(f"{served.mlflow}/health").text == "OK"


def test_the_doctor_finds_nothing_wrong_with_what_is_served(served: Served) -> None:
    done = served.command("flows.doctor", "--json")
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert [name for name, finding in findings.items() if finding["level"] == "FAILED"] == []
    assert done.returncode == 0
    assert "polls the pool local" in findings["worker"]["said"]
    assert findings["rebuild/weekly"]["said"].startswith("scheduled: ")


def test_a_worker_killed_in_the_middle_of_a_stage_leaves_nothing_locked_for_the_next_run(served: Served) -> None:
    override(served.root / "params.yaml", {"train.epochs": 3})
    (served.root / "hang-train").touch()
    run, said = served.start_run(), served.root / "models" / "pid"
    wait_for(lambda: said.exists() and said.read_text(), log=served.told, seconds=600)
    stage = int(said.read_text())
    waiting = served.start_run()
    worker = next(one for one in served.processes() if {"prefect", "worker"} <= set(one.cmdline()[:4]))
    os.kill(worker.pid, signal.SIGKILL)
    served.wait_for_state(run, "Crashed")
    assert "died" in served.api("GET", f"flow_runs/{run}")["state"]["message"]
    wait_for(lambda: not psutil.pid_exists(stage), seconds=60)
    (served.root / "hang-train").unlink()
    served.wait_for_state(waiting, "Completed")
    assert served.stages_of(waiting) == CACHED | {"train": "Completed"}  # and what it makes is what was there before
    slots = served.api("GET", "deployments/name/rebuild/weekly")["global_concurrency_limit"]["active_slots"]
    assert slots == 0


def test_an_interrupt_ends_every_process_and_the_run_under_way(served: Served) -> None:
    override(served.root / "params.yaml", {"train.epochs": 4})
    said = served.root / "models" / "pid"
    said.unlink(missing_ok=True)
    (served.root / "hang-train").touch()
    served.start_run()
    wait_for(lambda: said.exists() and said.read_text(), log=served.told, seconds=600)
    below = [*served.processes(), psutil.Process(int(said.read_text()))]
    assert (served.root / ".prefect" / "serve.json").is_file()
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(300) == 0
    assert [one for one in below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert not (served.root / ".prefect" / "serve.json").exists()


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"^port {port} of this machine is in use.*make serve PREFECT_PORT="):
            serve(tmp_path, prefect_port=port, mlflow_port=free_ports(1)[0])
