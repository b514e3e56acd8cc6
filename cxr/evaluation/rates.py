"""Rates and areas under ROC curves of many weightings of the same images at once, so that a bootstrap is fast.

Two functions accept a batch of weighted samples: `rates_of` turns confusion counts into rates, `weighted_auroc` ranks
scores. The values are those of scikit-learn; an undefined one is NaN: every value but the specificity of a class
without images, and the AUROC of a class that every image has.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rates:
    """Rates from confusion counts of shape (..., C, C): `accuracy` (...), the others (..., C). NaN: undefined."""

    accuracy: Floats
    precision: Floats
    recall: Floats
    specificity: Floats
    f1: Floats


@dataclass(frozen=True)
class Figures:
    """What headline metrics are computed from, for B weightings of the same images; NaN where undefined.

    rates   of shape (B,) and (B, C)
    auroc   (B, C), each class against the rest
    occurs  (C,), whether any image is of the class
    """

    rates: Rates
    auroc: Floats
    occurs: NDArray[np.bool_]

    def mean_over_classes(self, of_class: Floats) -> Floats:
        """Return the mean (B,) of (B, C) over the classes that occur."""
        return np.asarray(of_class[:, self.occurs].mean(axis=1))


def figures_of(confusion: Floats, labels: Ints, probabilities: Floats, weights: Floats) -> Figures:
    """Return the figures of B weightings of N images.

    Args:
        confusion: (B, C, C), the weighted counts by actual and predicted class.
        labels: (N,) class indices.
        probabilities: (N, C).
        weights: (B, N), how often each image counts.
    """
    n_classes = probabilities.shape[1]
    auroc = [weighted_auroc(probabilities[:, c], labels == c, weights) for c in range(n_classes)]
    occurs = np.bincount(labels, minlength=n_classes) > 0
    return Figures(rates_of(confusion), np.stack(auroc, axis=1), occurs)


def confusion_counts(labels: Ints, probabilities: Floats) -> Ints:
    """Count images by (actual, predicted) class: (C, C)."""
    n_classes = probabilities.shape[1]
    cells = labels * n_classes + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def rates_of(confusion: Floats) -> Rates:
    """Turn (weighted) confusion counts of shape (..., C, C) into rates.

    A class that occurs and is never predicted has precision 0, as in scikit-learn.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    actual, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    total = actual.sum(axis=-1)
    others = total[..., None] - actual
    return Rates(
        accuracy=_ratio(hits.sum(axis=-1), total),
        precision=np.where(actual > 0, hits / np.maximum(predicted, 1), np.nan),
        recall=_ratio(hits, actual),
        specificity=_ratio(others - predicted + hits, others),
        f1=np.where(actual > 0, _ratio(2 * hits, actual + predicted), np.nan),
    )


def weighted_auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve for B weightings of the same images, ties counted half.

    Args:
        scores: (N,) higher means more likely positive.
        positive: (N,).
        weights: (B, N), how often each image counts.

    Returns:
        (B,), NaN where a weighting leaves no positive or no negative.
    """
    order = np.argsort(scores, kind="stable")
    tie_starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    ordered = weights[:, order]
    positives = ordered * positive[order]
    negatives = ordered - positives
    if len(tie_starts) < len(scores):
        positives = np.add.reduceat(positives, tie_starts, axis=1)
        negatives = np.add.reduceat(negatives, tie_starts, axis=1)
    won = np.cumsum(negatives, axis=1) - negatives / 2
    return _ratio((positives * won).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), np.nan)
