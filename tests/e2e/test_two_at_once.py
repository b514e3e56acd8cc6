"""The same stage or command twice at once in one project: both are right, or the second ends with one line.

The first runs in a child, a fork of this process, which waits in the middle until the second has ended here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest

from cxr.common.cli import run_command, run_step
from cxr.common.errors import BusyError, SourceError
from cxr.common.locks import file_lock
from cxr.common.params import override
from cxr.inference.score_store import read_scores
from cxr.registry import retention
from flows import serve
from tasks.pacs import STATE_FILE, beside
from tests.e2e.test_damaged_inputs import outputs
from tests.support.faults import fault
from tests.support.moments import before_removal, before_rename, held_in_child
from tests.support.projects.sample_project import STAGES, command
from tests.support.waiting import wait_for

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SEEN = "exit code 14, is busy"
MOMENTS = {"ingest": 2, "train": 3, "monitor": 2}
"""Before which rename the first waits, where it is not the first: of its output, not of a cache."""


def stage(name: str) -> Callable[[], None]:
    """Return what `python -m tasks.NAME` calls, in this process."""

    def main() -> None:
        with mock.patch.object(sys, "argv", [name]):
            run_step(getattr(import_module(f"tasks.{name}"), name), shared=name == "train")

    return main


def refused(again: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a command ends with one line that says that another one is at it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: again() and None)
    assert ended.value.code == BusyError.exit_code == 14
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "is busy: another process is at it; nothing was changed" in line


def ends_well(what: Callable[[], None]) -> Callable[[], None]:
    """Return a command whose exit code is that of its process."""
    return lambda: run_command(what)


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize("name", STAGES)
@fault("ingest, validate, split, preprocess, train, evaluate, register", "the same stage twice at once, without DVC",
       "the first goes on, the second changes nothing", SEEN)  # fmt: skip
def test_a_stage_twice_at_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = outputs(name)
    with held_in_child(ends_well(stage(name)), before_rename, MOMENTS.get(name, 1)):
        refused(stage(name), capsys)
    after = outputs(name)
    assert after.keys() == before.keys()
    if name not in {"train", "evaluate"}:  # whose files hold times, and a champion
        assert after == before
    assert len(retention.stored_versions()) == 1


@pytest.mark.usefixtures("incoming")
@fault("monitor", "twice at once", "the first goes on, the second changes nothing", SEEN)
def test_monitor_twice_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with held_in_child(ends_well(stage("monitor")), before_rename, MOMENTS["monitor"]):
        refused(stage("monitor"), capsys)
    assert Path("reports/monitor.json").is_file()


@pytest.mark.usefixtures("incoming")
@fault("score", "the same shard into one folder twice at once", "each image has one row", SEEN)
def test_score_twice_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with held_in_child(ends_well(command("score")), before_rename, 2):
        refused(command("score"), capsys)
    assert sorted(read_scores(Path("data/scores"))["path"]) == ["0.png", "1.png", "2.png"]


@pytest.mark.usefixtures("incoming")
@fault("external", "one result twice at once", "the first goes on, the second changes nothing", SEEN)
def test_external_twice_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    again = command("external", "--data", "data/incoming")
    with held_in_child(ends_well(again), before_rename, 2):
        refused(again, capsys)
    assert Path("reports/external/incoming/external.json").is_file()


@pytest.mark.usefixtures("incoming")
@fault("clean", "a training runs", "the training ends as usual, its checkpoints stay", "kept: in use by a run")
def test_clean_while_a_training_runs(capsys: pytest.CaptureFixture[str]) -> None:
    override(Path("params.yaml"), {"clean.keep_days": 0})
    with held_in_child(ends_well(stage("train")), before_rename, MOMENTS["train"]):
        (checkpoints,) = [path for path in Path(".checkpoints").iterdir() if path.is_dir()]
        command("clean")()
        assert f"checkpoints of {checkpoints.name}" in capsys.readouterr().out
        assert checkpoints.is_dir()
    assert outputs("train")


@pytest.mark.usefixtures("sample")
@fault("clean", "twice at once", "the first goes on, the second changes nothing", SEEN)
def test_clean_twice_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with held_in_child(ends_well(command("clean")), before_removal, 1):
        refused(command("clean"), capsys)


@fault("PACS", "a second worker with one state file", "it waits, and takes over when the first ends",
       "waiting for another worker with that file to end")  # fmt: skip
def test_a_second_pacs_worker_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    ended: list[SourceError] = []

    def second() -> None:
        try:
            command("pacs", "http://127.0.0.1:9", "--once")()
        except SourceError as error:
            ended.append(error)

    thread = threading.Thread(target=second)
    with file_lock(beside(STATE_FILE, ".lock")):
        thread.start()
        wait_for(lambda: "waiting for another worker with .checkpoints/pacs.json to end" in caplog.text)
        assert not ended
    thread.join()
    assert "does not respond" in str(ended[0])


@fault("make serve", "a second one in one checkout, on other ports", "the first goes on, nothing is started", SEEN)
def test_serve_twice_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "serve", lambda *_, **__: pytest.fail("it was started"))
    monkeypatch.setattr(sys, "argv", ["serve"])
    with file_lock(Path(".prefect/serve.lock")):
        refused(serve.main, capsys)
