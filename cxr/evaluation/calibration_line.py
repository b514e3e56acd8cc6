"""Slope and intercept of calibration: the line from predicted to actual log odds (Cox 1958; Van Calster et al. 2016).

slope      of the logistic regression of the outcome on the predicted log odds. 1 is perfect; below 1 the probabilities
           are too extreme, above 1 not extreme enough
intercept  of the same regression with the slope fixed at 1 ("calibration in the large"). 0 is perfect; below 0 the
           probabilities are too high on average, above 0 too low

Intervals are those of a normal distribution with a standard error that sums over patients first, since images of one
patient are similar (cluster-robust; Liang and Zeger 1986).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.evaluation.bootstrap import MIN_PATIENTS, Interval, pair
from cxr.evaluation.clinical_utility import decisions_of
from cxr.evaluation.rates import Floats, Ints

_CLIP = 1e-6  # a probability of 0 or 1 has no log odds
_STEPS, _CONVERGED, _LARGEST = 50, 1e-9, 50.0
_MOST_COLLINEAR = 1e12  # condition number; beyond it the predictions are all the same, but for rounding
_HALVINGS, _LEAST_GAIN = 40, 0.4
_TINY_GAIN = 1e-6  # of the log likelihood, which rounding hides
_NORMAL_975 = 1.959964

CONFIDENCE = "predicted_class"
"""Name of the line of the predicted class: its probability against whether it is right, as the ECE has it."""


@dataclass(frozen=True)
class CalibrationLine:
    """See the module; intervals are None with fewer than MIN_PATIENTS patients."""

    slope: float
    intercept: float
    slope_interval: Interval | None
    intercept_interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        ci95 = {"slope": pair(self.slope_interval), "intercept": pair(self.intercept_interval)}
        return {"slope": self.slope, "intercept": self.intercept, "ci95": ci95}


def calibration_line(
    probabilities: Floats, positive: NDArray[np.bool_], patients: NDArray[Any]
) -> CalibrationLine | None:
    """Return the line of N predicted probabilities; None where the outcomes do not determine one.

    Args:
        probabilities: (N,), 0 to 1, of the outcome.
        positive: (N,), whether it came.
        patients: (N,), the patient of each image.
    """
    clipped = np.clip(probabilities, _CLIP, 1 - _CLIP)
    log_odds = np.log(clipped / (1 - clipped))
    _, cluster = np.unique(patients.astype(str), return_inverse=True)
    ones = np.ones((len(log_odds), 1))
    joint = _fit(np.column_stack([ones, log_odds]), positive, cluster, offset=np.zeros(len(log_odds)))
    large = _fit(ones, positive, cluster, offset=log_odds)
    if joint is None or large is None:
        return None
    return CalibrationLine(joint[0], large[0], joint[1], large[1])


def calibration_lines(
    classes: Sequence[str], labels: Ints, probabilities: Floats, patients: NDArray[Any]
) -> dict[str, CalibrationLine | None]:
    """Return the lines of the predicted class (CONFIDENCE), of each class, and of pneumonia against normal.

    Args:
        classes: C names.
        labels: (N,) class indices.
        probabilities: (N, C), calibrated.
        patients: (N,).
    """
    outcomes = {CONFIDENCE: (probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)}
    outcomes |= {name: (probabilities[:, c], labels == c) for c, name in enumerate(classes)}
    if pneumonia := decisions_of(classes, labels, probabilities).get("pneumonia"):
        outcomes["pneumonia"] = pneumonia
    return {name: calibration_line(*outcome, patients) for name, outcome in outcomes.items()}


def _fit(
    design: Floats, positive: NDArray[np.bool_], cluster: Ints, *, offset: Floats
) -> tuple[float, Interval | None] | None:
    """Return the last coefficient of a logistic regression by Newton's method, and its interval.

    None where it does not converge: all outcomes are equal, or the predictions separate them or are all the same.
    """
    weights = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        with np.errstate(over="ignore"):
            expected = 1 / (1 + np.exp(-(offset + design @ weights)))
        spread = expected * (1 - expected)
        information = design.T @ (design * spread[:, None])
        if not np.isfinite(information).all() or np.linalg.cond(information) > _MOST_COLLINEAR:
            return None
        slope = design.T @ (positive - expected)
        step = np.linalg.solve(information, slope)
        step = step * _share_of_step(offset + design @ weights, design @ step, positive, promised=float(slope @ step))
        weights = weights + step
        if np.abs(weights).max() > _LARGEST:
            return None
        if np.abs(step).max() < _CONVERGED:
            error = _standard_error(design * (positive - expected)[:, None], information, cluster)
            return float(weights[-1]), _interval(float(weights[-1]), error)
    return None


def _share_of_step(log_odds: Floats, change: Floats, positive: NDArray[np.bool_], *, promised: float) -> float:
    """Return 1, halved until that share of a step makes the outcomes (N,) enough more likely (Armijo 1966).

    Where all predictions are sure and many are wrong, the whole step leads far past the solution.

    Args:
        log_odds, change: (N,), before the step and by the whole of it.
        positive: (N,).
        promised: the gain of the log likelihood if it rose all the way as it does at the start.
    """
    share, before = 1.0, _likelihood(log_odds, positive)
    for _ in range(_HALVINGS if promised > _TINY_GAIN else 0):
        if _likelihood(log_odds + share * change, positive) - before >= _LEAST_GAIN * share * promised:
            break
        share /= 2
    return share


def _likelihood(log_odds: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the log likelihood of outcomes (N,) under predicted log odds (N,)."""
    return -float(np.logaddexp(0, np.where(positive, -log_odds, log_odds)).sum())


def _interval(value: float, error: float | None) -> Interval | None:
    return None if error is None else Interval(value - _NORMAL_975 * error, value + _NORMAL_975 * error)


def _standard_error(scores: Floats, information: Floats, cluster: Ints) -> float | None:
    """Return the cluster-robust standard error of the last coefficient from scores (N, K)."""
    n = int(cluster.max()) + 1
    if n < MIN_PATIENTS:
        return None
    sums = np.zeros((n, scores.shape[1]))
    np.add.at(sums, cluster, scores)
    inverse = np.linalg.inv(information)
    covariance = inverse @ (sums.T @ sums) @ inverse * n / (n - 1)
    return float(np.sqrt(covariance[-1, -1]))
