"""The flow around the gate: it decides alone where it can, and a person's answer goes into the audit log.

Real registry, real commands; the questions are asked in Prefect's own server, and once through a worker.
"""

import contextvars
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import resume_flow_run
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType

from cxr.registry import tracking_store, versions
from cxr.registry.champion import aliases
from flows.promote import promote
from tests.support.project import copy_package
from tests.support.projects.registry_project import enter_project, register, write_model

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    for package in ("cxr", "flows", "tasks"):
        copy_package(package, tmp_path)


def asked_runs() -> list[FlowRun]:
    """Return the flow runs that wait for a person."""
    paused = FlowRunFilterStateType(any_=[StateType.PAUSED])
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=paused)))


def wait_for_question(seconds: float = 300) -> FlowRun:
    deadline = time.monotonic() + seconds
    while not (waiting := asked_runs()):
        assert time.monotonic() < deadline, "no run waits for an answer"
        time.sleep(0.5)
    return waiting[0]


def answered(answer: dict[str, Any], **parameters: Any) -> State[Any]:
    """Run the flow here and answer its question from another thread, as the page in Prefect does."""
    context = contextvars.copy_context()  # a new thread has none, and Prefect's server is a setting in it
    person = threading.Thread(
        target=context.run, args=(lambda: resume_flow_run(wait_for_question().id, run_input=answer),)
    )
    person.start()
    state: State[Any] = promote(return_state=True, **parameters)
    person.join()
    return state


def test_the_gate_decides_alone_where_it_can() -> None:
    write_model()
    register()
    state = promote(return_state=True)
    assert (state.name, state.message) == ("Promoted", "version 1 is champion")
    assert aliases.history()[0].reason.startswith("passed the gate, flow run ")
    assert promote(return_state=True).name == "Champion already"
    write_model(seed=2, wrong=5, of_class="viral")
    register()
    tracking_store.client().set_registered_model_alias(versions.MODEL, "champion", "2")  # by hand
    state = promote(ask=True, return_state=True)  # nobody is asked about a rejection
    assert state.name == "Rejected"
    assert "recall of viral against the champion: 0.500" in str(state.message)
    assert versions.get_version("champion").number == "1"
    assert (aliases.history()[-1].kind, aliases.history()[-1].found) == ("restore", "2")


def test_a_person_may_say_no_to_what_passed() -> None:
    write_model()
    register()
    state = answered({"approve": False, "approved_by": "ann", "reason": "the readers are on holiday"}, ask=True)
    assert (state.name, state.message) == ("Declined", "ann: the readers are on holiday")
    assert versions.champion() is None
    assert aliases.history() == []


def test_a_question_that_nobody_answers_changes_nothing() -> None:
    write_model()
    register()
    state = promote(ask=True, answer_within_hours=4 / 3600, return_state=True)
    assert state.is_failed()
    assert versions.champion() is None


def test_what_is_held_suspends_the_deployments_run_and_goes_on_with_the_answer(tmp_path: Path) -> None:
    for seed, images in ((1, 30), (2, 33)):
        write_model(seed=seed, images=images)
        register()
        if seed == 1:
            aliases.move_champion("1", instead_of="", kind="promote", approved_by="ann", reason="first")
    environment = {**os.environ, "PREFECT_API_URL": api_url(), "PYTHONPATH": str(tmp_path)}

    def prefect(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "prefect", *arguments], env=environment, check=True)

    prefect("work-pool", "create", "people", "--type", "process")
    prefect("--no-prompt", "deploy", "flows/promote.py:promote", "--name", "asked", "--pool", "people")
    prefect("deployment", "run", "promote/asked", "--param", "reevaluate=false")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "people", "--type", "process"]
    with (
        (tmp_path / "worker.log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as worker,
    ):
        try:
            run = wait_for_question()
            assert run.state is not None
            assert run.state.name == "Suspended"
            assert versions.get_version("champion").number == "1"
            resume_flow_run(run.id, run_input={"approve": True, "approved_by": "ben", "reason": "read all 33 images"})
            ended = wait_for_end(run, tmp_path / "worker.log")
        finally:
            worker.kill()  # asked to end while a run ends, it may wait for ever
    assert (ended.name, ended.message) == ("Promoted", "version 2 is champion")
    last = aliases.history()[-1]
    assert (last.before, last.after, last.approved_by, last.reason) == ("1", "2", "ben", "read all 33 images")
    assert last.overruled.startswith("test set: ")


def api_url() -> str:
    with get_client(sync_client=True) as client:
        return str(client.api_url)


def wait_for_end(run: FlowRun, log: Path, seconds: float = 300) -> State[Any]:
    deadline = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        while True:
            state = client.read_flow_run(run.id).state
            if state is not None and state.is_final():
                return state
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
