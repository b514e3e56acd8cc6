"""Classification metrics of one set of images, with the values of scikit-learn.

An undefined value is None; see cxr.evaluation.rates. Averages are over the classes that occur.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cxr.common.errors import DataError
from cxr.evaluation.headline import SCORES
from cxr.evaluation.rates import Figures, Floats, Ints, confusion_counts, figures_of


@dataclass(frozen=True)
class ClassMetrics:
    """One class against the rest; each value is 0 to 1, or None if undefined; `support` counts its images."""

    precision: float | None
    recall: float | None
    specificity: float | None
    f1: float | None
    support: int
    auroc: float | None


@dataclass(frozen=True)
class Metrics:
    """All metrics of one set of images.

    overall           each of cxr.evaluation.headline.SCORES by name; None where undefined
    confusion_matrix  [i][j] counts images of class i called class j
    """

    n: int
    overall: dict[str, float | None]
    per_class: dict[str, ClassMetrics]
    confusion_matrix: tuple[tuple[int, ...], ...]

    @property
    def missing_classes(self) -> tuple[str, ...]:
        """Classes that no image of the set has."""
        return tuple(name for name, metrics in self.per_class.items() if not metrics.support)

    def score(self, name: str) -> float:
        """Return one of `overall`.

        Raises:
            DataError: these images do not define it.
        """
        value = self.overall[name]
        if value is None:
            raise DataError(f"{name} is not defined: a class lacks images, or all images are of one class")
        return value

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers; None where a value is undefined, never NaN."""
        return {
            "n": self.n,
            **self.overall,
            "per_class": {name: asdict(metrics) for name, metrics in self.per_class.items()},
            "confusion_matrix": [list(row) for row in self.confusion_matrix],
        }


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
    figures = figures_of(counts[None].astype(np.float64), labels, probabilities, np.ones((1, len(labels))))
    return Metrics(
        n=len(labels),
        overall={name: defined(values[0]) for name, values in scores_of(figures).items()},
        per_class={name: _class_metrics(figures, counts, c) for c, name in enumerate(classes)},
        confusion_matrix=tuple(tuple(int(n) for n in row) for row in counts),
    )


def scores_of(figures: Figures) -> dict[str, Floats]:
    """Return the values (B,) of each of cxr.evaluation.headline.SCORES by name."""
    return {metric.name: metric.compute(figures) for metric in SCORES if metric.compute is not None}


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


def roc_curves(labels: Ints, probabilities: Floats, classes: Sequence[str]) -> dict[str, RocCurve]:
    """Return the ROC curve of each class against the rest; a class without positives or negatives has none."""
    from sklearn.metrics import roc_curve  # takes 1 s to import, and only the report draws curves

    curves = {}
    for c, name in enumerate(classes):
        positive = labels == c
        if 0 < positive.sum() < len(labels):
            false_rate, true_rate, _ = roc_curve(positive, probabilities[:, c])
            curves[name] = RocCurve(false_rate, true_rate)
    return curves


def defined(value: float | np.float64) -> float | None:
    """Return `value`, or None for NaN."""
    return None if np.isnan(value) else float(value)


def _class_metrics(figures: Figures, counts: Ints, c: int) -> ClassMetrics:
    rates = figures.rates
    return ClassMetrics(
        precision=defined(rates.precision[0, c]),
        recall=defined(rates.recall[0, c]),
        specificity=defined(rates.specificity[0, c]),
        f1=defined(rates.f1[0, c]),
        support=int(counts[c].sum()),
        auroc=defined(figures.auroc[0, c]),
    )
