"""The same image gets the same answer from evaluation, predict, score and MLflow's server; the export is close."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.mlflow_served import served
from cxr.common.files import write_json
from cxr.dataset.image_array import write_index
from cxr.dataset.manifest import sha256_of_test_set
from cxr.dataset.synthetic_image import KERMANY_LOOK, draw_anatomy, draw_finding, draw_image
from cxr.imaging.decode import image_from_bytes
from cxr.inference.score_store import read_scores
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.models.forward import classify, predict_with_features
from cxr.models.reference import MEASURES, REFERENCE_FILE, image_measures, make_reference, write_reference
from cxr.registry import versions
from cxr.registry.champion import aliases
from tasks import predict, score
from tests.support.projects.registry_project import (
    CLASSES,
    call,
    enter_project,
    metrics,
    register,
    spec,
    write_model,
    write_split,
)

SIDE_PX = 64
MEAN, STD = IMAGENET_MEAN, IMAGENET_STD
BOUND = 0.05
PROBABILITIES = [f"p_{name}" for name in CLASSES]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registered champion of a tiny project, packed images and the evaluation's predictions; the images' folder."""
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    write_model()
    torch.manual_seed(0)
    network, described = build("small_cnn", 3).eval(), spec(backbone="small_cnn", image_size_px=SIDE_PX)
    write_bundle(Path("models/trained"), network.state_dict(), described)
    rng = np.random.default_rng(0)
    names = [f"image{number:02d}" for number in range(21)]
    labels = [CLASSES[number % 3] for number in range(21)]
    Path("images").mkdir()
    for name, label in zip(names, labels, strict=True):
        cv2.imwrite(f"images/{name}.png", draw_image(draw_anatomy(rng), draw_finding(label, rng), KERMANY_LOOK, rng))
    prepared = np.stack(
        [image_from_bytes(Path(f"images/{n}.png").read_bytes(), described.preprocessing, name=n) for n in names]
    )
    Path("data/images").mkdir(parents=True)
    np.save("data/images/images.npy", prepared)
    write_index(Path("data/images"), names, described.preprocessing)
    fitted = {"temperature": 1.5, "bias": [0.0, 0.0, 0.0], "refer_below": 0.5}
    write_json(Path("reports/evaluation/calibration.json"), fitted)
    found = classify(network, replace(described, temperature=1.5), prepared)
    _write_reference(network, prepared, found)
    table = pd.DataFrame({"image_id": names, "split": ["validation", "test", "test"] * 7, "label": labels})
    table["source"], table["patient_id"] = "kermany", names
    table["predicted_class"] = [CLASSES[best] for best in found.argmax(axis=1)]
    table[PROBABILITIES] = found
    table.to_csv("reports/evaluation/predictions.csv", index=False)
    _write_metrics_and_split(table[table["split"] == "test"])
    version = register()
    aliases.move_champion(version.number, instead_of="", kind="promote", approved_by="ann", reason="test")
    return Path("images")


def _write_metrics_and_split(tested: pd.DataFrame) -> None:
    """Write what `register` compares with the predictions."""
    write_split([(row.image_id, row.label) for row in tested.itertuples()])
    right = float((tested["label"] == tested["predicted_class"]).mean())
    measured = metrics(right, n_test=len(tested), test_set_sha256=sha256_of_test_set(tested))
    write_json(Path("reports/metrics.json"), measured)


def _write_reference(network: nn.Module, images: NDArray[np.uint8], found: NDArray[np.float64]) -> None:
    batches = [predict_with_features(network, images[start : start + 16], mean=MEAN, std=STD) for start in (0, 16)]
    measured = image_measures(images)
    reference = make_reference(
        classes=CLASSES,
        images=np.column_stack([measured[name] for name in MEASURES if name in measured]),
        features=np.concatenate([features for _, features in batches]),
        probabilities=found,
        patients=np.array([f"p{number}" for number in range(len(images))], object),
    )
    write_reference(Path("reports/evaluation") / REFERENCE_FILE, reference)


def _evaluated() -> dict[str, list[float]]:
    table = pd.read_csv("reports/evaluation/predictions.csv").set_index("image_id")
    return {str(name): list(row) for name, row in table[PROBABILITIES].iterrows()}


def _predicted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path, *options: str
) -> dict[str, list[float]]:
    capsys.readouterr()
    call(monkeypatch, predict.main, "--json", *options, str(images))
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {Path(line["path"]).stem: list(line["probabilities"].values()) for line in results}


def _scored(monkeypatch: pytest.MonkeyPatch, images: Path, output: str, *options: str) -> pd.DataFrame:
    call(monkeypatch, score.main, str(images), "--output", output, *options)
    return read_scores(Path(output))


def test_on_torch_evaluation_predict_score_and_mlflow_agree_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    expected = _evaluated()
    assert _predicted(monkeypatch, capsys, images) == expected
    one = images / "image05.png"
    assert _predicted(monkeypatch, capsys, one) == {"image05": expected["image05"]}  # alone as among others
    rows = _scored(monkeypatch, images, "scores")
    assert {Path(row.path).stem: [row[name] for name in PROBABILITIES] for _, row in rows.iterrows()} == expected
    names, files = zip(*((file.stem, file.read_bytes()) for file in sorted(images.iterdir())), strict=True)
    with served(versions.get_version("champion").number) as ask:
        assert ask is not None
        results = ask([*files])
    assert {
        name: [row[column] for column in PROBABILITIES] for name, row in zip(names, results, strict=True)
    } == expected
    flags = {
        Path(row.path).stem: (row.refer, None if pd.isna(row.warning) else row.warning) for _, row in rows.iterrows()
    }
    assert {name: (row["refer"], row["warning"]) for name, row in zip(names, results, strict=True)} == flags


def test_the_exported_network_agrees_within_its_bound_wherever_it_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    assert versions.get_version("champion").tags["runtime"].startswith("openvino")
    expected = _evaluated()
    results = _predicted(monkeypatch, capsys, images, "--engine", "openvino")
    assert results != expected  # another engine answers
    rows = _scored(monkeypatch, images, "scores", "--engine", "openvino")
    assert {Path(row.path).stem: [row[name] for name in PROBABILITIES] for _, row in rows.iterrows()} == results
    difference = np.abs(np.array([results[name] for name in expected]) - np.array(list(expected.values())))
    assert difference.max() <= BOUND
