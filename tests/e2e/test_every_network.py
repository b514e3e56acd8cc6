"""Every network, and one with an SVM head, is trained, registered, loaded by its alias and predicts."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cxr.common.params import TrainParams, read_params
from cxr.models.backbones import ARCHITECTURES
from cxr.models.bundle import read_bundle, write_bundle
from cxr.models.factory import build, smallest_image_px
from cxr.models.forward import classify, predict_logits
from cxr.models.grad_cam import grad_cam_of_images
from cxr.registry import runs, versions
from cxr.registry.champion import aliases
from cxr.registry.registration import register_version
from cxr.training.data import TrainingData
from cxr.training.loop import fit
from cxr.training.svm import train_svm
from tests.support.projects.registry_project import CLASSES, enter_project, spec

pytestmark = pytest.mark.slow

QUIET = SimpleNamespace(on_batch=lambda _images: None, on_epoch=lambda _epoch: None)


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


def images(size: int) -> TrainingData:
    rows = np.arange(9)
    pixels = np.random.default_rng(0).integers(0, 255, (9, size, size), np.uint8)
    return TrainingData(pixels, rows % 3, rows[:6], rows[6:], CLASSES)


def config(backbone: str, head: str) -> TrainParams:
    """One epoch of two steps. Only the head of a VGG learns: the optimizer state of all of it would take a gigabyte."""
    quick = {"epochs": 1, "batch_size": 3, "warmup_epochs": 0, "head_only_epochs": int(backbone.startswith("vgg"))}
    settings = {"weights": "none", "frozen": [], "device": "cpu", "precision": "fp32", "compile": False}
    values = read_params(Path("params.yaml")).train.model_dump() | quick | settings
    return TrainParams.model_validate(values | {"backbone": backbone, "head": head})


@pytest.mark.parametrize(
    ("backbone", "head"), [*((name, "linear") for name in sorted(ARCHITECTURES)), ("mobilenet_v2", "svm")]
)
def test_network_trains_and_predicts_through_the_registry(backbone: str, head: str) -> None:
    data, settings = images(max(smallest_image_px(backbone), 64)), config(backbone, head)
    if head == "svm":
        trained = train_svm(data, settings, listener=QUIET)
    else:
        trained = fit(data, settings, checkpoints=Path("checkpoints"), listener=QUIET)
        shutil.rmtree("checkpoints")
    described = spec(backbone=backbone, head=head, image_size_px=data.images.shape[1])
    written = write_bundle(Path("made"), trained.state, described)
    run_id = runs.start_run(run_id=None, name=backbone, tags={})
    version, _ = register_version(Path("made"), written, run_id=run_id, lineage={}, evaluation={})
    aliases.move_champion(version.number, instead_of="", kind="promote", approved_by="ann", reason="test")
    shutil.rmtree("made")
    model, read = read_bundle(versions.fetch_bundle(versions.get_version("champion")))
    trained_network = build(backbone, len(CLASSES), head=head).eval()
    trained_network.load_state_dict(trained.state)
    expected = predict_logits(trained_network, data.images, mean=read.mean, std=read.std)
    np.testing.assert_allclose(predict_logits(model, data.images, mean=read.mean, std=read.std), expected, atol=1e-5)
    assert classify(model, read, data.images).sum(axis=1) == pytest.approx(1)
    heat = grad_cam_of_images(model, data.images[:1], np.array([0]), mean=read.mean, std=read.std)
    assert heat.shape == data.images[:1].shape
    shutil.rmtree("mlruns/artifacts")  # half a gigabyte of a VGG
