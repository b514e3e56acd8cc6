"""A model comes back as it was saved, or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cxr.common.errors import WeightsError
from cxr.imaging.preprocess import Preprocessing
from cxr.models.bundle import ModelSpec, read_bundle, read_spec, write_bundle
from cxr.models.factory import IMAGENET_MEAN, IMAGENET_STD, build
from cxr.models.forward import calibrated, classify, predict_logits, softmax_with_temperature

SPEC = ModelSpec(
    backbone="resnet50",
    head="linear",
    members=1,
    views=(1.0,),
    classes=("normal", "viral", "bacterial"),
    preprocessing=Preprocessing(32, "stretch", "clahe", 2.0, 8, 10_000),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    temperature=1.7,
    bias=(0.0, 0.4, -0.4),
    synthetic=True,
)
IMAGES = np.random.default_rng(0).integers(0, 255, (5, 32, 32), np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    write_bundle(folder, build("resnet50", 3).state_dict(), SPEC)
    return folder


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_saved_model_answers_as_before(bundle: Path) -> None:
    torch.manual_seed(0)
    original = build("resnet50", 3).eval()
    model, spec = read_bundle(bundle)
    assert spec.preprocessing == SPEC.preprocessing
    assert spec.classes == SPEC.classes
    expected = predict_logits(original, IMAGES, mean=SPEC.mean, std=SPEC.std)
    assert np.array_equal(predict_logits(model, IMAGES, mean=spec.mean, std=spec.std), expected)


def test_changed_weights_are_not_loaded(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match=r"has been changed: its SHA-256 is .* it was not loaded"):
        read_bundle(bundle)


def test_weights_of_another_shape_are_refused(bundle: Path) -> None:
    spec = json.loads((bundle / "model.json").read_text())
    spec["classes"] = ["normal", "viral"]
    (bundle / "model.json").write_text(json.dumps(spec))
    with pytest.raises(WeightsError, match="does not fit resnet50 with 2 classes"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_missing_half_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} is missing; a model is the pair"):
        read_bundle(bundle)


def test_description_that_is_none_is_refused(bundle: Path) -> None:
    (bundle / "model.json").write_text('{"backbone": "resnet50"}')
    with pytest.raises(WeightsError, match=r"model\.json is not a model's description"):
        read_spec(bundle)


def test_probabilities_sum_to_one_and_temperature_softens(bundle: Path) -> None:
    model, spec = read_bundle(bundle)
    probabilities = classify(model, spec, IMAGES)
    assert probabilities.shape == (5, 3)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    logits = np.array([[2.0, 0.0, -1.0]])
    hot, cold = softmax_with_temperature(logits, 4.0), softmax_with_temperature(logits, 1.0)
    assert hot.max() < cold.max()
    assert hot.argmax() == cold.argmax()


def test_bias_moves_the_probabilities_after_the_temperature() -> None:
    logits = np.array([[2.0, 0.0, -1.0]])
    shares = calibrated(logits, SPEC)
    expected = np.exp(logits / SPEC.temperature + np.array(SPEC.bias))
    assert shares == pytest.approx(expected / expected.sum())
    assert shares[0, 1] > softmax_with_temperature(logits, SPEC.temperature)[0, 1]


def test_a_ensemble_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    spec = replace(SPEC, backbone="small_cnn", members=2, views=(1.2, 1.0))
    original = build("small_cnn", 3, members=2, views=(1.2, 1.0)).eval()
    write_bundle(tmp_path, original.state_dict(), spec)
    model, read = read_bundle(tmp_path)
    assert (read.members, read.views, read.bias) == (2, (1.2, 1.0), SPEC.bias)
    expected = predict_logits(original, IMAGES, mean=SPEC.mean, std=SPEC.std)
    assert np.array_equal(predict_logits(model, IMAGES, mean=spec.mean, std=spec.std), expected)


def test_progress_counts_every_image(bundle: Path) -> None:
    model, spec = read_bundle(bundle)
    done: list[int] = []
    predict_logits(model, IMAGES, mean=spec.mean, std=spec.std, batch_size=2, progress=done.append)
    assert done == [2, 2, 1]
