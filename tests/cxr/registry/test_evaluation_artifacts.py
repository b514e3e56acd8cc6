"""Evaluation artifacts as files: read as registered, and missing ones as missing."""

import json
from pathlib import Path

import pytest

from cxr.registry.evaluation_artifacts import evaluation_digest, read_evaluation

HEADING = "image_id,split,patient_id,label,predicted_class,p_normal,p_viral\n"


def test_the_test_images_are_read_and_checked_against_the_digest(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"accuracy": 1.0, "macro_f1": True, "classes": ["normal"]}))
    (tmp_path / "predictions.csv").write_text(
        f"{HEADING}007,test,NA,normal,viral,0.25,0.75\nb,validation,p2,normal,normal,0.9,0.1\n"
    )
    digest = evaluation_digest(tmp_path)
    artifacts = read_evaluation(tmp_path, {"synthetic": "true"}, sha256=digest)
    assert artifacts.images is not None
    assert artifacts.images[["image_id", "patient_id", "p_viral"]].to_dict("records") == [
        {"image_id": "007", "patient_id": "NA", "p_viral": 0.75}
    ]
    assert [artifacts.metric(name) for name in ("accuracy", "macro_f1", "ece")] == [1.0, None, None]
    assert (artifacts.recall("normal"), artifacts.recall("viral")) == (0.0, None)
    assert (artifacts.classes, artifacts.synthetic, artifacts.changed) == (("normal",), True, False)
    (tmp_path / "metrics.json").write_text(json.dumps({"accuracy": 0.9}))
    assert read_evaluation(tmp_path, {}, sha256=digest).changed


@pytest.mark.parametrize("metrics", ["not json", "[1, 2]"])
@pytest.mark.parametrize(
    "predictions", ["", "a,b\n1,2\n", HEADING.replace("label,", ""), f"{HEADING}a,test,b,c,d,x,y\n"]
)
def test_what_cannot_be_read_counts_as_missing(tmp_path: Path, metrics: str, predictions: str) -> None:
    (tmp_path / "metrics.json").write_text(metrics)
    (tmp_path / "predictions.csv").write_text(predictions)
    artifacts = read_evaluation(tmp_path, {}, sha256="")
    assert artifacts.metrics is None
    assert artifacts.images is None


def test_without_a_folder_there_are_no_artifacts(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        artifacts = read_evaluation(folder, {}, sha256=evaluation_digest(tmp_path))
        assert (artifacts.metrics, artifacts.images, artifacts.changed) == (None, None, False)
        assert artifacts.classes == ()
        assert artifacts.test_set_sha256 == ""
        assert artifacts.recall("normal") is None
