"""Fit a support vector machine on the features of a frozen network.

Part of the related work uses networks this way: deep features and a classical classifier. The machine becomes the
network's head (see `cxr.models.modules.SvmHead`), so bundles and prediction are the same as with a linear head.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn import functional

from cxr.common.errors import DataError
from cxr.common.on_disk import take
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.factory import build, check_image_size, features, load_weights, set_head
from cxr.models.forward import BATCH_SIZE, choose_device, images_to_input
from cxr.models.modules import SvmHead
from cxr.training.data import TrainingData
from cxr.training.loop import choose_precision
from cxr.training.results import Epoch, Listener, Trained

if TYPE_CHECKING:
    from cxr.common.params import TrainParams

log = logging.getLogger("cxr.training.svm")

Features = NDArray[np.float32]


@dataclass(frozen=True)
class SvmSummary:
    """The selected machine: kernel, cost, number of support vectors and validation macro-F1."""

    kernel: str
    cost: float
    n_vectors: int
    validation_macro_f1: float


def train_svm(data: TrainingData, config: TrainParams, listener: Listener) -> Trained:
    """Fit a machine on the features of the training images; select kernel and cost on the validation images.

    Args:
        data: images and rows.
        config: a TrainParams, or any object with backbone, weights, svm, seed, device and precision.
        listener: callbacks, called after each batch of features and after the only epoch.

    Returns:
        The network with the machine as its head, and a history of one epoch.

    Raises:
        DataError: a class has no training image, or there is no validation image.
        ParamsError: the images are too small for the network.
        WeightsError: starting weights cannot be loaded.
    """
    _check(data)
    check_image_size(config.backbone, data.images.shape[1])
    started = time.perf_counter()
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    torch.manual_seed(config.seed)  # weights that the file does not hold
    model = build(config.backbone, len(data.classes))
    report = load_weights(model, config.weights)
    untrained = [part for part in (*report.random, *report.partial) if part != "head"]
    if untrained:
        log.warning("svm: with weights %r, %s and the features are random", report.source, ", ".join(untrained))
    model.to(device).eval()
    seen, held_out = (
        _features(model, data, rows, precision, listener) for rows in (data.train_rows, data.validation_rows)
    )
    machine, summary = fit_svm(
        seen,
        data.labels[data.train_rows],
        held_out,
        data.labels[data.validation_rows],
        kernels=config.svm.kernels,
        costs=config.svm.c,
    )
    log.info("svm: kept the %s kernel, C %g, %d support vectors", summary.kernel, summary.cost, summary.n_vectors)
    head = SvmHead(len(data.classes))
    head.load_state_dict(machine)
    set_head(model.cpu(), head)
    epoch = _epoch(head, data, seen, held_out, time.perf_counter() - started)
    listener.on_epoch(epoch)
    return Trained(model.state_dict(), report, (epoch,), 1, str(device), precision)


def fit_svm(
    features_train: Features,
    labels_train: NDArray[np.int64],
    features_validation: Features,
    labels_validation: NDArray[np.int64],
    *,
    kernels: Sequence[str],
    costs: Sequence[float],
) -> tuple[dict[str, Tensor], SvmSummary]:
    """Fit one machine per kernel and cost; return the one with the best validation macro-F1, the first of equals.

    Classes have equal weight regardless of their number of images. Features are standardised, and gamma of the RBF
    kernel is 1 / D.

    Args:
        features_train, features_validation: (N, D).
        labels_train, labels_validation: (N,), 0 to C - 1; every class has a training image.
        kernels: "linear" or "rbf".
        costs: positive; larger values penalise misclassified training images more.

    Returns:
        The state of an SvmHead of C classes, and a summary.
    """
    mean, scale = features_train.mean(axis=0), features_train.std(axis=0)
    scale[scale == 0] = 1  # constant features
    seen, held_out = (features_train - mean) / scale, (features_validation - mean) / scale
    gamma = 1 / (seen.shape[1] * max(float(seen.var()), 1e-12))
    best: tuple[SVC, SvmSummary] | None = None
    for kernel, cost in product(kernels, costs):
        machine = SVC(C=cost, kernel=kernel, gamma=gamma, class_weight="balanced", break_ties=True, cache_size=500)
        machine.fit(seen, labels_train)
        score = _macro_f1(labels_validation, machine.predict(held_out), len(machine.classes_))
        if best is None or score > best[1].validation_macro_f1:
            best = machine, SvmSummary(kernel, cost, len(machine.support_), score)
    if best is None:
        raise DataError("there is no kernel or no cost to try; check train.svm in params.yaml")
    state = _tensors(best[0]) | {"mean": torch.from_numpy(mean), "scale": torch.from_numpy(scale)}
    return {name: value.float() for name, value in state.items()}, best[1]


def _tensors(machine: SVC) -> dict[str, Tensor]:
    """Return the fitted tensors, with one column of coefficients per pair of classes.

    scikit-learn keeps the coefficients of a support vector of class c against the other classes in C - 1 rows, in
    the order of the classes without c (user guide, 1.4.7.3).
    """
    n_classes = len(machine.classes_)
    owner = np.repeat(np.arange(n_classes), machine.n_support_)
    pairs = list(combinations(range(n_classes), 2))
    coefficients = np.zeros((len(owner), len(pairs)))
    for column, (first, second) in enumerate(pairs):
        coefficients[owner == first, column] = machine.dual_coef_[second - 1, owner == first]
        coefficients[owner == second, column] = machine.dual_coef_[first, owner == second]
    sign = -1 if n_classes == 2 else 1  # with two classes, positive means the second
    coefficients, intercept = sign * coefficients, sign * machine.intercept_
    vectors, gamma = machine.support_vectors_, machine.gamma
    if machine.kernel == "linear":
        vectors, coefficients, gamma = coefficients.T @ vectors, np.eye(len(pairs)), 0.0
    return {
        "vectors": torch.from_numpy(np.array(vectors)),
        "coefficients": torch.from_numpy(coefficients),
        "intercept": torch.from_numpy(np.array(intercept)),
        "gamma": torch.tensor(gamma),
    }


def _check(data: TrainingData) -> None:
    counts = np.bincount(data.labels[data.train_rows], minlength=len(data.classes))
    absent = [name for name, count in zip(data.classes, counts, strict=True) if count == 0]
    if absent or not len(data.validation_rows):
        missing = f"no training image of {', '.join(absent)}" if absent else "no validation image"
        raise DataError(
            f"a support vector machine needs training images of every class and validation images: {missing}"
        )


@torch.inference_mode()
def _features(
    model: nn.Module, data: TrainingData, rows: NDArray[np.int64], precision: str, listener: Listener
) -> Features:
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = take(data.images, rows[start : start + BATCH_SIZE])
        images = images_to_input(batch, device, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            found.append(features(model, images).float().cpu().numpy())
        listener.on_batch(len(batch))
    return np.concatenate(found)


def _epoch(head: SvmHead, data: TrainingData, seen: Features, held_out: Features, seconds: float) -> Epoch:
    train_loss, train_accuracy, _ = _measured(head, seen, data.labels[data.train_rows])
    loss, accuracy, macro_f1 = _measured(head, held_out, data.labels[data.validation_rows])
    return Epoch(
        epoch=1,
        learning_rate=0.0,
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        validation_loss=loss,
        validation_accuracy=accuracy,
        validation_macro_f1=macro_f1,
        images_per_second=(len(seen) + len(held_out)) / seconds,
        seconds=seconds,
    )


@torch.inference_mode()
def _measured(head: SvmHead, found: Features, labels: NDArray[np.int64]) -> tuple[float, float, float]:
    """Return loss, accuracy and macro-F1, with the scores used as logits."""
    scores, targets = head(torch.from_numpy(found)), torch.from_numpy(labels)
    predicted = scores.argmax(dim=1)
    accuracy = float((predicted == targets).float().mean())
    macro_f1 = _macro_f1(labels, predicted.numpy(), scores.shape[1])
    return float(functional.cross_entropy(scores, targets)), accuracy, macro_f1


def _macro_f1(labels: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int) -> float:
    return float(f1_score(labels, predicted, average="macro", labels=range(n_classes), zero_division=0.0))
