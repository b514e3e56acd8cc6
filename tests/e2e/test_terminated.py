"""Stages and commands that get SIGTERM, as from docker stop or Kubernetes: one line, exit code 143, no remains.

A child sends it to itself right before its n-th rename of a file, or its n-th commit to the store.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pandas as pd
import pytest

from cxr.common.cli import run_command
from cxr.common.errors import Terminated
from cxr.common.files import read_json
from cxr.common.params import override
from cxr.inference.score_store import read_scores
from cxr.registry import tracking_store, versions
from cxr.registry.champion import aliases
from tests.e2e.test_damaged_inputs import outputs
from tests.support.faults import fault
from tests.support.moments import (
    Command,
    Moment,
    before_commit,
    before_removal,
    before_rename,
    in_child,
    signals_itself,
)
from tests.support.projects.sample_project import command, run_stage

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

LINE = "terminated; run the same command again to continue"
SEEN = "exit code 143, run the same command again"


def terminated(what: Command, moment: Moment, number: int) -> None:
    """Run a command in a child that gets SIGTERM at a moment; check what it says, its exit code and its remains."""
    said = Path("said")
    ended = in_child(
        lambda: run_command(lambda: what() and None),
        lambda: moment(number, signals_itself(signal.SIGTERM)),
        said=said,
    )
    lines = said.read_text().splitlines()
    assert ended == Terminated.exit_code == 143
    assert lines[-1] == LINE
    assert not [line for line in lines if "Traceback" in line or "rror" in line]
    assert not [file for file in Path().rglob("*") if file.name.endswith((".partial", ".old"))]


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("stage", "number"),
    [("ingest", 3), ("validate", 1), ("split", 1), ("preprocess", 1), ("preprocess", 2),
     ("train", 2), ("train", 5), ("evaluate", 8), ("register", 1)],
)  # fmt: skip
@fault("ingest, validate, split, preprocess, train, evaluate, register", "SIGTERM before a rename",
       "the outputs are as before, or gone; nothing half-written is left", SEEN)  # fmt: skip
def test_a_stage_is_terminated(stage: str, number: int) -> None:
    before = outputs(stage)
    terminated(lambda: run_stage(stage), before_rename, number)
    after = outputs(stage)
    assert after == before or not after


@pytest.mark.usefixtures("incoming")
@fault("score", "SIGTERM before a part is written", "what was scored is written; the next run scores the rest", SEEN)
def test_score_is_terminated() -> None:
    again = command("score")
    terminated(again, before_rename, 2)  # the first is the copy of the model
    again()
    assert sorted(read_scores(Path("data/scores"))["path"]) == ["0.png", "1.png", "2.png"]


@pytest.mark.usefixtures("incoming")
@pytest.mark.parametrize("number", [1, 3])
@fault("external", "SIGTERM before a rename", "no result, or the whole one; the next run goes on", SEEN)
def test_external_is_terminated(number: int) -> None:
    again = command("external", "--data", "data/incoming")
    terminated(again, before_rename, number)
    again()
    assert sorted(pd.read_csv("reports/external/incoming/predictions.csv")["path"]) == ["0.png", "1.png", "2.png"]


@pytest.mark.usefixtures("incoming")
@pytest.mark.parametrize("number", [2, 3])
@fault("monitor", "SIGTERM before a rename", "page and numbers are the earlier or the new ones, each whole", SEEN)
def test_monitor_is_terminated(number: int) -> None:
    terminated(lambda: run_stage("monitor"), before_rename, number)
    assert not Path("reports/monitor.json").exists()
    run_stage("monitor")
    assert read_json(Path("reports/monitor.json"))["version"] == "1"


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize("number", [1, 4, 7])
@fault("promote", "SIGTERM before a commit to the store", "the next command finishes the move; it has one entry", SEEN)
def test_promote_is_terminated(number: int) -> None:
    lenient = {"promote.floors": {}, "promote.ceilings": {}, "promote.min_class_recall": 0.0}
    override(Path("params.yaml"), lenient)
    again = command("promote", "--approve-held", "--approved-by", "ann", "--reason", "a test")
    terminated(again, before_commit, number)
    again()
    assert versions.get_version(versions.CHAMPION).number == "1"
    assert [move.after for move in aliases.history()] == ["1"]


@pytest.mark.usefixtures("incoming")
@pytest.mark.parametrize("number", [1, 3])
@fault("rollback", "SIGTERM before a commit to the store", "the next command finishes the move; it has one entry", SEEN)
def test_rollback_is_terminated(number: int) -> None:
    tracking_store.client().delete_registered_model_alias(versions.MODEL, versions.CHAMPION)  # past the gate
    again = command("rollback")
    terminated(again, before_commit, number)
    aliases.settle()
    if aliases.mismatch():
        again()
    assert versions.get_version(versions.CHAMPION).number == "1"
    assert [move.kind for move in aliases.history()] == ["promote", "restore"]


@pytest.mark.usefixtures("incoming")
@fault("clean", "SIGTERM before something is removed", "no champion is removed; the next run removes the rest", SEEN)
def test_clean_is_terminated() -> None:
    override(Path("params.yaml"), {"clean.keep_days": 0})
    left = [Path(".checkpoints/one"), Path(".checkpoints/two")]
    for folder in left:
        folder.mkdir(parents=True)
    again = command("clean")
    terminated(again, before_removal, 3)  # the first is of a scratch folder
    assert [folder.exists() for folder in left] == [False, True]
    again()
    assert not left[1].exists()
    assert versions.bundle_fault(versions.get_version(versions.CHAMPION)) == ""
