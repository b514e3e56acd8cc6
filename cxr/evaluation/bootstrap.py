"""95% bootstrap intervals over patients: of every metric, of any ratio of sums over images, of a median.

Images of one patient are similar, so a resample draws patients with all their images (cluster bootstrap; Field and
Welsh 2007). A resample is a count for each patient; confusion and calibration counts are then matrix products, and only
the AUROC needs the images.

A resample without a class does not define the recall, precision, F1 and AUROC of that class, nor the averages over
classes. It is left out of those intervals and counted in `Intervals.incomplete`. An interval is None with fewer than
MIN_PATIENTS patients, or if more than a tenth of the resamples leave the metric undefined (a class with one or two
patients).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.evaluation.calibration import bin_of, measure_calibration
from cxr.evaluation.headline import ERRORS, SCORES
from cxr.evaluation.metrics import check_predictions, measure, scores_of
from cxr.evaluation.rates import Floats, Ints, figures_of

_CELLS_AT_A_TIME = 2_000_000  # resamples x images held at once: 16 MB an array

MIN_PATIENTS = 10
_MIN_DEFINED_SHARE = 0.9

_UNUSED_BINS = 15  # of the calibration errors, which are not among SCORES

CLASS_FIGURES = ("precision", "recall", "specificity", "f1", "auroc")


@dataclass(frozen=True)
class Interval:
    """The middle 95% of the resampled values."""

    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """95% intervals; None where undefined. `incomplete` counts resamples that lack a class of the set.

    overall    by the names of cxr.evaluation.headline
    per_class  by class, then by CLASS_FIGURES
    """

    overall: dict[str, Interval | None]
    per_class: dict[str, dict[str, Interval | None]]
    resamples: int
    patients: int
    incomplete: int

    def to_json(self) -> dict[str, Any]:
        """Return the intervals as [low, high] or None."""
        return {
            **{name: pair(interval) for name, interval in self.overall.items()},
            "per_class": {
                name: {figure: pair(interval) for figure, interval in intervals.items()}
                for name, intervals in self.per_class.items()
            },
        }


@dataclass(frozen=True)
class Resampling:
    """How N images are resampled: the patient of each image, the number of resamples, the seed."""

    patients: NDArray[Any]
    resamples: int
    seed: int

    def where(self, rows: NDArray[Any]) -> "Resampling":
        """Return the draws for the images that `rows` (a mask (N,), or row numbers) selects."""
        return replace(self, patients=self.patients[rows])

    def ratios(self, above: Floats, below: Floats) -> list[Interval | None]:
        """Return the interval of each of K ratios of sums over images, such as a sensitivity.

        Args:
            above: (N, K), what each image adds to the numerator.
            below: (N, K), what it adds to the denominator; a resample with a sum of 0 leaves the ratio undefined.
        """
        names, patient = np.unique(self.patients.astype(str), return_inverse=True)
        n_ratios = above.shape[1]
        if len(names) < MIN_PATIENTS:
            return [None] * n_ratios
        sums = np.zeros((len(names), 2 * n_ratios))
        np.add.at(sums, patient, np.concatenate([above, below], axis=1))
        draws = patient_draws(len(names), self.resamples, seed=self.seed)
        drawn = np.concatenate([counts @ sums for counts in draws])
        over, under = drawn[:, :n_ratios], drawn[:, n_ratios:]
        ratios = np.where(under > 0, over / np.where(under > 0, under, 1), np.nan)
        return [percentile_interval(column) for column in ratios.T]

    def cumulative_low(self, values: Floats, level: float, *, at: Ints) -> Floats:
        """Return the quantile `level` (K,) of the resampled means of values (N,) up to and with each row of `at` (K,).

        A resample without any of these images leaves their mean undefined and does not count.
        """
        names, patient = np.unique(self.patients.astype(str), return_inverse=True)
        means = []
        for counts in patient_draws(len(names), self.resamples, seed=self.seed, width=len(values)):
            drawn = counts[:, patient]
            total, hits = np.cumsum(drawn, axis=1)[:, at], np.cumsum(drawn * values, axis=1)[:, at]
            means.append(np.where(total > 0, hits / np.maximum(total, 1), np.nan))
        return np.asarray(np.nanquantile(np.concatenate(means), level, axis=0))

    def median(self, values: Floats) -> Interval | None:
        """Return the interval of the (lower) median of values (N,)."""
        names, patient = np.unique(self.patients.astype(str), return_inverse=True)
        if len(names) < MIN_PATIENTS:
            return None
        order = np.argsort(values, kind="stable")
        medians = []
        for counts in patient_draws(len(names), self.resamples, seed=self.seed, width=len(values)):
            reached = np.cumsum(counts[:, patient[order]], axis=1)
            medians.append(values[order][(reached >= reached[:, -1:] / 2).argmax(axis=1)])
        return percentile_interval(np.concatenate(medians))


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

    The expected calibration errors of a resample are biased upwards (noise only adds to them), so their resamples
    are shifted to have the measured value as median before the interval is read.

    Args:
        labels: (N,) class indices.
        probabilities: (N, C).
        patients: N ids; images with the same id are drawn together.
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
    incomplete = int(np.isnan(values["recall"][:, occurs]).any(axis=1).sum())
    if len(names) < MIN_PATIENTS:
        values = {name: np.full_like(value, np.nan) for name, value in values.items()}
    errors = measure_calibration(labels, probabilities, bins=bins).to_json()
    centred = [metric.name for metric in ERRORS if metric.interval == "centred"]
    values |= {name: _centred(values[name], errors[name]) for name in centred}
    shown = [metric.name for metric in (*SCORES, *ERRORS) if metric.interval is not None]
    per_class = {name: _of_class(values, c) for c, name in enumerate(classes)}
    overall = {name: percentile_interval(values[name]) for name in shown}
    return Intervals(overall, per_class, resamples=resamples, patients=len(names), incomplete=incomplete)


def _of_class(values: dict[str, Floats], c: int) -> dict[str, Interval | None]:
    return {figure: percentile_interval(values[figure][:, c]) for figure in CLASS_FIGURES}


def headline_scores(
    labels: Ints, probabilities: Floats, patients: Sequence[str], classes: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return SCORES with their intervals under `ci95`, as JSON holds them; arguments as of bootstrap_intervals."""
    values = measure(labels, probabilities, classes).to_json()
    intervals = bootstrap_intervals(
        labels, probabilities, patients, classes, resamples=resamples, seed=seed, bins=_UNUSED_BINS
    ).to_json()
    names = [metric.name for metric in SCORES]
    return {name: values[name] for name in names} | {"ci95": {name: intervals.get(name) for name in names}}


def patient_draws(n_patients: int, resamples: int, *, seed: int, width: int = 0) -> Iterator[Floats]:
    """Yield how often each patient is drawn: (some resamples, patients), each row summing to the patients.

    Args:
        n_patients: of the set.
        resamples: rows in all.
        seed: same seed, same draws.
        width: values per row that the caller computes, which bounds the rows yielded at once.
    """
    generator = np.random.default_rng(seed)
    rows_at_a_time = max(1, _CELLS_AT_A_TIME // max(width, n_patients))
    for start in range(0, resamples, rows_at_a_time):
        rows = min(rows_at_a_time, resamples - start)
        drawn = generator.integers(n_patients, size=(rows, n_patients)) + n_patients * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n_patients)
        yield counts.reshape(rows, n_patients).astype(np.float64)


def percentile_interval(values: Floats) -> Interval | None:
    """Return the middle 95% of resampled values; None where more than a tenth of them is undefined (NaN)."""
    known = values[~np.isnan(values)]
    if len(known) < _MIN_DEFINED_SHARE * len(values):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(float(low), float(high))


def pair(interval: Interval | None) -> list[float] | None:
    """Return an interval as JSON holds it: [low, high] or None."""
    return None if interval is None else [interval.low, interval.high]


def _resampled(
    labels: Ints, probabilities: Floats, patient: Ints, n_patients: int, *, resamples: int, seed: int, bins: int
) -> dict[str, Floats]:
    """Return each figure's values in all resamples: (B,) or (B, C)."""
    n_classes = probabilities.shape[1]
    sums = _sums_by_patient(labels, probabilities, patient, n_patients, bins=bins)
    parts = []
    for counts in patient_draws(n_patients, resamples, seed=seed, width=len(labels)):
        images = counts @ np.bincount(patient, minlength=n_patients)
        cells, gaps, class_gaps, squares = np.split(
            counts @ sums, np.cumsum((n_classes**2, bins, n_classes * bins)), axis=1
        )
        confusion = cells.reshape(-1, n_classes, n_classes)
        figures = figures_of(confusion, labels, probabilities, counts[:, patient])
        errors = {
            "ece": np.abs(gaps).sum(axis=1) / images,
            "classwise_ece": np.abs(class_gaps).sum(axis=1) / images / n_classes,
            "brier": squares[:, 0] / images,
        }
        parts.append({**vars(figures.rates), "auroc": figures.auroc, **scores_of(figures), **errors})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _sums_by_patient(labels: Ints, probabilities: Floats, patient: Ints, n_patients: int, *, bins: int) -> Floats:
    """Return what each patient adds: (patients, C * C + bins + C * bins + 1).

    These are confusion counts; confidence minus hits in each confidence bin; the same in the bins of each class's
    probability; squared distance of the probabilities from the truth.
    """
    n_classes = probabilities.shape[1]
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    truth = np.eye(n_classes)[labels]
    sums = np.zeros((n_patients, n_classes**2 + bins + n_classes * bins + 1))
    np.add.at(sums, (patient, labels * n_classes + predicted), 1.0)
    start = n_classes**2
    np.add.at(sums, (patient, start + bin_of(confidence, bins=bins)), confidence - (predicted == labels))
    for c in range(n_classes):
        column = start + bins * (c + 1) + bin_of(probabilities[:, c], bins=bins)
        np.add.at(sums, (patient, column), probabilities[:, c] - truth[:, c])
    np.add.at(sums[:, -1], patient, ((probabilities - truth) ** 2).sum(axis=1))
    return sums


def _centred(values: Floats, measured: float) -> Floats:
    return np.maximum(values - np.median(values) + measured, 0)
