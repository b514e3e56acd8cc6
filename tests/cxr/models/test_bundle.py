"""A bundle loads exactly as it was saved, or fails with a clear error."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cxr.common.errors import WeightsError
from cxr.imaging.preprocess import Preprocessing
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.bundle import ModelSpec, read_bundle, read_spec, write_bundle
from cxr.models.factory import build, merge_states
from cxr.models.forward import calibrated, classify, predict_logits, softmax_with_temperature
from cxr.models.modules import merge_outputs
from cxr.models.populations import Population
from tests.support.faults import fault

SPEC = ModelSpec(
    backbone="resnet50",
    head="linear",
    members=1,
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


def test_loaded_model_gives_the_same_logits(bundle: Path) -> None:
    torch.manual_seed(0)
    original = build("resnet50", 3).eval()
    model, spec = read_bundle(bundle)
    assert spec.preprocessing == SPEC.preprocessing
    assert spec.classes == SPEC.classes
    expected = predict_logits(original, IMAGES, mean=SPEC.mean, std=SPEC.std)
    assert np.array_equal(predict_logits(model, IMAGES, mean=spec.mean, std=spec.std), expected)


@fault("model", "the weights of a bundle are changed", "they are not loaded", "both digests")
def test_changed_weights_are_not_loaded(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match=r"was changed .*SHA-256"):
        read_bundle(bundle)


def test_weights_of_another_shape_are_rejected(bundle: Path) -> None:
    spec = json.loads((bundle / "model.json").read_text())
    spec["classes"] = ["normal", "viral"]
    (bundle / "model.json").write_text(json.dumps(spec))
    with pytest.raises(WeightsError, match="does not fit resnet50"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        read_bundle(bundle)


def test_incomplete_spec_is_rejected(bundle: Path) -> None:
    (bundle / "model.json").write_text('{"backbone": "resnet50"}')
    with pytest.raises(WeightsError, match=r"model\.json is not a model spec"):
        read_spec(bundle)


def add_field(bundle: Path, name: str, value: object) -> None:
    path = bundle / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


def test_bundle_of_release_0_4_0_loads(bundle: Path) -> None:
    before = read_spec(bundle)
    add_field(bundle, "views", [1.0])
    model, spec = read_bundle(bundle)
    assert spec == before
    assert not model.training


def test_bundle_of_a_later_format_is_rejected_in_one_line(bundle: Path) -> None:
    add_field(bundle, "format", 2)
    with pytest.raises(WeightsError, match=r"model\.json has format 2, written by a later release; .* format 1"):
        read_bundle(bundle)


@pytest.mark.parametrize("views", [[1.1, 1.0], [], None])
def test_bundle_with_magnified_views_is_rejected(bundle: Path, views: object) -> None:
    add_field(bundle, "views", views)
    with pytest.raises(WeightsError, match=r"has views .* only release 0\.4\.0"):
        read_spec(bundle)


def test_unknown_field_of_a_spec_is_rejected(bundle: Path) -> None:
    add_field(bundle, "later", 1)
    with pytest.raises(WeightsError, match="later"):
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


def test_bias_is_added_after_the_temperature() -> None:
    logits = np.array([[2.0, 0.0, -1.0]])
    probabilities = calibrated(logits, SPEC)
    expected = np.exp(logits / SPEC.temperature + np.array(SPEC.bias))
    assert probabilities == pytest.approx(expected / expected.sum())
    assert probabilities[0, 1] > softmax_with_temperature(logits, SPEC.temperature)[0, 1]


def test_loaded_ensemble_gives_the_same_logits(tmp_path: Path) -> None:
    spec = replace(SPEC, backbone="small_cnn", members=2)
    original = build("small_cnn", 3, members=2).eval()
    write_bundle(tmp_path, original.state_dict(), spec)
    model, read = read_bundle(tmp_path)
    assert (read.members, read.bias) == (2, SPEC.bias)
    names = load_file(tmp_path / "model.safetensors")
    assert all(name.startswith(("members.0.", "members.1.")) for name in names), "0.4.0 stores these names"
    expected = predict_logits(original, IMAGES, mean=SPEC.mean, std=SPEC.std)
    assert np.array_equal(predict_logits(model, IMAGES, mean=spec.mean, std=spec.std), expected)


def test_progress_counts_every_image(bundle: Path) -> None:
    model, spec = read_bundle(bundle)
    done: list[int] = []
    predict_logits(model, IMAGES, mean=spec.mean, std=spec.std, batch_size=2, progress=done.append)
    assert done == [2, 2, 1]


def test_a_population_counts_in_its_class_with_its_weight(tmp_path: Path) -> None:
    populations = (Population("late", "bacterial", 0.25),)
    torch.manual_seed(0)
    networks = [build("resnet50", 4).eval() for _ in range(2)]
    spec = replace(SPEC, members=2, populations=populations)
    write_bundle(tmp_path, merge_states([network.state_dict() for network in networks]), spec)
    model, loaded = read_bundle(tmp_path)
    assert loaded.populations == populations

    def answers(network: torch.nn.Module) -> np.ndarray:
        return softmax_with_temperature(predict_logits(network, IMAGES, mean=SPEC.mean, std=SPEC.std), 1.0)

    weighted = [answers(network) * [1, 1, 1, 0.25] for network in networks]
    of_class = [values[:, :3] + values[:, 3:] * [0, 0, 1] for values in weighted]
    expected = np.mean([values / values.sum(axis=1, keepdims=True) for values in of_class], axis=0)
    np.testing.assert_allclose(answers(model), expected, atol=1e-6)


def test_a_population_of_weight_0_is_left_out_of_the_answer() -> None:
    outputs = torch.tensor([[0.0, 1.0, 0.0, 9.0]])
    merged = merge_outputs(outputs, SPEC.classes, (Population("late", "bacterial", 0.0),))
    np.testing.assert_allclose(merged.softmax(1), outputs[:, :3].softmax(1), atol=2e-3)


def test_a_bundle_from_before_populations_loads(bundle: Path) -> None:
    spec = json.loads((bundle / "model.json").read_text())
    del spec["populations"]
    (bundle / "model.json").write_text(json.dumps(spec))
    assert read_spec(bundle).populations == ()
