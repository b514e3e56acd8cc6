"""The flow over a tiny project: what a person sees of a run, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL

from cxr.common.notices import NOT_CLINICAL
from flows.rebuild import Rebuild, rebuild
from flows.stages import StageBusyError, StageRun, run_stage
from tests.support.faults import fault
from tests.support.processes import has_ended
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("prefect_server")


def run_of(state: State[Any]) -> UUID:
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


def artifacts_of(flow_run_id: UUID) -> dict[str, str]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )
    return {str(artifact.key): f"{artifact.description or ''} {artifact.data}" for artifact in found}


def task_runs_of(flow_run_id: UUID) -> dict[str, str]:
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
    ordered = sorted(found, key=lambda run: run.expected_start_time or run.created)
    return {run.name: str(run.state_name) for run in ordered}


def attempts_of(flow_run_id: UUID) -> dict[str, int]:
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
    return {run.name: run.run_count for run in found}


def test_every_stage_is_a_task_run_and_the_page_shows_metrics_verdict_and_report(tiny: Path) -> None:
    state = rebuild(return_state=True)
    ran = dict.fromkeys(["ingest", "train", "evaluate"], "Completed")
    assert state.result() == Rebuild(stages=ran, verdict="Promoted", folder=tiny)
    assert task_runs_of(run_of(state)) == {**ran, "promote": "Promoted"}
    artifacts = artifacts_of(run_of(state))
    assert NOT_CLINICAL in artifacts["metrics"]
    row = {"metric": "accuracy", "this model": "0.750", "95% interval": "0.500 to 0.900"}
    assert json.dumps(row) in artifacts["metrics"]
    assert "at or above the floor" in artifacts["promotion"]
    assert str(tiny / "reports" / "report.html") in artifacts["report"]


def test_a_second_run_executes_nothing_and_a_refusal_is_an_answer_with_its_reasons(tiny: Path) -> None:
    rebuild(promote=False)
    (tiny / "refuse").touch()
    state = rebuild(return_state=True)
    cached = dict.fromkeys(["ingest", "train", "evaluate"], "Cached")
    assert task_runs_of(run_of(state)) == {**cached, "promote": "Rejected"}
    assert state.is_completed()
    assert state.result().verdict == "Rejected"
    assert "0.75 is below 0.8" in artifacts_of(run_of(state))["promotion"]


def test_a_promotion_that_waits_for_a_person_is_an_answer_too(tiny: Path) -> None:
    (tiny / "hold").touch()
    state = rebuild(return_state=True)
    assert task_runs_of(run_of(state))["promote"] == "Held"
    assert state.is_completed()


def test_a_run_beyond_its_time_limit_ends_and_takes_its_stage_along(tiny: Path) -> None:
    (tiny / "hang-ingest").touch()
    state = rebuild.with_options(timeout_seconds=45)(promote=False, return_state=True)
    assert state.name == "TimedOut"
    stage = int((tiny / "data" / "pid").read_text())
    wait_for(lambda: has_ended(stage))  # killed; when it is gone, the system decides


def test_overrides_hold_for_their_run_alone(tiny: Path) -> None:
    rebuild(promote=False)
    done = rebuild(overrides={"train.epochs": 2}, promote=False)
    assert done.verdict is None
    assert done.stages == {"ingest": "Cached", "train": "Completed", "evaluate": "Cached"}
    assert done.folder.parent == tiny / ".runs"
    assert (done.folder / "reports" / "metrics.json").exists()
    changed = subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True, text=True).stdout
    assert changed == "?? dvc.lock\n"
    assert set(rebuild(promote=False).stages.values()) == {"Cached"}


def test_a_busy_stage_is_tried_again_and_a_broken_one_fails_the_flow_with_its_message(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tiny / ".dvc" / "tmp" / "rwlock"
    record.write_text(json.dumps({"write": {str(tiny / "data" / "raw"): {"pid": os.getppid(), "cmd": "dvc repro"}}}))
    (tiny / "fail-train").write_text("the loss is not finite")

    def freed_after_one_try(*arguments: Any, **named: Any) -> StageRun:
        try:
            return run_stage(*arguments, **named)
        except StageBusyError:
            record.write_text("{}")
            raise

    monkeypatch.setattr("flows.rebuild.run_stage", freed_after_one_try)
    state = rebuild(return_state=True)
    assert attempts_of(run_of(state)) == {"ingest": 2, "train": 1}
    assert task_runs_of(run_of(state)) == {"ingest": "Completed", "train": "Failed"}
    assert state.is_failed()
    assert state.message == "train: the loss is not finite"


def test_outside_a_project_the_message_says_where_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = rebuild(return_state=True)
    assert state.is_failed()
    assert "holds no dvc.yaml; start the flow in the project's root" in str(state.message)


def flow_process(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "flows.rebuild", *arguments],
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},  # the session's server
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_line_prints_one_line_a_stage_and_the_gates_exit_code(tiny: Path) -> None:
    (tiny / "refuse").touch()
    with flow_process() as process:
        out, _ = process.communicate()
    assert process.returncode == 10
    lines = [line.split() for line in out.splitlines()]
    assert lines[:4] == [
        ["ingest", "Completed"],
        ["train", "Completed"],
        ["evaluate", "Completed"],
        ["promote", "Rejected"],
    ]
    assert lines[4] == ["report", str(tiny / "reports" / "report.html")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@fault("flows.rebuild", "SIGTERM of the flow", "its stage ends too", "exit code 143; the next run goes on")
@fault("flows.rebuild", "SIGKILL of the flow", "its stage ends too", "the next run repairs the lock and goes on")
def test_a_killed_flow_takes_its_stage_along_and_the_next_run_goes_on(tiny: Path, number: signal.Signals) -> None:
    (tiny / "hang-train").touch()
    with flow_process("--no-promote") as process:
        said = tiny / "models" / "pid"
        while not said.exists() or not said.read_text():
            assert process.poll() is None
            time.sleep(0.1)
        os.kill(process.pid, number)
        said_at_the_end = process.communicate()[1].splitlines()
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert said_at_the_end[-1] == "terminated; run the same command again to continue"
    stage = int(said.read_text())
    wait_for(lambda: has_ended(stage))
    (tiny / "hang-train").unlink()
    assert rebuild(promote=False).stages == {"ingest": "Cached", "train": "Completed", "evaluate": "Completed"}
