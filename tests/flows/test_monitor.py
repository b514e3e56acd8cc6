"""The flow `monitor` on a Prefect server: drift starts the deployment of the rebuild once for the same windows."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from cxr.registry import tracking_store, versions
from flows.monitor import monitor
from flows.rebuild import rebuild
from tests.support.projects.registry_project import enter_project

LAST = "2026-01-02T00:00:00.000000+00:00"

STEP = """
import json, os, pathlib, sys
if os.path.exists("broken"):
    sys.exit("error: there is no champion")
drift = os.path.exists("shifted")
report = {"drift": drift, "version": "1", "headline": "It was compared.", "markdown": "| window |", "windows": [
    {"last": "%s"}]}
pathlib.Path("reports").mkdir(exist_ok=True)
pathlib.Path("reports/monitor.json").write_text(json.dumps(report))
print("drift: " + str(drift).lower())
"""


pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A project whose step reports drift or fails if a file exists, and a registered version 1."""
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    Path("tasks").mkdir()
    Path("tasks/monitor.py").write_text(STEP % LAST)
    client = tracking_store.client()
    client.create_registered_model(versions.MODEL)
    client.create_model_version(versions.MODEL, (tmp_path / "made").as_uri())


def _runs_of_rebuild() -> int:
    with get_client(sync_client=True) as client:
        return len([run for run in client.read_flow_runs() if (run.idempotency_key or "").startswith("drift-")])


def test_unchanged_images_start_nothing() -> None:
    ended = monitor(return_state=True)
    assert (ended.name, ended.message) == ("Completed", "It was compared.")


def test_failed_comparison_fails_with_the_message_of_the_step() -> None:
    Path("broken").touch()
    ended = monitor(return_state=True)
    assert ended.is_failed()
    assert "there is no champion" in str(ended.message)


def test_drift_without_a_deployment_names_the_command_and_is_reported_again() -> None:
    Path("shifted").touch()
    ended = monitor(return_state=True)
    assert ended.name == "Drift"
    assert "./run flows.rebuild" in str(ended.message)
    assert versions.DRIFT_TAG not in versions.get_version("1").tags
    assert "report only" in str(monitor(start_rebuild=False, return_state=True).message)


def test_drift_starts_one_rebuild_for_the_same_windows() -> None:
    deployment: Any = rebuild.to_deployment("weekly")
    deployment.apply()
    Path("shifted").touch()
    ended = monitor(return_state=True)
    assert ended.name == "Drift"
    assert "Started rebuild/weekly" in str(ended.message)
    assert versions.get_version("1").tags[versions.DRIFT_TAG] == LAST
    assert _runs_of_rebuild() == 1
    monitor(return_state=True)  # as after an interruption between the start and the tag
    assert _runs_of_rebuild() == 1
