"""The nightly flow with the real step: shards as tasks, one page of the results, one line for a failure."""

import shutil
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import State

import flows.external
import flows.score
from cxr.common.locks import sole_lock
from cxr.registry import tracking_store
from cxr.registry.versions import CHAMPION, MODEL, get_version
from flows.score import Scoring, score
from flows.shards import run_shard, run_shards_of
from tests.support.faults import fault
from tests.support.processes import has_ended, stopped_by
from tests.support.project import PROJECT
from tests.support.projects.registry_project import call
from tests.support.projects.tiny_model import enter_tiny_project, write_image
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a project with a champion."""
    folder = tmp_path_factory.mktemp("champion")
    with pytest.MonkeyPatch.context() as patch:
        enter_tiny_project(folder, patch, tmp_path_factory, champion=True)
    return folder / "mlruns"


@pytest.fixture
def project(champion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with parameters and without images; the steps are those of this project."""
    monkeypatch.delenv(tracking_store.STORE_VARIABLE, raising=False)
    monkeypatch.setenv(tracking_store.FOLDER_VARIABLE, str(champion))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.chdir(tmp_path)
    shutil.copy2(PROJECT / "params.yaml", tmp_path)
    return tmp_path


def artifacts_of(state: State[Any]) -> dict[str, str]:
    with get_client(sync_client=True) as client:
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return {str(artifact.key): str(artifact.data) for artifact in found}


def attempts_of_first_shard(state: State[Any]) -> int:
    """Return how often the task of the first shard was started."""
    parent = state.state_details.flow_run_id
    assert parent is not None
    with get_client(sync_client=True) as client:
        below = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent]))
        return next(
            run.run_count for run in client.read_task_runs(flow_run_filter=below) if run.name.startswith("1 of")
        )


def test_new_known_and_unreadable_images_are_counted_over_all_shards(project: Path) -> None:
    for number in range(4):
        write_image(project / "images" / f"{number}.png", seed=number)
    (project / "images" / "empty.png").touch()
    state = score("images", shards=2, return_state=True)
    done: Scoring = state.result()
    assert (done.found, done.known, done.scored, done.bad) == (5, 0, 4, 1)
    assert sum(done.classes.values()) == 4
    assert done.images_per_second > 0
    shown = artifacts_of(state)
    assert "Version 1 on images" in shown["scores"]
    assert str(project / "data" / "scores") in shown["scores"]
    assert "empty.png" in shown["bad-images"]

    write_image(project / "images" / "new.png", seed=9)
    again = score("images", shards=1, return_state=True).result()
    assert (again.found, again.known, again.scored, again.bad) == (
        6,
        5,
        1,
        0,
    )  # an unreadable image that did not change is known, too


@fault("flows.score", "another version becomes champion while shards wait for their turn or are tried again",
       "all shards score with the one that was champion at the start", "that version on the run's page")  # fmt: skip
def test_a_promotion_in_the_middle_does_not_mix_versions(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(project / "images" / "0.png", seed=0)
    client, first = tracking_store.client(), get_version("champion")
    source = f"models:/{first.model_id}"
    with tracking_store.named_to_mlflow():
        second = client.create_model_version(MODEL, source, model_id=first.model_id, tags=dict(first.tags)).version

    def promoted_before(*arguments: Any) -> State[Any]:
        client.set_registered_model_alias(MODEL, CHAMPION, second)
        return run_shards_of(*arguments)

    monkeypatch.setattr("flows.score.run_shards_of", promoted_before)
    done: Scoring = score("images", shards=1, return_state=True).result()
    client.set_registered_model_alias(MODEL, CHAMPION, first.number)
    client.delete_model_version(MODEL, second)
    assert done.version == first.number


@pytest.mark.parametrize("flow", [flows.score, flows.external])
@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_number_of_shards_below_one_is_refused(
    flow: ModuleType, number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, flow.main, "--shards", number)
    assert ended.value.code == 2
    assert f"--shards: expected a whole number from 1 to 10000, got '{number}'" in capsys.readouterr().err


def test_a_run_without_one_readable_image_fails(project: Path) -> None:
    (project / "images").mkdir()
    (project / "images" / "empty.png").touch()
    state = score("images", shards=1, return_state=True)
    assert state.is_failed()
    assert "could be read" in str(state.message)


def test_before_any_image_came_in_the_night_ends_well_and_says_so(project: Path) -> None:
    state = score(return_state=True)
    assert state.is_completed()
    assert "data/incoming" in str(state.message)
    assert "data/incoming" in artifacts_of(state)["scores"]
    assert not (project / "data" / "scores").exists()


def test_a_missing_folder_that_was_named_is_a_failure_after_one_attempt(project: Path) -> None:
    state = score("elsewhere", shards=1, return_state=True)
    assert state.is_failed()
    assert "elsewhere" in str(state.message)
    assert attempts_of_first_shard(state) == 1
    assert not (project / "data" / "scores").exists()


@pytest.fixture
def down(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a step into the project that cannot reach the bucket; the real client would try for a long time."""
    (project / "tasks").mkdir()
    (project / "tasks" / "__init__.py").touch()
    (project / "tasks" / "score.py").write_text("raise SystemExit('error: s3://bucket: Could not connect')")
    monkeypatch.setattr(run_shard, "retry_delay_seconds", 0)
    monkeypatch.setattr(run_shard, "retries", 2)


@pytest.mark.usefixtures("down")
def test_a_bucket_that_cannot_be_reached_is_tried_again() -> None:
    state = score("s3://bucket/images", shards=1, return_state=True)
    assert state.is_failed()
    assert "Could not connect" in str(state.message)
    assert attempts_of_first_shard(state) == 3


@fault(
    "flows.score",
    "the process of a shard whose machine died is still at it",
    "the shard is tried again, three times",
    "the number of the try; then is busy",
)
def test_a_shard_that_another_process_is_at_is_tried_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(project / "images" / "0.png", seed=0)
    monkeypatch.setattr(run_shard, "retry_delay_seconds", 0)
    monkeypatch.setattr(run_shard, "retries", 1)
    with sole_lock(project / "data" / "scores" / ".version-1-1of1.lock", what="a shard"):
        state = score("images", shards=1, return_state=True)
    assert state.is_failed()
    assert "is busy" in str(state.message)
    assert attempts_of_first_shard(state) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@fault("flows.score", "SIGTERM of the flow", "its shards end too", "exit code 143, run the same command again")
def test_a_stopped_run_ends_at_once_and_its_shards_with_it(
    project: Path, prefect_server: dict[str, str], number: signal.Signals
) -> None:
    (project / "tasks").mkdir()
    (project / "tasks" / "__init__.py").touch()
    (project / "tasks" / "score.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )
    arguments = ["-m", "flows.score", "images", "--shards", "1"]
    stopped = stopped_by(number, arguments, child=project / "pid", api=prefect_server["PREFECT_API_URL"])
    assert stopped.code == 128 + number
    assert stopped.last_words == b"stopped; run the same command again to continue"
    wait_for(lambda: has_ended(stopped.child))
