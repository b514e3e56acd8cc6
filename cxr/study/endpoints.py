"""The secondary endpoints that docs/endpoints.md registers, of rows with several seeds, from their predictions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cxr.evaluation.bootstrap import Resampling
from cxr.evaluation.clinical_utility import Flags, decisions_of, refer_confidence, threshold_at_specificity
from cxr.evaluation.comparison import interval_over_sets
from cxr.evaluation.metrics import measure
from cxr.evaluation.rates import Floats
from cxr.study.results import (
    Figure,
    GroupResult,
    RowResult,
    Settings,
    have_same_images,
    images_of,
    labels_and_probabilities,
)
from cxr.study.text import NOTHING, figure_text, interval_text, table

_AIM = 0.95  # of the specificity on validation images, and of the answers that are right
_CONFUSED = ("viral", "bacterial")
_CALIBRATION = {
    "expected calibration error": ("ece",),
    "calibration slope": ("lines", "predicted_class", "slope"),
    "calibration intercept": ("lines", "predicted_class", "intercept"),
}
NOTE = (
    "Tables of secondary endpoints count a test image once for each seed; their numbers are means over the seeds. "
    f"Thresholds are chosen on the validation images of each seed: for a specificity of {_AIM}, and so that at least "
    f"{_AIM:.0%} of the answers are right. In brackets 95% intervals, by bootstrap over the patients; for the "
    "calibration the lowest and highest seed."
)
"""How to read the tables."""


def secondary_endpoints(results: Sequence[GroupResult], settings: Settings) -> str:
    """Return a table with a line an endpoint and a column a row of the study.

    Args:
        results: groups with the same rows and other test sets, without a patient in common.
        settings: of the bootstrap.

    Returns:
        Nothing where no row has seeds that all tested the same images.
    """
    columns: dict[str, dict[str, str]] = {}
    for first in results[0].rows:
        rows = [row for result in results if (row := result.row(first.row.name)) is not None]
        sets = [[run.predictions for run in row.runs.values() if run.predictions is not None] for row in rows]
        if len(rows) == len(results) and all(tables and have_same_images([*map(_test, tables)]) for tables in sets):
            columns[first.row.label] = {
                **_shares(sets, settings),
                "AUROC of pneumonia against normal": _auroc(sets, settings),
                **_calibration(rows),
            }
    if not columns:
        return ""
    endpoints = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = [[name, *(column.get(name, NOTHING) for column in columns.values())] for name in endpoints]
    return table(["secondary endpoint", *columns], lines)


def _test(predictions: pd.DataFrame) -> pd.DataFrame:
    return images_of(predictions, "test").sort_values("image_id", ignore_index=True)


def _shares(sets: Sequence[Sequence[pd.DataFrame]], settings: Settings) -> dict[str, str]:
    """Return each ratio of counts over all sets, with its interval and the counts."""
    by_set = [[_counts(each, settings) for each in tables] for tables in sets]
    hits = _mean_over_seeds([[hits for hits, _ in seeds] for seeds in by_set])
    counted = _mean_over_seeds([[counted for _, counted in seeds] for seeds in by_set])
    patients = np.concatenate([_test(tables[0])["patient_id"].astype(str).to_numpy() for tables in sets])
    draws = Resampling(patients, settings.resamples, settings.seed)
    texts = {}
    for name, between in zip(map(str, hits), draws.ratios(hits.to_numpy(), counted.to_numpy()), strict=True):
        above, below = hits[name].sum(), counted[name].sum()
        texts[name] = NOTHING
        if below:
            texts[name] = f"{interval_text(above / below, between)}: {above:,.0f} of {below:,.0f}"
    return texts


def _mean_over_seeds(sets: Sequence[Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """Return the mean over the tables of each set, in the columns that all have; the sets stand one below the other."""
    means = [pd.concat(tables, keys=range(len(tables)), join="inner").groupby(level=1).mean() for tables in sets]
    return pd.concat(means, ignore_index=True, join="inner")


def _counts(predictions: pd.DataFrame, settings: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what each test image, in the order of `_test`, adds to numerator and denominator of each ratio."""
    chosen_on = images_of(predictions, "validation")
    labels, probabilities, classes = labels_and_probabilities(_test(predictions))
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    found: dict[str, tuple[Flags, Flags]] = {
        f"recall of {name}": (right, labels == number) for number, name in enumerate(classes)
    }
    threshold = _pneumonia_threshold(chosen_on)
    if threshold is not None:
        scores, positive = decisions_of(classes, labels, probabilities)["pneumonia"]
        found["sensitivity for pneumonia"] = scores > threshold, positive
        found["specificity for pneumonia"] = scores <= threshold, ~positive
    if set(_CONFUSED) <= set(classes):
        confused = [classes.index(name) for name in _CONFUSED]
        found[f"errors between {' and '.join(_CONFUSED)}"] = (
            np.isin(labels, confused) & np.isin(predicted, confused),
            ~right,
        )
    kept = _answered(chosen_on, probabilities.max(axis=1), settings)
    found["images answered, not referred"] = kept, np.ones_like(right)
    found["answers that are right"] = right, kept
    counted = pd.DataFrame({name: of for name, (_, of) in found.items()})
    hits = pd.DataFrame({name: hit for name, (hit, _) in found.items()}) & counted
    return hits.astype(float), counted.astype(float)


def _pneumonia_threshold(chosen_on: pd.DataFrame) -> float | None:
    labels, probabilities, classes = labels_and_probabilities(chosen_on)
    decided = decisions_of(classes, labels, probabilities).get("pneumonia")
    return None if decided is None else threshold_at_specificity(*decided, _AIM)


def _answered(chosen_on: pd.DataFrame, confidence: Floats, settings: Settings) -> Flags:
    """Return which of the images with this confidence (N,) are answered: none where no threshold reaches the aim."""
    labels, probabilities, _ = labels_and_probabilities(chosen_on)
    draws = Resampling(chosen_on["patient_id"].astype(str).to_numpy(), settings.resamples, settings.seed)
    right = probabilities.argmax(axis=1) == labels
    threshold = refer_confidence(probabilities.max(axis=1), right, accuracy=_AIM, draws=draws)
    return np.zeros(len(confidence), bool) if threshold is None else confidence >= threshold


def _auroc(sets: Sequence[Sequence[pd.DataFrame]], settings: Settings) -> str:
    """Return the mean over the sets of the mean over the seeds, with its interval."""
    if any("p_normal" not in each for tables in sets for each in tables):
        return NOTHING
    decided = [[_pneumonia_or_normal(_test(each)) for each in tables] for tables in sets]
    mean = float(np.mean([np.mean([_macro_auroc(each) for each in tables]) for tables in decided]))
    interval = interval_over_sets(decided, resamples=settings.resamples, seed=settings.seed)["macro_auroc"]
    return NOTHING if interval is None else interval_text(mean, interval)


def _macro_auroc(predictions: pd.DataFrame) -> float:
    value = measure(*labels_and_probabilities(predictions)).overall["macro_auroc"]
    return np.nan if value is None else value


def _pneumonia_or_normal(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions with all classes but normal as one.

    Of two classes, both have the same AUROC, so their macro AUROC is that of pneumonia.
    """
    normal = predictions["label"] == "normal"
    return predictions[["image_id", "patient_id", "p_normal"]].assign(
        label=np.where(normal, "normal", "pneumonia"), p_pneumonia=1 - predictions["p_normal"]
    )


def _calibration(rows: Sequence[RowResult]) -> dict[str, str]:
    """Return the means over the runs, with the lowest and the highest."""
    texts = {}
    for name, path in _CALIBRATION.items():
        values = []
        for run in (run for row in rows for run in row.runs.values()):
            found = (run.metrics or {}).get("calibration")
            for key in path:
                found = found.get(key) if isinstance(found, dict) else None
            if isinstance(found, float):
                values.append(found)
        texts[name] = figure_text(Figure(float(np.mean(values)), min(values), max(values)) if values else None)
    return texts
