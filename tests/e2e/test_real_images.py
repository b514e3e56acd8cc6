"""The whole loop on a handful of real images."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.images.real_data import RAW, needs_real_images
from tests.support.projects.clones import make_clone

IMAGES_PER_CLASS = 30
FOLDERS = {
    "normal": ("NORMAL", "*IM-*"),
    "bacterial": ("PNEUMONIA", "person*_bacteria_*"),
    "viral": ("PNEUMONIA", "person*_virus_*"),
}
QUICK = {
    "preprocess.image_size_px": 64,
    "train.epochs": 1,
    "split.share_tolerance": 0.2,
    "evaluate.bootstrap_resamples": 100,
    "evaluate.gradcam_per_class": 1,
}

pytestmark = [pytest.mark.slow, needs_real_images]


def copy_some(target: Path) -> None:
    """Copy a few images of each class of the first set, few enough to train on in seconds."""
    for folder, pattern in FOLDERS.values():
        part = Path("chest_xray") / "train" / folder
        (target / part).mkdir(parents=True, exist_ok=True)
        for image in sorted((RAW / part).glob(pattern))[:IMAGES_PER_CLASS]:
            shutil.copy(image, target / part)


def test_real_images_go_from_folder_to_a_registered_model(tmp_path: Path) -> None:
    copy_some(tmp_path / "images")
    project = make_clone(
        tmp_path / "clone",
        f"--data={tmp_path / 'images'}",
        *(f"--set={name}={value}" for name, value in QUICK.items()),
    )
    project.run("dvc", "repro")
    counts = json.loads((project.root / "data" / "raw" / "ingest.json").read_text())
    metrics = json.loads((project.root / "reports" / "metrics.json").read_text())
    assert counts["total"] == 3 * IMAGES_PER_CLASS
    assert counts["synthetic"] is metrics["synthetic"] is False
    assert metrics["n_test"] > 0
    assert json.loads((project.root / "reports" / "registration.json").read_text())["version"] == "1"


def test_a_hospitals_own_folder_goes_to_a_registered_model_with_its_profile(tmp_path: Path) -> None:
    folder, rows = tmp_path / "ward", ["path,label"]
    folder.mkdir()
    for label, (name, pattern) in FOLDERS.items():
        for image in sorted((RAW / "chest_xray" / "train" / name).glob(pattern))[:100]:
            shutil.copy(image, folder)
            rows.append(f"{image.name},{label}")
    (folder / "labels.csv").write_text("\n".join(rows), "utf-8")
    project = make_clone(
        tmp_path / "clone",
        "--profile=profiles/real.yaml",
        "--profile=profiles/hospital.yaml",
        f"--data={folder}",
        "--weights=none",
        *(f"--set={name}={value}" for name, value in (QUICK | {"train.members": 1, "train.frozen": []}).items()),
        environment={"CXR_PATIENT_KEY": "k" * 32},
    )
    project.run("dvc", "repro")
    assert json.loads((project.root / "reports" / "registration.json").read_text())["version"] == "1"
