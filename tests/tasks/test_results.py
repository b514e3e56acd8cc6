"""The results command: from a tracking store to the page, with the same bytes for the same runs."""

import json
import logging
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cxr.common.errors import ParamsError, RegistryError
from cxr.registry import runs
from cxr.registry.tracked_runs import read_artifacts, runs_with_tag_prefix
from cxr.study.results import RunRecord
from cxr.study.spec import Study, read_study
from tasks.results import results
from tests.support.project import PROJECT
from tests.support.projects.registry_project import enter_project
from tests.support.projects.study_runs import record, small_study

PARAMS, STUDY, OUTPUT = Path("params.yaml"), Path("study.yaml"), Path("docs/results.md")


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


def write_study(study: Study) -> Study:
    with STUDY.open("w") as file:
        YAML().dump(study.model_dump(), file)
    return read_study(STUDY)


def track(run: RunRecord) -> str:
    """Record a run in the store, as training and evaluation do; return its id."""
    run_id = runs.start_run(run_id=None, name="row", tags=run.tags)
    runs.log_params(run_id, run.params)
    folder = Path("written") / run_id
    files = {"training/training.json": json.dumps(run.training)}
    if run.validation is not None:
        files["training/validation.csv"] = run.validation.to_csv(index=False)
    if run.metrics is not None:
        files["evaluation/metrics.json"] = json.dumps(run.metrics)
    if run.predictions is not None:
        files["evaluation/predictions.csv"] = run.predictions.to_csv(index=False)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        runs.log_files(run_id, [path], path.parent.name)
    runs.finish_run(run_id, "FINISHED")
    return run_id


def test_page_and_curve_are_made_from_the_stored_runs() -> None:
    rows = [{"name": "half", "label": "half of the images"}, {"name": "all", "label": "all images"}]
    study = small_study(name="learning_curve", tested=True, seeds=[1], baseline="all", rows=rows)
    (group,) = write_study(study).groups
    images = {"half": "450", "all": "900"}
    made = [
        record(group, row, 1, skill=2.0, params={"split.counts.train.normal": images[row.name]}) for row in group.rows
    ]
    ids = [track(run) for run in made]
    results(STUDY, PARAMS, OUTPUT)
    page, curve = OUTPUT.read_text(), (OUTPUT.parent / "results-learning-curve.svg").read_text()
    for run_id, run in zip(ids, made, strict=True):
        assert run.metrics is not None
        assert f"`{run_id[:8]}`" in page
        assert f"{run.metrics['accuracy']:.3f} (0.500 to 0.900)" in page
    assert "2 of 2 trials" in page
    assert "accuracy on the test images" in curve
    assert "currentColor" not in curve
    ET.fromstring(curve)
    before = OUTPUT.read_bytes()
    results(STUDY, PARAMS, OUTPUT)
    assert OUTPUT.read_bytes() == before


def test_empty_store_gives_no_figures_and_no_curve() -> None:
    write_study(small_study(name="learning_curve"))
    results(STUDY, PARAMS, OUTPUT)
    assert "| `learning_curve` | 2 | 4 |" in OUTPUT.read_text()
    assert not (OUTPUT.parent / "results-learning-curve.svg").exists()


def test_run_without_files_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    (group,) = write_study(small_study()).groups
    run_id = runs.start_run(run_id=None, name="row", tags={group.tag(group.rows[0], 1): "digest"})
    with caplog.at_level(logging.WARNING):
        results(STUDY, PARAMS, OUTPUT)
    assert f"run {run_id} has no training/training.json" in caplog.text
    assert "| `ablation` | 2 | 4 |" in OUTPUT.read_text()


@pytest.mark.parametrize("name", ["training/training.json", "training/validation.csv"])
def test_a_damaged_file_of_a_run_is_named(name: str, tmp_path: Path) -> None:
    (group,) = write_study(small_study()).groups
    run_id = track(record(group, group.rows[0], 1, skill=1.0))
    damaged = tmp_path / Path(name).name
    damaged.write_bytes(b'"\xff')
    runs.log_files(run_id, [damaged], Path(name).parent.name)
    with pytest.raises(RegistryError, match=f"{name} of run {run_id} is damaged"):
        results(STUDY, PARAMS, OUTPUT)
    assert not OUTPUT.exists()


def test_runs_with_the_prefix_are_listed_the_oldest_first() -> None:
    runs.start_run(run_id=None, name="other", tags={"team": "radiology"})
    wanted = [runs.start_run(run_id=None, name="row", tags={f"study.a.b.{n}": "x"}) for n in range(3)]
    found = runs_with_tag_prefix("study.")
    assert sorted(run.run_id for run in found) == sorted(wanted)
    assert [run.started_ms for run in found] == sorted(run.started_ms for run in found)
    assert read_artifacts(wanted[0], ["training/training.json"]) == {}


def test_missing_study_leaves_an_existing_page_unchanged() -> None:
    OUTPUT.parent.mkdir()
    OUTPUT.write_text("earlier")
    with pytest.raises(ParamsError, match=r"study\.yaml is missing"):
        results(STUDY, PARAMS, OUTPUT)
    assert OUTPUT.read_text() == "earlier"


def test_help_names_inputs_and_outputs() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "tasks.results", "--help"], check=True, cwd=PROJECT, capture_output=True, text=True
    )
    assert "docs/results.md" in shown.stdout
