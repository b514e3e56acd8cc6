"""Calibration of probabilities: temperature scaling and calibration errors.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks") divides the logits by one
number fitted on the validation set. It changes no predicted class. An optional bias for each class is fitted together
with it and does change predicted classes.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

from cxr.evaluation.metrics import check_predictions
from cxr.evaluation.rates import Floats, Ints

TEMPERATURE_RANGE = (0.25, 10.0)
"""The range of the fit. Otherwise a validation set without an error would drive the temperature to 0."""

BIAS_RANGE = (-3.0, 3.0)
"""Otherwise a class without validation images would get the bias minus infinity."""


@dataclass(frozen=True)
class CalibrationErrors:
    """The distance of probabilities from frequencies; 0 is perfect.

    ece            expected calibration error of the predicted class, 0 to 1
    classwise_ece  the same of each class's probability, averaged over classes, 0 to 1
    brier          mean squared distance between probabilities and the truth, summed over classes, 0 to 2
    nll            mean negative log likelihood of the true class, in nats
    """

    ece: float
    classwise_ece: float
    brier: float
    nll: float

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class ReliabilityBin:
    """Images with a similar probability of the predicted class: its mean, their accuracy, their number."""

    confidence: float
    accuracy: float
    count: int


def fit_temperature(logits: NDArray[np.floating[Any]], labels: Ints) -> float:
    """Return the temperature, within TEMPERATURE_RANGE, that makes the labels most likely; 1 without images.

    Args:
        logits: (N, C) of images that were not used for training.
        labels: (N,) class indices.
    """
    if not len(labels):
        return 1.0
    rows, logits = np.arange(len(labels)), logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    low, high = np.log(TEMPERATURE_RANGE)
    fit = minimize_scalar(loss, bounds=(float(low), float(high)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(fit.x))


def fit_temperature_and_bias(logits: NDArray[np.floating[Any]], labels: Ints) -> tuple[float, tuple[float, ...]]:
    """Return the temperature and the bias of each class that together make the labels most likely.

    Probabilities are then softmax(logits / temperature + bias). The biases have mean 0 and start within BIAS_RANGE;
    without images they are 0, and the temperature is 1.

    Args:
        logits: (N, C) of images that were not used for training.
        labels: (N,) class indices.
    """
    n_classes = logits.shape[1]
    if not len(labels):
        return 1.0, (0.0,) * n_classes
    rows, logits = np.arange(len(labels)), logits.astype(np.float64)
    truth = np.eye(n_classes)[labels]

    def loss(values: Floats) -> tuple[float, Floats]:
        scaled = logits / np.exp(values[0])
        log_shares = log_softmax(scaled + values[1:], axis=1)
        error = (np.exp(log_shares) - truth) / len(labels)
        slope = np.concatenate([[-(error * scaled).sum()], error.sum(axis=0)])
        return float(-log_shares[rows, labels].mean()), slope

    start = np.concatenate([[np.log(fit_temperature(logits, labels))], np.zeros(n_classes)])
    low, high = np.log(TEMPERATURE_RANGE)
    fit = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(float(low), float(high)), *[BIAS_RANGE] * n_classes],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )
    bias = fit.x[1:] - fit.x[1:].mean()
    return float(np.exp(fit.x[0])), tuple(bias.tolist())


def measure_calibration(labels: Ints, probabilities: Floats, *, bins: int) -> CalibrationErrors:
    """Measure probabilities (N, C) against labels (N,), with `bins` bins of equal width.

    Raises:
        DataError: the arrays do not fit each other.
    """
    check_predictions(labels, probabilities, n_classes=probabilities.shape[1])
    truth = np.eye(probabilities.shape[1])[labels]
    likelihood = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)
    correct = probabilities.argmax(axis=1) == labels
    return CalibrationErrors(
        ece=_binned_error(probabilities.max(axis=1), correct, bins=bins),
        classwise_ece=float(
            np.mean([_binned_error(p, t, bins=bins) for p, t in zip(probabilities.T, truth.T, strict=True)])
        ),
        brier=float(((probabilities - truth) ** 2).sum(axis=1).mean()),
        nll=float(-np.log(likelihood).mean()),
    )


def reliability_table(labels: Ints, probabilities: Floats, *, bins: int) -> tuple[ReliabilityBin, ...]:
    """Return the bins that hold an image, from low to high confidence."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = bin_of(confidence, bins=bins)
    return tuple(
        ReliabilityBin(float(confidence[members].mean()), float(correct[members].mean()), int(members.sum()))
        for members in (index == b for b in range(bins))
        if members.any()
    )


def bin_of(values: Floats, *, bins: int) -> Ints:
    """Return the index of the bin of equal width that each value of 0 to 1 falls in; 1 belongs to the last."""
    return np.clip((values * bins).astype(np.int64), 0, bins - 1)


def _binned_error(predicted: Floats, happened: NDArray[Any], *, bins: int) -> float:
    gaps = np.bincount(bin_of(predicted, bins=bins), weights=predicted - happened, minlength=bins)
    return float(np.abs(gaps).sum() / len(predicted))
