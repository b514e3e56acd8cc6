"""95% intervals by a bootstrap over patients.

Films of one patient resemble each other, so a resample draws patients, with all their films (cluster
bootstrap; Field and Welsh 2007). Each resample is a count for each patient; confusion and calibration counts
are then matrix products, and only the AUROC needs the films.

A resample that lacks a class cannot define that class's recall, precision, F1 and AUROC, nor the averages over
classes. It is left out of those intervals, and counted in `Intervals.incomplete`. An interval is None where the
data cannot carry one: fewer than MIN_PATIENTS patients, or a figure that more than a tenth of the resamples leave
undefined (a class with one or two patients).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr.calibration import bin_of, measure_calibration
from cxr.metrics import Floats, Ints, check_predictions, rates_of, weighted_auroc

_CELLS_AT_A_TIME = 2_000_000  # resamples x films held at once: 16 MB an array

MIN_PATIENTS = 10
_MIN_DEFINED_SHARE = 0.9

CLASS_FIGURES = ("precision", "recall", "specificity", "f1", "auroc")


@dataclass(frozen=True)
class Interval:
    """The middle 95% of the resampled values."""

    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """95% intervals; None where undefined. `incomplete` counts resamples that lack a class of the set.

    `per_class` maps a class to its intervals by CLASS_FIGURES.
    """

    accuracy: Interval | None
    macro_f1: Interval | None
    macro_auroc: Interval | None
    ece: Interval | None
    per_class: dict[str, dict[str, Interval | None]]
    resamples: int
    patients: int
    incomplete: int

    def to_json(self) -> dict[str, Any]:
        """Return the intervals as [low, high] or None."""
        figures = {name: getattr(self, name) for name in ("accuracy", "macro_f1", "macro_auroc", "ece")}
        return {
            **{name: _pair(interval) for name, interval in figures.items()},
            "per_class": {
                name: {figure: _pair(interval) for figure, interval in intervals.items()}
                for name, intervals in self.per_class.items()
            },
        }


def bootstrap_intervals(
    labels: Ints,
    probabilities: Floats,
    patients: Sequence[str],
    classes: Sequence[str],
    *,
    resamples: int,
    seed: int,
    bins: int,
) -> Intervals:
    """Return 95% percentile intervals of every metric, resampling patients.

    The expected calibration error of a resample is biased upwards (noise only adds to it), so its resamples
    are shifted to have the measured value as median before the interval is read.

    Args:
        labels: (N,) class indices.
        probabilities: (N, C).
        patients: N ids; films with the same id are drawn together.
        classes: C names.
        resamples: how many, 2,000 is usual.
        seed: same seed and data, same intervals.
        bins: of the calibration error.

    Raises:
        DataError: the arrays do not fit each other.
    """
    check_predictions(labels, probabilities, n_classes=len(classes))
    names, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    values = _resampled(labels, probabilities, patient, len(names), resamples=resamples, seed=seed, bins=bins)
    occurs = np.bincount(labels, minlength=len(classes)) > 0
    ece = measure_calibration(labels, probabilities, bins=bins).ece
    incomplete = int(np.isnan(values["recall"][:, occurs]).any(axis=1).sum())
    if len(names) < MIN_PATIENTS:
        values = {name: np.full_like(value, np.nan) for name, value in values.items()}
    return Intervals(
        accuracy=_interval(values["accuracy"]),
        macro_f1=_interval(values["f1"][:, occurs].mean(axis=1)),
        macro_auroc=_interval(values["auroc"][:, occurs].mean(axis=1)),
        ece=_interval(np.maximum(values["ece"] - np.median(values["ece"]) + ece, 0)),
        per_class={
            name: {figure: _interval(values[figure][:, c]) for figure in CLASS_FIGURES}
            for c, name in enumerate(classes)
        },
        resamples=resamples,
        patients=len(names),
        incomplete=incomplete,
    )


def _resampled(
    labels: Ints, probabilities: Floats, patient: Ints, n_patients: int, *, resamples: int, seed: int, bins: int
) -> dict[str, Floats]:
    """Return each figure's values in all resamples: (B,) or (B, C)."""
    n_films, n_classes = probabilities.shape
    sums = _sums_by_patient(labels, probabilities, patient, n_patients, bins=bins)
    rows_at_a_time = max(1, _CELLS_AT_A_TIME // max(n_films, n_patients))
    parts = []
    for counts in _draws(n_patients, resamples, rows_at_a_time=rows_at_a_time, seed=seed):
        cells = counts @ sums
        rates = rates_of(cells[:, : n_classes**2].reshape(-1, n_classes, n_classes))
        weights = counts[:, patient]
        auroc = [weighted_auroc(probabilities[:, c], labels == c, weights) for c in range(n_classes)]
        ece = np.abs(cells[:, n_classes**2 :]).sum(axis=1) / weights.sum(axis=1)
        parts.append({**vars(rates), "auroc": np.stack(auroc, axis=1), "ece": ece})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _sums_by_patient(labels: Ints, probabilities: Floats, patient: Ints, n_patients: int, *, bins: int) -> Floats:
    """Return (patients, C * C + bins): confusion counts, then confidence minus hits in each confidence bin."""
    n_classes = probabilities.shape[1]
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    sums = np.zeros((n_patients, n_classes**2 + bins))
    np.add.at(sums, (patient, labels * n_classes + predicted), 1.0)
    gap = confidence - (predicted == labels)
    np.add.at(sums, (patient, n_classes**2 + bin_of(confidence, bins=bins)), gap)
    return sums


def _draws(n_patients: int, resamples: int, *, rows_at_a_time: int, seed: int) -> Iterator[Floats]:
    """Yield how often each patient is drawn: (some resamples, patients), each row summing to the patients."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, rows_at_a_time):
        rows = min(rows_at_a_time, resamples - start)
        drawn = generator.integers(n_patients, size=(rows, n_patients)) + n_patients * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n_patients)
        yield counts.reshape(rows, n_patients).astype(np.float64)


def _interval(values: Floats) -> Interval | None:
    known = values[~np.isnan(values)]
    if len(known) < _MIN_DEFINED_SHARE * len(values):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(float(low), float(high))


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
