"""What a classifier got right: the values that scikit-learn gives, computed so that a bootstrap can repeat them fast.

Everything rests on two pieces that also take a batch of weighted samples: `rates_of` turns confusion
counts into rates, `weighted_auroc` ranks scores. A value that the data cannot define is NaN in arrays and
None in results: all of a class that no image has (but for its specificity), the AUROC of a class that
every image has. Averages over classes are over the classes that occur.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClassMetrics:
    """One class against the rest; each value 0 to 1, None where undefined; `support` counts its images."""

    precision: float | None
    recall: float | None
    specificity: float | None
    f1: float | None
    support: int
    auroc: float | None


@dataclass(frozen=True)
class Metrics:
    """All metrics of one set of images; `confusion_matrix[i][j]` counts images of class i called class j."""

    n: int
    accuracy: float
    macro_f1: float
    macro_auroc: float | None
    per_class: dict[str, ClassMetrics]
    confusion_matrix: tuple[tuple[int, ...], ...]

    @property
    def missing_classes(self) -> tuple[str, ...]:
        """Classes that no image of the set has."""
        return tuple(name for name, metrics in self.per_class.items() if not metrics.support)

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers; None where a value is undefined, never NaN."""
        return {**asdict(self), "confusion_matrix": [list(row) for row in self.confusion_matrix]}


@dataclass(frozen=True)
class Rates:
    """Rates from confusion counts of shape (..., C, C): `accuracy` (...), the others (..., C). NaN: undefined."""

    accuracy: Floats
    precision: Floats
    recall: Floats
    specificity: Floats
    f1: Floats


@dataclass(frozen=True)
class RocCurve:
    """One class against the rest: false and true positive rates, both rising from 0 to 1."""

    false_positive_rate: Floats
    true_positive_rate: Floats


def measure(labels: Ints, probabilities: Floats, classes: Sequence[str]) -> Metrics:
    """Measure predictions against labels; the predicted class is the most probable one.

    Args:
        labels: (N,) class indices.
        probabilities: (N, C), rows summing to 1.
        classes: C names, in column order.

    Raises:
        DataError: no images, shapes that do not fit each other, a label out of range, a probability not finite.
    """
    check_predictions(labels, probabilities, n_classes=len(classes))
    counts = confusion_counts(labels, probabilities)
    rates = rates_of(counts.astype(np.float64))
    auroc = np.array([_auroc_of(labels == c, probabilities[:, c]) for c in range(len(classes))])
    occurs = counts.sum(axis=1) > 0
    return Metrics(
        n=len(labels),
        accuracy=float(rates.accuracy),
        macro_f1=float(rates.f1[occurs].mean()),
        macro_auroc=defined(auroc[occurs].mean()),
        per_class={name: _class_metrics(rates, auroc, counts, c) for c, name in enumerate(classes)},
        confusion_matrix=tuple(tuple(int(n) for n in row) for row in counts),
    )


def check_predictions(labels: Ints, probabilities: Floats, *, n_classes: int) -> None:
    """Raise DataError unless labels (N,) and probabilities (N, n_classes) can be measured."""
    if not len(labels):
        raise DataError("there are no images to measure; the split must give at least one")
    if probabilities.shape != (len(labels), n_classes):
        raise DataError(f"expected probabilities of shape {(len(labels), n_classes)}, got {probabilities.shape}")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(f"expected labels from 0 to {n_classes - 1}, got {labels.min()} to {labels.max()}")
    if not np.isfinite(probabilities).all():
        raise DataError("a predicted probability is not a finite number; the weights are damaged: train again")


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


def roc_curves(labels: Ints, probabilities: Floats, classes: Sequence[str]) -> dict[str, RocCurve]:
    """Return the ROC curve of each class against the rest; a class without positives or negatives has none."""
    from sklearn.metrics import roc_curve  # 1 s, and the only use

    curves = {}
    for c, name in enumerate(classes):
        positive = labels == c
        if 0 < positive.sum() < len(labels):
            false_rate, true_rate, _ = roc_curve(positive, probabilities[:, c])
            curves[name] = RocCurve(false_rate, true_rate)
    return curves


def defined(value: float | np.float64) -> float | None:
    """Return `value`, None in place of NaN."""
    return None if np.isnan(value) else float(value)


def _auroc_of(positive: NDArray[np.bool_], scores: Floats) -> float:
    return float(weighted_auroc(scores, positive, np.ones((1, len(scores))))[0])


def _class_metrics(rates: Rates, auroc: Floats, counts: Ints, c: int) -> ClassMetrics:
    return ClassMetrics(
        precision=defined(rates.precision[c]),
        recall=defined(rates.recall[c]),
        specificity=defined(rates.specificity[c]),
        f1=defined(rates.f1[c]),
        support=int(counts[c].sum()),
        auroc=defined(auroc[c]),
    )


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), np.nan)
