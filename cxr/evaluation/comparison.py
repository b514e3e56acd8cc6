"""Comparison of two models on the same images, and of two training configurations over seeds.

Two models make similar errors on the same images, so their difference has a narrower interval than either metric. The
bootstrap resamples patients, as in cxr.evaluation.bootstrap, and measures both models on the same resample (paired
bootstrap; Efron and Tibshirani 1993, chapter 8). McNemar's test uses the images that one model alone gets right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest, ttest_ind

from cxr.common.errors import DataError
from cxr.evaluation.bootstrap import MIN_PATIENTS, Interval, patient_draws, percentile_interval
from cxr.evaluation.headline import COMPARED
from cxr.evaluation.metrics import check_predictions, scores_of
from cxr.evaluation.rates import Floats, Ints, figures_of

MCNEMAR_NOTE = "McNemar's test treats images as independent; where patients have several, its p-value is too small."

_LEAST_PROBABILITY = 1e-12  # of the true class, so that the log of a rounded 0 is a number


@dataclass(frozen=True)
class Difference:
    """The first model's metric minus the second's.

    interval  the middle 95% of the resampled differences; None below 10 patients or where a class is too rare
    p_value   two-sided: twice the share of resamples on the rarer side of 0, ties counted half, one resample added to
              each side so that it is never 0 (Davison and Hinkley 1997, section 4.2); None likewise
    """

    value: float
    interval: Interval | None
    p_value: float | None


@dataclass(frozen=True)
class McNemar:
    """Images that one model alone predicts correctly, with the two-sided exact binomial p-value."""

    first_alone_right: int
    second_alone_right: int
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images; `differences` by the names of cxr.evaluation.headline.COMPARED."""

    images: int
    patients: int
    differences: dict[str, Difference]
    mcnemar: McNemar


@dataclass(frozen=True)
class SeedDifference:
    """Mean of the first configuration minus that of the second, with Welch's 95% t interval over seeds.

    Unpaired: a seed draws other images and batches for each configuration. The interval is None with fewer than two
    seeds of a configuration, or where all values of both are equal.
    """

    value: float
    interval: Interval | None
    first_seeds: int
    second_seeds: int


@dataclass(frozen=True)
class _Images:
    """The images that all models predict: class indices (N,), patient numbers (N,), how many classes and patients."""

    labels: Ints
    patient: Ints
    classes: tuple[str, ...]
    n_patients: int


def compare(first: pd.DataFrame, second: pd.DataFrame, *, resamples: int, seed: int) -> Comparison:
    """Compare two models' predictions of the same images.

    Args:
        first: a row an image, columns `image_id`, `patient_id`, `label` and `p_<class>` of each class, in any order of
            rows, as in predictions.csv and validation.csv.
        second: likewise.
        resamples: how many, 2,000 is usual.
        seed: same seed and data, same intervals.

    Raises:
        DataError: a column is missing, or images, patients, labels or classes are not the same.
    """
    images, (a, b) = _aligned([first, second])
    differences = _named(*_resampled(images, [(1, a), (-1, b)], resamples=resamples, seed=seed))
    return Comparison(
        images=len(images.labels),
        patients=images.n_patients,
        differences=differences,
        mcnemar=_mcnemar(images.labels, a, b),
    )


def compare_over_seeds(
    pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], *, resamples: int, seed: int
) -> dict[str, Difference]:
    """Compare two configurations trained with several seeds: the mean over the pairs of their differences.

    The interval covers the selection of the test images, for these seeds.

    Args:
        pairs: predictions of both configurations with the same seed, all of the same images. See `compare`.
        resamples, seed: as in `compare`.

    Returns:
        A difference for each of cxr.evaluation.headline.COMPARED, by name.

    Raises:
        DataError: as `compare`; also when there is no pair.
    """
    return compare_over_sets([pairs], resamples=resamples, seed=seed)


def compare_over_sets(
    sets: Sequence[Sequence[tuple[pd.DataFrame, pd.DataFrame]]], *, resamples: int, seed: int
) -> dict[str, Difference]:
    """Compare two configurations on several test sets: the mean over the sets of the mean over their pairs.

    The sets have no patient in common. Each set's patients are resampled on their own, so the interval covers the
    selection of the images within the sets, for these seeds, and not the selection of the sets.

    Args:
        sets: for each test set the pairs that `compare_over_seeds` takes.
        resamples, seed: as in `compare`.

    Returns:
        A difference for each of cxr.evaluation.headline.COMPARED, by name.

    Raises:
        DataError: as `compare`; also when there is no pair.
    """
    if not sets or not all(sets):
        raise DataError("there is no pair of predictions to compare")
    weighted = [[(sign, table) for pair in pairs for sign, table in zip((1, -1), pair, strict=True)] for pairs in sets]
    return _named(*_over_sets(weighted, resamples=resamples, seed=seed))


def interval_over_sets(
    sets: Sequence[Sequence[pd.DataFrame]], *, resamples: int, seed: int
) -> dict[str, Interval | None]:
    """Return the 95% interval of a configuration's mean over several test sets of the mean over its seeds.

    Args:
        sets: for each test set the predictions of the same images with each seed. See `compare`.
        resamples, seed: as in `compare`; the sets are resampled as in `compare_over_sets`.

    Returns:
        An interval for each of cxr.evaluation.headline.COMPARED, by name; None below 10 patients or where a class is
        too rare.

    Raises:
        DataError: as `compare`; also when there are no predictions.
    """
    if not sets or not all(sets):
        raise DataError("there are no predictions to measure")
    _, drawn = _over_sets([[(1, table) for table in tables] for tables in sets], resamples=resamples, seed=seed)
    return {
        metric.name: None if drawn is None else percentile_interval(drawn[:, k]) for k, metric in enumerate(COMPARED)
    }


def difference_over_seeds(first: Sequence[float], second: Sequence[float]) -> SeedDifference:
    """Compare two configurations by one value a seed (Welch 1947), where each seed has images of its own."""
    if not first or not second:
        raise DataError(f"both configurations need a value, there are {len(first)} and {len(second)}")
    value, interval = float(np.mean(first) - np.mean(second)), None
    if min(len(first), len(second)) > 1 and np.ptp(first) + np.ptp(second) > 0:
        low, high = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
        interval = Interval(float(low), float(high))
    return SeedDifference(value, interval, first_seeds=len(first), second_seeds=len(second))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method (1979), in the same order."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _aligned(tables: Sequence[pd.DataFrame]) -> tuple[_Images, list[Floats]]:
    """Return the images that all tables share, sorted by id, and each table's probabilities (N, C)."""
    first = _sorted(tables[0])
    classes = _classes(first)
    for other in map(_sorted, tables[1:]):
        _require_same(first, other)
    labels = np.array([classes.index(label) for label in first["label"]], dtype=np.int64)
    names, patient = np.unique(first["patient_id"].astype(str).to_numpy(), return_inverse=True)
    columns = [f"p_{name}" for name in classes]
    probabilities = [_sorted(table)[columns].to_numpy(np.float64) for table in tables]
    for array in probabilities:
        check_predictions(labels, array, n_classes=len(classes))
    return _Images(labels, patient.astype(np.int64), classes, len(names)), probabilities


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    absent = [name for name in ("image_id", "patient_id", "label") if name not in table]
    if absent or not _classes(table):
        raise DataError(
            f"a table of predictions needs image_id, patient_id, label and p_<class>, got {', '.join(table.columns)}"
        )
    return table.sort_values("image_id", ignore_index=True)


def _classes(table: pd.DataFrame) -> tuple[str, ...]:
    return tuple(str(name).removeprefix("p_") for name in table if str(name).startswith("p_"))


def _require_same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    if _classes(first) != _classes(second):
        raise DataError(
            f"the models have different classes: {', '.join(_classes(first))} and {', '.join(_classes(second))}; "
            "compare models of one task"
        )
    only = [sorted(set(a["image_id"]) - set(b["image_id"])) for a, b in ((first, second), (second, first))]
    if any(only) or len(first) != len(second):
        example = next((ids[0] for ids in only if ids), None)
        raise DataError(
            f"the predictions are not of the same images: {len(only[0])} images are in the first table alone and "
            f"{len(only[1])} in the second{f', such as {example}' if example else ', and one has images twice'}; "
            "compare models on one split"
        )
    for column in ("label", "patient_id"):
        differ = first.loc[(first[column] != second[column]).to_numpy(), "image_id"].tolist()
        if differ:
            raise DataError(
                f"{len(differ)} images have another {column} in the second table than in the first, such as "
                f"{differ[0]}; compare models on one manifest"
            )


def _over_sets(
    sets: Sequence[Sequence[tuple[int, pd.DataFrame]]], *, resamples: int, seed: int
) -> tuple[Floats, Floats | None]:
    """Return the mean over the sets of `_resampled`; each table has a sign, 1 or -1."""
    parts = []
    for number, signed in enumerate(sets):
        images, predictions = _aligned([table for _, table in signed])
        models = [(sign, model) for (sign, _), model in zip(signed, predictions, strict=True)]
        parts.append(_resampled(images, models, resamples=resamples, seed=seed + number))
    drawn = [resampled for _, resampled in parts if resampled is not None]
    return np.mean([each for each, _ in parts], axis=0), np.mean(drawn, axis=0) if len(drawn) == len(parts) else None


def _resampled(
    images: _Images, models: Sequence[tuple[int, Floats]], *, resamples: int, seed: int
) -> tuple[Floats, Floats | None]:
    """Return the mean of the models with the sign 1 minus that of the others, (M,) of COMPARED, and of each resample.

    The resamples are (B, M). There are none with fewer patients than MIN_PATIENTS.
    """
    seeds = sum(sign > 0 for sign, _ in models)

    def mean(counts: Floats) -> Floats:
        return np.asarray(np.sum([sign / seeds * _scores(images, model, counts) for sign, model in models], axis=0))

    measured = mean(np.ones((1, images.n_patients)))[0]
    if images.n_patients < MIN_PATIENTS:
        return measured, None
    draws = patient_draws(images.n_patients, resamples, seed=seed, width=len(images.labels))
    return measured, np.concatenate([mean(counts) for counts in draws])


def _named(measured: Floats, resampled: Floats | None) -> dict[str, Difference]:
    if resampled is None:
        return {metric.name: Difference(float(measured[k]), None, None) for k, metric in enumerate(COMPARED)}
    return {metric.name: _difference(float(measured[k]), resampled[:, k]) for k, metric in enumerate(COMPARED)}


def _difference(value: float, resampled: Floats) -> Difference:
    interval = percentile_interval(resampled)
    if interval is None:
        return Difference(value, None, None)
    known = resampled[~np.isnan(resampled)]
    ties = (known == 0).sum() / 2
    rarer = min((known > 0).sum(), (known < 0).sum()) + ties
    return Difference(value, interval, float(min(1.0, 2 * (rarer + 1) / (len(known) + 1))))


def _scores(images: _Images, probabilities: Floats, counts: Floats) -> Floats:
    """Return (B, M), the columns COMPARED, for B draws of patients (B, patients); NaN where a class is missing."""
    n_classes, labels = len(images.classes), images.labels
    sums = np.zeros((images.n_patients, n_classes**2 + 1))
    np.add.at(sums, (images.patient, labels * n_classes + probabilities.argmax(axis=1)), 1.0)
    truth = np.maximum(probabilities[np.arange(len(labels)), labels], _LEAST_PROBABILITY)
    np.add.at(sums[:, -1], images.patient, -np.log(truth))
    cells = counts @ sums
    confusion = cells[:, :-1].reshape(-1, n_classes, n_classes)
    weights = counts[:, images.patient]
    values = scores_of(figures_of(confusion, labels, probabilities, weights))
    values["nll"] = cells[:, -1] / weights.sum(axis=1)
    return np.stack([values[metric.name] for metric in COMPARED], axis=1)


def _mcnemar(labels: Ints, first: Floats, second: Floats) -> McNemar:
    a, b = first.argmax(axis=1) == labels, second.argmax(axis=1) == labels
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p_value = float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p_value)
