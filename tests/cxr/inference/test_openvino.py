"""The exported network agrees with torch, is used only where it was accepted, and loads without torch."""

import logging
import os
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cxr.common.cli import add_engine_argument
from cxr.common.errors import ParamsError, WeightsError
from cxr.common.files import read_json, write_json
from cxr.inference.classifier import load_classifier
from cxr.inference.openvino import runtime as openvino
from cxr.inference.openvino.agreement import Agreement, ValidationAnswers, accept_runtime, agreement_of, tags_of
from cxr.inference.openvino.export import export_runtime
from cxr.inference.openvino.runtime import GRAPH_FILE, GRAPH_WEIGHTS_FILE, RUNTIME_FILE, Runtime, load_runtime
from cxr.models.bundle import ModelSpec, read_bundle, write_bundle
from cxr.models.factory import build
from cxr.models.forward import classify, predict_with_features
from cxr.models.populations import Population
from tests.support.logs import own_messages
from tests.support.project import PROJECT
from tests.support.projects.registry_project import spec

WIDE, NONE = Agreement(0.05, 0.2, 0.2, 0.2), Agreement(0.0, 0.0, 0.0, 0.0)
IMAGES = np.random.default_rng(3).integers(0, 255, (20, 64, 64), np.uint8)


def network(described: ModelSpec) -> nn.Module:
    torch.manual_seed(0)
    return build(described.backbone, 3, members=described.members).eval()


def validation(model: nn.Module, described: ModelSpec) -> ValidationAnswers:
    rows = np.arange(3, 20)
    found = classify(model, described, IMAGES[rows])
    return ValidationAnswers(IMAGES, rows, np.arange(len(rows)) % 3, found)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with an accepted export."""
    folder, described = tmp_path_factory.mktemp("bundle"), spec(backbone="small_cnn")
    model = network(described)
    write_bundle(folder, model.state_dict(), described)
    export_runtime(model, described, folder)
    accept_runtime(folder, described, validation(model, described), WIDE)
    return folder


@pytest.mark.parametrize("members", [1, 2])
def test_scores_and_features_are_those_of_torch(tmp_path: Path, members: int) -> None:
    described = replace(spec(backbone="small_cnn"), members=members)
    model = network(described)
    export_runtime(model, described, tmp_path)
    exported = Runtime(tmp_path, "f32")
    for images in (IMAGES[:1], IMAGES[:7]):
        for ours, torchs in zip(
            exported.logits_and_features(images),
            predict_with_features(model, images, mean=described.mean, std=described.std),
            strict=True,
        ):
            np.testing.assert_allclose(ours, torchs, atol=5e-3 * np.abs(torchs).max())


def test_populations_are_merged_in_the_export_too(tmp_path: Path) -> None:
    described = replace(spec(backbone="small_cnn"), populations=(Population("late", "bacterial", 0.02),))
    torch.manual_seed(0)
    write_bundle(tmp_path, build("small_cnn", 4).state_dict(), described)
    model, _ = read_bundle(tmp_path)
    export_runtime(model, described, tmp_path)
    exported = Runtime(tmp_path, "f32").logits_and_features(IMAGES[:3])[0]
    expected = predict_with_features(model, IMAGES[:3], mean=described.mean, std=described.std)[0]
    np.testing.assert_allclose(exported, expected, atol=5e-3 * np.abs(expected).max())


def test_openvino_answers_from_the_export_without_torch_and_telemetry_and_torch_is_the_default(
    bundle: Path, tmp_path: Path
) -> None:
    exported, plain = load_classifier(bundle, number="1", engine="openvino"), load_classifier(bundle, number="1")
    assert (exported.engine, plain.engine) == (f"openvino {openvino.native_precisions()[0]}", "torch")
    for one, other in zip(exported.answer(IMAGES), plain.answer(IMAGES), strict=True):
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=0.05)
    script = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from cxr.inference.classifier import load_classifier\n"
        f"classifier = load_classifier(Path({str(bundle)!r}), number='1', engine='openvino')\n"
        "classifier.answer(np.zeros((1, 64, 64), np.uint8))\n"
        "print({'torch', 'mlflow', 'sklearn'} & set(sys.modules))"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
    assert not (tmp_path / "intel").exists(), "OpenVINO's telemetry has made itself an identity"


def test_without_torch_the_export_answers_and_what_needs_torch_says_so(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxr.common.engines.find_spec", lambda _: None)
    exported = load_classifier(bundle, number="1", engine="openvino")
    assert len(exported.answer(IMAGES[:1])) == 1
    with pytest.raises(ParamsError, match="torch is not installed"):
        exported.heat(IMAGES[:1], ["viral"])
    with pytest.raises(ParamsError, match="torch is not installed"):
        load_classifier(bundle, number="1", engine="torch")
    parser = ArgumentParser()
    add_engine_argument(parser, "torch")
    assert parser.parse_args([]).engine == "openvino"


def test_an_export_out_of_bounds_is_not_used_and_the_tags_say_so(tmp_path: Path) -> None:
    described = spec(backbone="small_cnn")
    model = network(described)
    write_bundle(tmp_path, model.state_dict(), described)
    export_runtime(model, described, tmp_path)
    found = accept_runtime(tmp_path, described, validation(model, described), NONE)
    assert not (tmp_path / RUNTIME_FILE).exists()
    assert tags_of(found, NONE)["runtime"] == "none: not within the bounds"
    assert tags_of(found, WIDE)["runtime"].startswith("openvino")


def test_without_an_accepted_export_torch_answers_and_says_so_once(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    with caplog.at_level(logging.WARNING):
        classifier = load_classifier(tmp_path, number="7", engine="openvino")
        classifier.answer(IMAGES)
    assert classifier.engine == "torch"
    (message,) = own_messages(caplog)
    assert "torch answers" in message


def test_only_a_precision_that_agreed_is_used(bundle: Path, tmp_path: Path) -> None:
    for path in bundle.glob("runtime.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    described = read_json(tmp_path / RUNTIME_FILE)
    write_json(tmp_path / RUNTIME_FILE, described | {"agrees_in": ["f32"]})
    loaded = load_runtime(tmp_path)
    assert loaded is not None
    assert loaded.name == "openvino f32"
    write_json(tmp_path / RUNTIME_FILE, described | {"agrees_in": []})
    assert load_runtime(tmp_path) is None


@pytest.mark.parametrize("name", [GRAPH_FILE, GRAPH_WEIGHTS_FILE, RUNTIME_FILE])
def test_damaged_files_are_named(bundle: Path, tmp_path: Path, name: str) -> None:
    for path in bundle.glob("runtime.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(WeightsError, match="fetch the model again"):
        load_runtime(tmp_path)


def test_a_network_that_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    class Resampling(nn.Module):
        """Resamples its input by an affine grid, an operation that OpenVINO lacks."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grid = nn.functional.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)
            return nn.functional.grid_sample(x, grid, align_corners=False).mean(dim=(2, 3))

    level = logging.root.level
    with pytest.raises(WeightsError, match="affine_grid"):
        export_runtime(nn.Sequential(Resampling(), nn.Linear(3, 3)).eval(), spec(backbone="small_cnn"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert logging.root.level == level  # else the process logs no warning from here on


def test_agreement_counts_what_differs_and_every_figure_must_be_within() -> None:
    torchs = np.array([[0.8, 0.1, 0.1], [0.4, 0.35, 0.25], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]])
    ours = torchs.copy()
    ours[1] = [0.35, 0.4, 0.25]
    found = agreement_of(ours, torchs, np.array([0, 0, 2, 1]), spec())
    assert (found.probability, found.changed_share, found.accuracy) == pytest.approx((0.05, 0.25, 0.25))
    assert found.macro_f1 > 0
    assert found.within(Agreement(1, 1, 1, 1))
    for name in ("probability", "changed_share", "accuracy", "macro_f1"):
        assert not found.within(Agreement(**{**dict.fromkeys(vars(found), 1.0), name: 0.01}))
