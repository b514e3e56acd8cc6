"""Evaluating the champion on another test set: fairly, with its own preprocessing, and only once."""

import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from cxr.common.errors import DataError, PromotionHeldError
from cxr.common.files import write_json
from cxr.dataset.image_array import write_index
from cxr.dataset.manifest import MANIFEST_COLUMNS, write_table
from cxr.dataset.shards import write_shards
from cxr.imaging.decode import image_from_bytes
from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.models.forward import classify
from cxr.registry import runs, versions
from cxr.registry.champion import aliases
from cxr.registry.evaluation_store import evaluation_of, keep_training_images
from cxr.registry.registration import register_version
from tasks import reevaluate
from tests.support.projects.registry_project import CLASSES, call, enter_project, spec, write_split

N_IMAGES = 12


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


@pytest.fixture
def pixels() -> dict[str, bytes]:
    """The present raw images and split: twelve images that test, one that trains, one that validates."""
    rng = np.random.default_rng(3)
    made = [cv2.imencode(".png", rng.integers(0, 255, (60, 50), np.uint8))[1].tobytes() for _ in range(N_IMAGES)]
    pixels = {f"images/image{n}.png": image for n, image in enumerate(made)}
    manifest = pd.DataFrame(
        {
            "image_id": [f"image{n}" for n in range(N_IMAGES)],
            "path": list(pixels),
            "label": [CLASSES[n % 3] for n in range(N_IMAGES)],
            "patient_id": [f"patient-image{n}" for n in range(N_IMAGES)],
            "source": "kermany",
        }
    )
    for column, kind in MANIFEST_COLUMNS.items():
        if column not in manifest:
            manifest[column] = "x" if kind == "str" else 1
    Path("data/raw").mkdir(parents=True)
    write_table(manifest, MANIFEST_COLUMNS, Path("data/raw/manifest.parquet"))
    list(
        write_shards(
            Path("data/raw/images"), {name: len(image) for name, image in pixels.items()}, pixels.__getitem__, workers=1
        )
    )
    tested = [(f"image{n}", CLASSES[n % 3]) for n in range(N_IMAGES)]
    write_split(tested, manifest=Path("data/raw/manifest.parquet"))
    return pixels


def champion(**seen: list[str]) -> versions.Version:
    """Register a small network with random weights, trained on images of those ids and patients; make it champion."""
    torch.manual_seed(1)
    written = write_bundle(
        Path("made"), build("small_cnn", 3).state_dict(), spec(backbone="small_cnn", image_size_px=32)
    )
    run_id = runs.start_run(run_id=None, name="n", tags={})
    lineage = keep_training_images(run_id, pd.DataFrame({**seen, "split": "train"})) if seen else {}
    version, _ = register_version(Path("made"), written, run_id=run_id, lineage=lineage, evaluation={})
    aliases.move_champion(version.number, instead_of="", kind="promote", approved_by="ann", reason="test")
    return version


def test_the_champion_is_evaluated_with_its_own_preprocessing_and_only_once(
    pixels: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version = champion(image_id=["elsewhere"], patient_id=["patient-elsewhere"])
    assert evaluation_of(version).metrics is None
    call(monkeypatch, reevaluate.main)
    version = versions.get_version("champion")
    test_set = pd.read_json("data/split/split.json", typ="series")["test_set_sha256"]
    found = evaluation_of(version, test_set)
    assert found.problems() == []
    assert found.test_set_sha256 == test_set
    assert found.metric("ece") is not None
    assert found.images is not None
    asked = spec(backbone="small_cnn", image_size_px=32)
    images = np.stack([image_from_bytes(image, asked.preprocessing, name=name) for name, image in pixels.items()])
    model = build("small_cnn", 3)
    torch.manual_seed(1)
    model.load_state_dict(build("small_cnn", 3).state_dict())
    expected = classify(model.eval(), asked, images)
    columns = [f"p_{name}" for name in CLASSES]
    np.testing.assert_allclose(
        found.images.sort_values("image_id", key=lambda ids: ids.str[5:].astype(int))[columns], expected, atol=1e-5
    )
    caplog.set_level(logging.INFO)
    call(monkeypatch, reevaluate.main)
    assert any(f"{test_set[:12]} already" in message for message in caplog.messages)
    assert versions.get_version("champion") == version


def test_images_that_are_preprocessed_alike_are_not_preprocessed_again(
    pixels: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    champion(image_id=["elsewhere"], patient_id=["patient-elsewhere"])
    own = spec(image_size_px=32).preprocessing
    Path("data/images").mkdir()
    pixels = np.stack([image_from_bytes(image, own, name=name) for name, image in pixels.items()])
    # Not the images of data/raw, so that the answers say which were used.
    np.save("data/images/images.npy", pixels[:1].repeat(len(pixels), axis=0))
    for preprocessing, answers in ((replace(own, border_crop=0.1), N_IMAGES), (own, 1)):
        write_index(Path("data/images"), [f"image{n}" for n in range(N_IMAGES)], preprocessing)
        call(monkeypatch, reevaluate.main)
        version = versions.get_version("champion")
        images = evaluation_of(version, pd.read_json("data/split/split.json", typ="series")["test_set_sha256"]).images
        assert images is not None
        assert images["p_normal"].nunique() == answers
        for tag in version.tags:
            if tag.startswith("evaluation_artifacts"):
                versions.tag_version(version.number, {tag: ""})  # so that it is evaluated again


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (
            {
                "image_id": ["image0", "image1", "x"],
                "patient_id": ["patient-image0", "patient-image1", "patient-image2"],
            },
            "on 2 of the 12 test images, and on other images of the patients of 1 more",
        ),
        (
            {},
            "the training images of version 1 are not known",
        ),
    ],
)
@pytest.mark.usefixtures("pixels")
def test_a_champion_is_not_evaluated_on_images_it_may_have_seen(
    seen: dict[str, list[str]], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion(**seen)
    before = versions.get_version("1")
    with pytest.raises(PromotionHeldError, match=reason):
        call(monkeypatch, reevaluate.main)
    assert versions.get_version("1") == before


@pytest.mark.usefixtures("pixels")
def test_a_champion_of_other_classes_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    champion(image_id=["elsewhere"], patient_id=["patient-elsewhere"])
    split = pd.read_json("data/split/split.json", typ="series").to_dict()
    write_json(Path("data/split/split.json"), split | {"classes": ["normal", "viral"]})
    with pytest.raises(PromotionHeldError, match="normal, viral, bacterial and the present split normal, viral"):
        call(monkeypatch, reevaluate.main)


def test_without_a_split_or_its_images_the_command_says_what_to_run(
    pixels: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    champion(image_id=["elsewhere"], patient_id=["patient-elsewhere"])
    assert len(pixels) == N_IMAGES
    write_split([("image0", "normal"), ("gone", "viral")])
    with pytest.raises(DataError, match=r"manifest\.parquet is damaged"):
        call(monkeypatch, reevaluate.main)
    Path("data/split/split.json").unlink()
    with pytest.raises(DataError, match=r"split\.json is missing"):
        call(monkeypatch, reevaluate.main)


@pytest.mark.usefixtures("pixels")
def test_without_a_champion_there_is_nothing_to_evaluate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    call(monkeypatch, reevaluate.main)
    assert "no champion yet" in caplog.text


@pytest.mark.usefixtures("pixels")
def test_a_champion_of_the_synthetic_sample_is_not_evaluated_on_real_images(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    champion(image_id=["elsewhere"], patient_id=["patient-elsewhere"])
    versions.tag_version("1", {"synthetic": "true"})
    before = versions.get_version("1")
    split = pd.read_json("data/split/split.json", typ="series").to_dict()
    write_json(Path("data/split/split.json"), split | {"synthetic": False})
    caplog.set_level(logging.INFO)
    call(monkeypatch, reevaluate.main)
    assert "version 1 was trained on the synthetic sample" in caplog.text
    assert versions.get_version("1") == before
