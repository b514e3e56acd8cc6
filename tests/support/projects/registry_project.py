"""A project folder with its own tracking store and an evaluated model, for tests of the registry's commands.

The weights are one small tensor: registering never loads them. Making an empty store runs MLflow's migrations for
seconds, so it is made once a session and copied.
"""

import csv
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cxr.common.files import write_json
from cxr.dataset.manifest import sha256_of_test_set
from cxr.imaging.preprocess import Preprocessing
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.bundle import ModelSpec, write_bundle
from cxr.models.reference import MEASURES, REFERENCE_FILE, Reference, make_reference, write_reference
from cxr.registry import tracking_store, versions
from tests.support.project import PROJECT
from tests.support.projects.stage_files import training_record, write_curves, write_split_files

CLASSES = ("normal", "viral", "bacterial")
N_TEST = 30


def enter_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: pytest.TempPathFactory) -> None:
    """Make `tmp_path` the current directory, with params.yaml, some code and an empty store below mlruns."""
    template = factory.getbasetemp() / "empty-store"
    if not template.exists():
        monkeypatch.setenv(tracking_store.FOLDER_VARIABLE, str(template))
        tracking_store.client().search_experiments()
    shutil.copytree(template, tmp_path / "mlruns")
    monkeypatch.delenv(tracking_store.STORE_VARIABLE, raising=False)
    # MLflow caches a connection for each address: a relative one would lead to another test's store.
    monkeypatch.setenv(tracking_store.FOLDER_VARIABLE, str(tmp_path / "mlruns"))
    monkeypatch.chdir(tmp_path)
    shutil.copy2(PROJECT / "params.yaml", tmp_path)
    for name in ("dvc.lock", "uv.lock"):
        (tmp_path / name).write_text("schema: '2.0'\n")
    (tmp_path / "cxr").mkdir()
    (tmp_path / "cxr" / "code.py").write_text("x = 1\n")


def write_model(
    *, seed: int = 1, wrong: int = 0, images: int = N_TEST, synthetic: bool = True, of_class: str = ""
) -> None:
    """Write the outputs of training, evaluation and split; `wrong` test images are predicted as the next class.

    These are the first ones, or the first ones `of_class` where it is given. Each image has its own patient. The one
    training and the one validation image do not depend on the test images.
    """
    missed = [i for i in range(images) if of_class in {"", CLASSES[i % 3]}][:wrong]
    rows = [(f"image{i}", CLASSES[i % 3], CLASSES[(i + (i in missed)) % 3]) for i in range(images)]
    tested = pd.DataFrame({"image_id": [row[0] for row in rows], "label": [row[1] for row in rows], "split": "test"})
    digest = sha256_of_test_set(tested)
    write_bundle(Path("models/trained"), {"w": torch.full((2,), float(seed))}, spec(synthetic=synthetic))
    write_json(
        Path("models/trained/training.json"),
        training_record(run_id=f"{seed:032x}", params={"epochs": 2}),
    )
    write_curves(Path("models/trained/curves.csv"))
    write_split([(name, label) for name, label, _ in rows])
    write_json(Path("reports/metrics.json"), metrics(1 - wrong / images, n_test=images, test_set_sha256=digest))
    Path("reports/report.html").write_text("<!doctype html><p>report</p></html>")
    fitted = {"temperature": 1.5, "bias": [0.0, 0.25, -0.25], "refer_below": 0.625}
    write_json(Path("reports/evaluation/calibration.json"), fitted)
    Path("reports/evaluation/model_card.md").write_text("# Model card\n\n## Factors\n")
    write_predictions(Path("reports/evaluation/predictions.csv"), rows)
    write_reference(Path("reports/evaluation") / REFERENCE_FILE, reference())


def spec(
    *, synthetic: bool = True, image_size_px: int = 64, backbone: str = "resnet50", head: str = "linear"
) -> ModelSpec:
    """Return the description of a model of three classes."""
    preprocessing = Preprocessing(image_size_px, "stretch", "clahe", 2.0, 8, 10**7)
    return ModelSpec(
        backbone=backbone,
        head=head,
        members=1,
        classes=CLASSES,
        preprocessing=preprocessing,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        temperature=1.0,
        bias=(0.0,) * len(CLASSES),
        synthetic=synthetic,
    )


def reference(images: int = 60) -> Reference:
    """Return reference statistics of images, two a patient, with four features each."""
    generator = np.random.default_rng(0)
    return make_reference(
        classes=CLASSES,
        images=generator.random((images, len(MEASURES) - 1), np.float32),
        features=generator.random((images, 4), np.float32),
        probabilities=generator.dirichlet(np.ones(len(CLASSES)), images),
        patients=np.array([f"patient-{i // 2}" for i in range(images)], object),
    )


def metrics(accuracy: float, *, n_test: int = N_TEST, test_set_sha256: str = "") -> dict[str, Any]:
    """Return the part of metrics.json that the gate reads."""
    return {
        "accuracy": accuracy,
        "macro_f1": accuracy,
        "macro_auroc": 0.99,
        "calibration": {"ece": 0.05},
        "classes": list(CLASSES),
        "n_test": n_test,
        "test_set_sha256": test_set_sha256,
    }


def write_split(test_images: list[tuple[str, str]], *, manifest: Path | None = None, **changed: Any) -> None:
    """Write data/split from (image_id, label) of the test images, with one training and one validation image."""
    rows = [("trained", "train", "normal"), ("other", "validation", "normal")]
    rows += [(name, "test", label) for name, label in test_images]
    table = pd.DataFrame(rows, columns=["image_id", "split", "label"])
    table["patient_id"] = "patient-" + table["image_id"]
    write_split_files(Path("data/split"), table, manifest=manifest, **changed)


def write_predictions(path: Path, rows: list[tuple[str, str, str]]) -> None:
    """Write predictions.csv from (image_id, label, predicted class); the first row is a validation image."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        probabilities = [f"p_{name}" for name in CLASSES]
        writer.writerow(("image_id", "split", "source", "patient_id", "label", "predicted_class", *probabilities))
        for split, (name, label, called) in [
            ("validation", ("other", "normal", "viral")),
            *(("test", row) for row in rows),
        ]:
            sure = [0.9 if each == called else 0.05 for each in CLASSES]
            writer.writerow((name, split, "kermany", f"patient-{name}", label, called, *sure))


def register() -> versions.Version:
    """Register the model of the current directory and return its version."""
    from cxr.common.files import read_json
    from cxr.common.params import read_params
    from tasks.register import register as step

    params = read_params(Path("params.yaml"))
    step(params.register_, params.paths)
    return versions.get_version(read_json(Path("reports/registration.json"))["version"])


def call(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *arguments: str) -> None:
    """Call a command's main with arguments, as `python -m` would."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    main()


def artifacts() -> list[Path]:
    """Return every file in the store but the database."""
    return [path for path in Path(os.environ[tracking_store.FOLDER_VARIABLE], "artifacts").rglob("*") if path.is_file()]
