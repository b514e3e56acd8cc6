"""A support vector machine fitted by scikit-learn gives the same scores in torch, also after loading its bundle."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

from cxr.common.errors import DataError, WeightsError
from cxr.models.bundle import read_bundle, write_bundle
from cxr.models.forward import predict_logits
from cxr.models.grad_cam import grad_cam
from cxr.models.modules import SvmHead
from cxr.training.data import TrainingData
from cxr.training.results import Epoch
from cxr.training.svm import fit_svm, train_svm
from tests.support.logs import own_messages
from tests.support.projects.registry_project import spec

CLASSES = ("normal", "viral", "bacterial")


class Counter:
    """A listener that counts."""

    def __init__(self) -> None:
        self.images, self.epochs = 0, list[Epoch]()

    def on_batch(self, images: int) -> None:
        self.images += images

    def on_epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)


def clouds(n_classes: int, *, per_class: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features of overlapping clouds, with one constant column, and shuffled labels."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(7).normal(0, 1.5, (n_classes, 12))
    labels = rng.permutation(np.repeat(np.arange(n_classes), per_class))
    found = (5 + 3 * (middles[labels] + rng.normal(0, 1.5, (len(labels), 12)))).astype(np.float32)
    found[:, 4] = 2
    return found, labels


def images(per_class: int = 8) -> TrainingData:
    """Plain images, horizontal and vertical stripes."""
    rng = np.random.default_rng(0)
    stripes = np.tile([[0.0], [120.0]], (32, 64))
    patterns = (np.full((64, 64), 60.0), stripes, stripes.T)
    pixels = np.stack([pattern + rng.normal(60, 20, (64, 64)) for pattern in patterns for _ in range(per_class)])
    rows = np.arange(len(pixels))
    held = rows % 4 == 0
    return TrainingData(pixels.clip(0, 255).astype(np.uint8), rows // per_class, rows[~held], rows[held], CLASSES)


def config(backbone: str = "small_cnn") -> SimpleNamespace:
    svm = SimpleNamespace(kernels=["linear", "rbf"], c=[0.1, 1.0])
    return SimpleNamespace(backbone=backbone, weights="none", svm=svm, seed=1, device="cpu", precision="fp32")


def head_of(state: dict[str, torch.Tensor], n_classes: int) -> SvmHead:
    head = SvmHead(n_classes)
    head.load_state_dict(state)
    return head


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_scores_and_classes_are_those_of_scikit_learn(n_classes: int, kernel: str) -> None:
    (seen, labels), (fresh, _) = clouds(n_classes), clouds(n_classes, seed=1)
    state, summary = fit_svm(seen, labels, seen, labels, kernels=[kernel], costs=[1.0])
    mean, scale = seen.mean(axis=0), seen.std(axis=0)
    scale[scale == 0] = 1
    reference = SVC(kernel=kernel, gamma="scale", class_weight="balanced", break_ties=True)
    reference.fit((seen - mean) / scale, labels)
    expected = reference.decision_function((fresh - mean) / scale)
    expected = np.stack([-expected, expected], axis=1) if n_classes == 2 else expected
    scores = head_of(state, n_classes)(torch.from_numpy(fresh)).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.array_equal(scores.argmax(axis=1), reference.predict((fresh - mean) / scale))
    assert (summary.kernel, summary.n_vectors) == (kernel, len(reference.support_))


def test_the_kernel_is_chosen_on_the_validation_images() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(0, 1, (200, 2)).astype(np.float32)
    labels = (np.linalg.norm(points, axis=1) > 1.2).astype(np.int64)  # a ring about a disc, not linearly separable
    halves = (points[:100], labels[:100], points[100:], labels[100:])
    assert fit_svm(*halves, kernels=["linear", "rbf"], costs=[1.0])[1].kernel == "rbf"
    assert fit_svm(*halves, kernels=["linear"], costs=[1.0])[1].validation_macro_f1 < 0.8


def test_network_with_svm_head_learns_and_loads_from_its_bundle(tmp_path: Path) -> None:
    data, counter = images(), Counter()
    trained = train_svm(data, config(), counter)
    assert counter.images == len(data.images)
    assert tuple(counter.epochs) == trained.history
    assert trained.history[0].validation_macro_f1 > 0.9
    write_bundle(tmp_path, trained.state, spec(backbone="small_cnn", head="svm"))
    model, read = read_bundle(tmp_path)
    logits = predict_logits(model, data.images[data.validation_rows], mean=read.mean, std=read.std)
    accuracy = (logits.argmax(axis=1) == data.labels[data.validation_rows]).mean()
    assert accuracy == pytest.approx(trained.history[0].validation_accuracy)


def test_random_features_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train_svm(images(), config(), Counter())
    (message,) = own_messages(caplog)
    assert "stem, layer1, layer2, layer3, layer4" in message
    assert "random" in message


def test_grad_cam_works_with_an_svm_head(tmp_path: Path) -> None:
    write_bundle(tmp_path, train_svm(images(), config(), Counter()).state, spec(backbone="small_cnn", head="svm"))
    model, _ = read_bundle(tmp_path)
    heat = grad_cam(model, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), np.array([0, 1]))
    assert heat.shape == (2, 64, 64)
    assert heat.max() == pytest.approx(1)
    assert heat.std() > 0


def test_svm_head_with_another_number_of_classes_does_not_load(tmp_path: Path) -> None:
    write_bundle(tmp_path, train_svm(images(), config(), Counter()).state, spec(backbone="small_cnn", head="linear"))
    with pytest.raises(WeightsError, match="does not fit small_cnn"):
        read_bundle(tmp_path)
    seen, labels = clouds(4)
    state, _ = fit_svm(seen, labels, seen, labels, kernels=["rbf"], costs=[1.0])
    with pytest.raises(RuntimeError, match="size mismatch for coefficients"):
        SvmHead(3).load_state_dict(state)


def test_class_without_training_images_is_named() -> None:
    data = images()
    rows = data.train_rows[data.labels[data.train_rows] != 1]
    less = TrainingData(data.images, data.labels, rows, data.validation_rows, CLASSES)
    with pytest.raises(DataError, match="no training image of viral"):
        train_svm(less, config(), Counter())
    with pytest.raises(DataError, match="no validation image"):
        train_svm(TrainingData(data.images, data.labels, data.train_rows, rows[:0], CLASSES), config(), Counter())
