"""The whole loop on a small sample, through the real steps: it learns, and it runs nothing twice.

The tests of this file share one clone and build on each other in the order in which they stand.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cxr.dataset.synthetic import DUPLICATE, KEPT, PLANTED
from tests.support.projects.clones import Clone, make_clone

STAGES = ["ingest", "validate", "split", "preprocess", "train", "evaluate", "register"]
CHANCE = 1 / 3
SMALL = {
    "evaluate.bootstrap_resamples": 300,
    "evaluate.gradcam_per_class": 1,
    "evaluate.attention_images": 6,
    "evaluate.sanity_images": 3,
    "evaluate.audit_images": 12,
    # How well so short a training tells the hardest class depends on the processor's arithmetic, bf16 or fp32.
    "promote.min_class_recall": 0.0,
    "promote.ceilings.ece": 0.5,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = make_clone(tmp_path_factory.mktemp("sample"), *(f"--set={name}={value}" for name, value in SMALL.items()))
    made.run("dvc", "repro")
    return made


@pytest.fixture(scope="module")
def metrics(project: Clone) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((project.root / "reports" / "metrics.json").read_text())
    return read


def test_the_model_beats_chance_by_far(metrics: dict[str, Any]) -> None:
    low, high = metrics["ci95"]["accuracy"]
    assert CHANCE < low < metrics["accuracy"] < high
    assert metrics["accuracy"] > 2 * CHANCE
    assert metrics["macro_auroc"] > 0.8


def test_the_report_says_that_the_sample_is_synthetic(project: Clone, metrics: dict[str, Any]) -> None:
    assert metrics["synthetic"] is True
    assert "synthetic" in (project.root / "reports" / "report.html").read_text().lower()


def test_every_planted_file_meets_its_fate_and_no_other_file_does(project: Clone) -> None:
    raw = project.root / "data" / "raw"
    counts = json.loads((raw / "ingest.json").read_text())
    assert counts["kept"] + counts["quarantined"] + counts["duplicates"] == counts["total"]
    folders = {"kermany": "chest_xray", "covid19": "Covid19-dataset"}
    quarantined, duplicates = pd.read_csv(raw / "quarantine.csv"), pd.read_csv(raw / "duplicates.csv")
    found = {f"{folders[row.source]}/{row.path}": row.reason for row in quarantined.itertuples()}
    found |= {f"{folders[row.source]}/{row.path}": DUPLICATE for row in duplicates.itertuples()}
    assert found == {path: fate for path, fate in PLANTED.items() if fate != KEPT}


def test_a_second_repro_runs_nothing(project: Clone) -> None:
    said = project.run("dvc", "repro")
    assert "Running stage" not in said
    assert "Data and pipelines are up to date." in said


def test_metrics_and_plots_are_there_for_dvc(project: Clone, metrics: dict[str, Any]) -> None:
    shown = json.loads(project.ask("dvc", "metrics", "show", "--json"))
    table = shown[""]["data"]["reports/evaluation/headline.json"]["data"]
    assert list(table) == ["accuracy", "macro_f1", "macro_auroc", "ece", "n_test", "protocol"]
    assert table["accuracy"] == metrics["accuracy"]
    plots = json.loads(project.ask("dvc", "plots", "show", "--json"))
    assert "errors" not in plots
    assert len(plots["data"]) == 5


def test_the_flow_finds_every_stage_cached_and_asks_the_gate(project: Clone) -> None:
    said = project.run("flows.rebuild")
    for stage in STAGES:
        assert [stage, "Cached"] in [line.split() for line in said.splitlines()]
    assert ["promote", "Promoted"] in [line.split() for line in said.splitlines()]


def test_the_champion_answers(project: Clone) -> None:
    images = [Path(line) for line in project.ask("tasks.unpack", "data/unpacked", "--first", "2").splitlines()]
    answers = [json.loads(line) for line in project.ask("tasks.predict", "--json", *map(str, images)).splitlines()]
    assert [Path(answer["path"]) for answer in answers] == images
    for answer in answers:
        assert list(answer["probabilities"]) == ["normal", "viral", "bacterial"]
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["predicted_class"] in answer["probabilities"]
        assert answer["model_version"] == "1"


def test_a_promotion_asked_for_again_changes_nothing(project: Clone) -> None:
    assert "champion already" in project.run("tasks.promote")


def test_a_changed_learning_rate_reruns_from_train_and_leaves_the_tree_as_it_was(project: Clone) -> None:
    before = project.git("status", "--porcelain")
    said = project.run(
        "flows.rebuild", "--set", "train.learning_rates.head=7e-4", "--set", "train.epochs=1", "--no-promote"
    )
    ended = dict(line.split()[:2] for line in said.splitlines() if line.split()[:1] and line.split()[0] in STAGES)
    assert ended == {**dict.fromkeys(STAGES[:4], "Cached"), **dict.fromkeys(STAGES[4:], "Completed")}
    assert project.git("status", "--porcelain") == before == "?? dvc.lock\n"
    assert "Data and pipelines are up to date." in project.run("dvc", "status")


def test_the_runs_with_overrides_share_the_registry(project: Clone) -> None:
    receipt = json.loads(next((project.root / ".runs").glob("*/reports/registration.json")).read_text())
    assert receipt["version"] == "2"


def test_a_touched_comment_in_flows_reruns_nothing(project: Clone) -> None:
    with (project.root / "flows" / "rebuild.py").open("a") as file:
        file.write("\n# a remark\n")
    assert "Running stage" not in project.run("dvc", "repro")
    project.git("checkout", "--", "flows")
