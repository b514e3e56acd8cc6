"""What stands on the page of a rebuild: figures beside the champion's, and links into MLflow where it has a page."""

from pathlib import Path

import pytest

from cxr.registry import runs
from flows.run_page import metrics_rows, mlflow_links
from flows.serve import MLFLOW_PAGE_VARIABLE
from tests.support.projects.registry_project import enter_project, register, write_model

METRICS = {
    "accuracy": 0.75,
    "calibration": {"ece": 0.125},
    "per_class": {"viral": {"recall": 0.5}},
    "ci95": {"accuracy": [0.5, 0.9]},
    "test_set_sha256": "a",
}


def test_each_figure_stands_beside_the_champions_with_the_difference() -> None:
    champion = {"accuracy": 0.5, "ece": 0.25, "recall": {"viral": 0.625}, "test_set_sha256": "a"}
    rows = metrics_rows(METRICS, champion)
    assert list(rows[0]) == ["metric", "this model", "95% interval", "champion", "difference"]
    assert [tuple(row.values()) for row in rows] == [
        ("accuracy", "0.750", "0.500 to 0.900", "0.500", "+0.250"),
        ("ece", "0.125", "", "0.250", "-0.125"),
        ("recall of viral", "0.500", "", "0.625", "-0.125"),
    ]


def test_without_a_champion_there_is_no_column_for_one() -> None:
    assert list(metrics_rows(METRICS, None)[0]) == ["metric", "this model", "95% interval"]


def test_links_lead_to_the_version_and_its_report_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    write_model()
    version = register()
    receipt = Path("reports/registration.json")
    monkeypatch.delenv(MLFLOW_PAGE_VARIABLE, raising=False)
    assert mlflow_links(receipt) == {}
    monkeypatch.setenv(MLFLOW_PAGE_VARIABLE, "https://me:secret@mlflow.team/")  # as browsers reach it
    links = mlflow_links(receipt)
    view = "?workflowType=machine_learning"
    assert links["version"] == f"https://mlflow.team/#/models/chest-xray-pneumonia/versions/1{view}"
    stored = version.tags["evaluation_artifacts"].partition("/")[2]
    report = f"/runs/{version.run_id}/artifacts/{stored}/report.html{view}"
    assert links["report"] == f"https://mlflow.team/#/experiments/{runs.experiment_id()}{report}"
