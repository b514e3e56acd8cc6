"""`make serve` over a tiny project: real server, real worker, real steps on a real model, and kills.

DVC's stages are trivial here; the steps of scoring, monitoring and the gate are those of this project.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page

from cxr.common.params import override
from cxr.registry.stored_names import MODEL
from flows.serve import ServeError, serve
from tests.support.faults import fault
from tests.support.pages.browsers import launch_browser
from tests.support.processes import command_of, has_ended
from tests.support.project import PROJECT
from tests.support.projects.clones import in_plain_shell, lend_environment
from tests.support.projects.registry_project import register, write_model
from tests.support.projects.tiny_model import enter_tiny_project, write_image, write_network
from tests.support.services.prefect_servers import clean_environment
from tests.support.services.servers import free_ports
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CACHED = dict.fromkeys(["ingest", "train", "evaluate"], "Cached")
A_WEEK = {"score/nightly": 7, "monitor/daily": 7, "rebuild/weekly": 1}
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class Finished:
    """How a run ended, and what stands on its page."""

    state: str
    message: str
    artifacts: dict[str, str]


class Served:
    """A tiny project that is served; `told` is what `make serve` has printed."""

    process: "subprocess.Popen[str]"

    def __init__(self, root: Path, ports: list[int]) -> None:
        self.root, self.ports, self.told = root, ports, root / ".prefect.out"
        self.mlflow = f"http://127.0.0.1:{ports[1]}"
        self.settings = clean_environment(
            PREFECT_HOME=str(root / ".prefect"),
            PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS="1",
            PREFECT_WORKER_QUERY_SECONDS="1",
            PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME="P9D",
        )
        self.environment = self.settings | {"PREFECT_API_URL": f"http://127.0.0.1:{ports[0]}/api"}

    def start(self) -> None:
        """Start `make serve`, without waiting."""
        prefect, mlflow = self.ports
        command = [sys.executable, "-m", "flows.serve", f"--prefect-port={prefect}", f"--mlflow-port={mlflow}"]
        with self.told.open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=self.settings, stdout=out, stderr=out, text=True
            )

    def wait_until_ready(self) -> None:
        """Wait until all of it is up."""
        wait_for(lambda: "Ready." in self.told.read_text() or self.process.poll() is not None, seconds=900)
        assert self.process.poll() is None, self.told.read_text()

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

    def start_run(self, deployment: str = "rebuild/weekly", **parameters: Any) -> str:
        """Start a run of a deployment as its schedule does, without waiting; return the run's id.

        A rebuild leaves the gate alone unless asked.
        """
        if deployment == "rebuild/weekly":
            parameters = {"promote": False, **parameters}
        found = self.api("GET", f"deployments/name/{deployment}")["id"]
        asked = {"parameters": parameters, "idempotency_key": uuid4().hex}
        return str(self.api("POST", f"deployments/{found}/create_flow_run", **asked)["id"])

    def wait_for_end(self, run: str) -> "Finished":
        """Wait until a run has ended."""
        wait_for(lambda: self.api("GET", f"flow_runs/{run}")["state_type"] in FINAL, log=self.told, seconds=600)
        state = self.api("GET", f"flow_runs/{run}")["state"]
        shown = self.api("POST", "artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
        return Finished(state["name"], str(state["message"]), {one["key"]: str(one["data"]) for one in shown})

    def plan_of_a_week(self) -> list[tuple[str, str]]:
        """Return the run and the deployment of all that is scheduled for the seven days from next midnight, in order.

        What would come due earlier, while the test runs, is cancelled.
        """
        names = {self.api("GET", f"deployments/name/{name}")["id"]: name for name in A_WEEK}
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        wanted = {"state": {"type": {"any_": ["SCHEDULED"]}}}
        planned = {}
        for run in self.api("POST", "flow_runs/filter", flow_runs=wanted, limit=200):
            due = datetime.fromisoformat(run["expected_start_time"])
            if due < midnight:
                self.api("POST", f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLED"})
            elif due < midnight + timedelta(days=7):
                planned[due] = (run["id"], names[run["deployment_id"]])
        return [planned[due] for due in sorted(planned)]

    def bring_forward(self, run: str) -> None:
        """Let a planned run be due now, as Prefect's page does."""
        now = {"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}}
        self.api("POST", f"flow_runs/{run}/set_state", state=now)

    @property
    def watch_log(self) -> Path:
        return self.root / ".prefect" / "logs" / "watch.log"

    def api(self, method: str, path: str, **body: Any) -> Any:
        """Ask the server; one whose database is busy answers 503 and is asked again."""
        url = f"{self.environment['PREFECT_API_URL']}/{path}"
        for _ in range(10):
            answer = httpx.request(method, url, json=body or None, timeout=60)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(2)
        return answer.raise_for_status().json()

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
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        enter_tiny_project(root, patch, tmp_path_factory, champion=False)
        add_a_rejected_version()
    for made in ("cxr", "data", "models", "reports", "dvc.lock"):
        shutil.rmtree(root / made) if (root / made).is_dir() else (root / made).unlink()
    shutil.copytree(tiny_template, root, dirs_exist_ok=True)
    # The real `reevaluate` wants the images of a real split: tests/integration runs it with all stages.
    shutil.copy(PROJECT / "tasks" / "promote.py", root / "tasks")
    lend_environment(root)
    one = Served(root, free_ports(2))
    try:
        one.start()
        one.wait_until_ready()
        yield one
    finally:
        one.process.send_signal(signal.SIGINT)
        one.process.wait(300)


def add_a_rejected_version() -> None:
    """Register version 2, whose recall of viral pneumonia the gate rejects; version 1 stays the challenger."""
    write_model(seed=3, wrong=10, of_class="viral")
    write_network(seed=3)
    assert register().number == "2"
    write_model()
    write_network(seed=2)
    assert register().number == "1"


@pytest.fixture(scope="module")
def promotion(served: Served) -> Finished:
    """The run that made version 1 champion."""
    return served.wait_for_end(served.start_run("promote/on-demand"))


def test_a_week_of_schedules_ends_well_and_a_bad_image_is_reported_on_its_night(
    served: Served, promotion: Finished
) -> None:
    """Time moves forward: what the scheduler has planned for seven days is due at once, one run after the other.

    A second rebuild is asked for beside Sunday's: one of the two waits, and then finds everything cached.
    """
    assert (promotion.state, promotion.message) == ("Promoted", "version 1 is champion")
    nights: list[Finished] = []
    plan = served.plan_of_a_week()
    assert Counter(deployment for _, deployment in plan) == A_WEEK
    for run, deployment in plan:
        if deployment == "score/nightly":
            put_what_came_in_before_night(len(nights) + 1, served.root / "data" / "incoming")
        second = served.start_run() if deployment == "rebuild/weekly" else None
        served.bring_forward(run)
        ended = served.wait_for_end(run)
        assert ended.state == "Completed", f"{deployment}: {ended.message}"
        if deployment == "score/nightly":
            nights.append(ended)
        elif second is not None:
            assert served.wait_for_end(second).state == "Completed"
            assert_one_waited_and_found_all_cached(served, run, second)
            assert "version 1" in ended.artifacts["promotion"]
    assert "data/incoming does not exist" in nights[0].message
    counts = [tuple(f"| {name} | {count} |" for name, count in zip(COUNTED, night, strict=True)) for night in NIGHTS]
    assert all(row in night.artifacts["scores"] for night, rows in zip(nights[1:], counts, strict=True) for row in rows)
    assert [number for number, night in enumerate(nights, start=1) if "bad-images" in night.artifacts] == [3]
    assert "empty.png" in nights[2].artifacts["bad-images"]
    assert served.wait_for_end(served.start_run("promote/on-demand")).state == "Champion already"


COUNTED = ("scored", "scored before", "bad")
NIGHTS = [(2, 0, 0), (1, 2, 1), (0, 4, 0), (1, 4, 0), (0, 5, 0), (0, 5, 0)]
"""From the second night on; an unreadable image that has not changed counts as scored before."""


def put_what_came_in_before_night(number: int, incoming: Path) -> None:
    """Add the day's images: two on the second day, one and an unreadable file on the third, one on the fifth."""
    for seed in {2: (0, 1), 3: (2,), 5: (3,)}.get(number, ()):
        write_image(incoming / f"{seed}.png", seed=seed)
    if number == 3:
        (incoming / "empty.png").touch()


def assert_one_waited_and_found_all_cached(served: Served, first: str, second: str) -> None:
    stages = [served.stages_of(first), served.stages_of(second)]
    assert CACHED in stages
    assert dict.fromkeys(CACHED, "Completed") in stages
    waited = first if stages[0] == CACHED else second
    states = {state["name"] for state in served.api("GET", f"flow_run_states/?flow_run_id={waited}")}
    assert "AwaitingConcurrencySlot" in states
    assert httpx.get(f"{served.mlflow}/health").text == "OK"


@pytest.mark.usefixtures("promotion")
def test_a_champion_set_in_mlflow_past_the_gate_is_judged_and_put_back(served: Served) -> None:
    """Through MLflow's client and through its page; the verdict is on the version's page, as it is for `requested`."""
    keys = served.root / "mlruns" / "webhook-keys.json"
    assert keys.stat().st_mode & 0o777 == 0o600
    client = MlflowClient(served.mlflow, served.mlflow)
    client.set_registered_model_alias(MODEL, "champion", "2")
    wait_for(lambda: aliases_of(client, "1") == {"challenger", "champion"}, log=served.watch_log)
    reason = wait_for_answer(served, client)
    assert reason.startswith(REJECTED)
    assert "champion is now version 1" in reason

    client.set_registered_model_alias(MODEL, "requested", "2")
    reason = wait_for_answer(served, client)
    assert reason.startswith(REJECTED)
    assert aliases_of(client, "1") == {"challenger", "champion"}

    with launch_browser() as browser:
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(f"{served.mlflow}/#/models/{MODEL}/versions/2?workflowType=machine_learning")
        set_alias_in_page(page, "champion")
    assert wait_for_answer(served, client).startswith(REJECTED)
    log = in_plain_shell(served.root, "./run", "history", "--csv").stdout
    assert log.count("version 2 was set as champion past the gate") == 2


REJECTED = "REJECT. version 2 was rejected, version 1 stays champion: recall of viral: 0.000, required at least 0.300"


def aliases_of(client: MlflowClient, version: str) -> set[str]:
    return set(client.get_model_version(MODEL, version).aliases)


def wait_for_answer(served: Served, client: MlflowClient) -> str:
    """Wait until version 2 has an answer and no alias; return the answer, and take its tag off for the next one."""

    def answered() -> bool:
        page = client.get_model_version(MODEL, "2")
        return "promotion_reason" in page.tags and not page.aliases

    wait_for(answered, log=served.watch_log)
    page = client.get_model_version(MODEL, "2")
    when, _, reason = page.tags["promotion_reason"].partition(": ")
    assert page.description.endswith(f"## Promotion gate\n\n{when}: {reason}")
    client.delete_model_version_tag(MODEL, "2", "promotion_reason")
    return reason


def set_alias_in_page(page: Page, alias: str) -> None:
    page.get_by_title("Add aliases").click()  # a version without one
    page.get_by_role("combobox").fill(alias)
    page.get_by_role("combobox").press("Enter")
    with page.expect_response(lambda answer: answer.url.endswith("/alias") and answer.request.method == "POST"):
        page.get_by_role("button", name="Save aliases").click()


def test_a_plain_shell_reaches_the_servers_through_either_client(served: Served) -> None:
    done = in_plain_shell(served.root, "./run", "prefect", "deployment", "ls")
    assert "rebuild/weekly" in done.stdout, done.stdout + done.stderr
    done = in_plain_shell(served.root, ".venv/bin/prefect", "deployment", "ls")  # .env leads it, too
    assert "rebuild/weekly" in done.stdout, done.stdout + done.stderr
    done = in_plain_shell(served.root, "./run", "history", "--csv")
    assert len(done.stdout.splitlines()) == 4, done.stdout + done.stderr  # version 1, and that it was put back twice
    source = "models:/chest-xray-pneumonia@champion"
    done = in_plain_shell(served.root, "./run", "mlflow", "artifacts", "download", "-u", source, "-d", "fetched")
    assert done.returncode == 0, done.stderr
    assert (served.root / "fetched" / "MLmodel").is_file()
    assert not (served.root / "mlflow.db").exists()


def test_the_doctor_finds_nothing_wrong_with_what_is_served(served: Served) -> None:
    done = served.command("flows.doctor", "--json")
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert [name for name, finding in findings.items() if finding["level"] == "FAILED"] == []
    assert done.returncode == 0
    assert "polls the pool local" in findings["worker"]["message"]
    assert findings["rebuild/weekly"]["message"].startswith("scheduled: ")
    assert findings["last run of score/nightly"]["level"] == "ok"


@fault(
    "make serve",
    "SIGKILL of the worker in the middle of a stage",
    "its run becomes Crashed, its slots are free",
    "the next run goes on",
)
def test_a_worker_killed_in_the_middle_of_a_stage_leaves_nothing_locked_for_the_next_run(served: Served) -> None:
    override(served.root / "params.yaml", {"train.epochs": 3})
    (served.root / "hang-train").touch()
    run, said = served.start_run(), served.root / "models" / "pid"
    wait_for(lambda: said.exists() and said.read_text(), log=served.told, seconds=600)
    stage = int(said.read_text())
    waiting = served.start_run()
    worker = next(one for one in served.processes() if {"prefect", "worker"} <= set(command_of(one)[:4]))
    os.kill(worker.pid, signal.SIGKILL)
    served.wait_for_state(run, "Crashed")
    assert "died" in served.api("GET", f"flow_runs/{run}")["state"]["message"]
    wait_for(lambda: has_ended(stage))
    (served.root / "hang-train").unlink()
    served.wait_for_state(waiting, "Completed")
    assert served.stages_of(waiting) == CACHED | {"train": "Completed"}  # and what it makes is what was there before
    slots = served.api("GET", "deployments/name/rebuild/weekly")["global_concurrency_limit"]["active_slots"]
    assert slots == 0


STOPPED = "every process ends and no port stays in use"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@fault("make serve", "SIGTERM or SIGKILL while its servers start", STOPPED, "nothing; start it again")
def test_a_signal_while_the_servers_start_leaves_nothing_behind(number: int, tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    for package in ("cxr", "flows", "tasks"):
        (tmp_path / package).symlink_to(PROJECT / package)
    starting = Served(tmp_path, free_ports(2))
    starting.start()
    wait_for(lambda: len(starting.processes()) >= 6)  # both servers, and what stops them
    below = starting.processes()
    starting.process.send_signal(number)
    assert starting.process.wait(300) == (0 if number == signal.SIGTERM else -number), starting.told.read_text()
    wait_for(lambda: not alive(below))
    assert_free(starting.ports)
    assert "Traceback" not in starting.told.read_text()


@fault("make serve", "SIGTERM in the middle of a stage",
       "every process ends and no port stays in use; the run becomes Crashed",
       "the run's page after the next start; a run that waited goes on")  # fmt: skip
def test_sigterm_ends_every_process_and_the_next_start_goes_on(served: Served) -> None:
    run = start_a_run_that_hangs(served, epochs=4)
    waiting = served.start_run()
    assert_ended_by(signal.SIGTERM, served)

    (served.root / "hang-train").unlink()
    served.start()
    served.wait_until_ready()
    ended = served.api("GET", f"flow_runs/{run}")["state"]
    assert ended["name"] == "Crashed"
    assert "the next run goes on from the last finished step" in ended["message"]
    served.wait_for_state(waiting, "Completed")
    stages = served.stages_of(waiting)
    assert stages.keys() == CACHED.keys()
    assert stages["train"] == "Completed"


@fault("make serve", "Ctrl-C twice in the middle of a stage", STOPPED, "stopping")
def test_an_interrupt_ends_every_process_and_the_run_under_way(served: Served) -> None:
    start_a_run_that_hangs(served, epochs=5)
    assert_ended_by(signal.SIGINT, served)


def start_a_run_that_hangs(served: Served, *, epochs: int) -> str:
    """Start a run, wait until it is in the middle of its training, and return its id."""
    override(served.root / "params.yaml", {"train.epochs": epochs})
    said = served.root / "models" / "pid"
    said.unlink(missing_ok=True)
    (served.root / "hang-train").touch()
    run = served.start_run()
    wait_for(lambda: said.exists() and said.read_text(), log=served.told, seconds=600)
    return run


def assert_ended_by(number: signal.Signals, served: Served) -> None:
    """Send a signal, and a second one as an impatient user does; check that nothing is left."""
    below = [*served.processes(), psutil.Process(int((served.root / "models" / "pid").read_text()))]
    assert (served.root / ".prefect" / "serve.json").is_file()
    served.process.send_signal(number)
    wait_for(lambda: served.told.read_text().endswith("stopping\n"), log=served.told)
    served.process.send_signal(number)
    assert served.process.wait(300) == 0
    assert alive(below) == []
    assert_free(served.ports)
    assert not (served.root / ".prefect" / "serve.json").exists()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and not has_ended(one.pid)]


def assert_free(ports: list[int]) -> None:
    for port in ports:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is closed may linger
            one.bind(("127.0.0.1", port))


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"^port {port} of this machine is in use.*make serve PREFECT_PORT="):
            serve(tmp_path, prefect_port=port, mlflow_port=free_ports(1)[0])
