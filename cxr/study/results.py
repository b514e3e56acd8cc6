"""Results of the study: pure functions from run records to figures, intervals and differences.

With one seed: the 95% interval by bootstrap over patients. With several seeds: the mean, and the lowest and highest
value. Differences between rows are paired by image and seed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from cxr.evaluation.bootstrap import headline_scores
from cxr.evaluation.comparison import Difference, compare_over_seeds
from cxr.evaluation.headline import SCORES
from cxr.evaluation.metrics import measure
from cxr.evaluation.rates import Floats, Ints
from cxr.study.spec import Group, Row, Study

_ON_VALIDATION = ("accuracy", "macro_f1")
_OF_AN_IMAGE = ("image_id", "patient_id", "label")


@dataclass(frozen=True)
class RunRecord:
    """One run of the study.

    tags, params  as in the tracking store; `params` with dotted names
    training      training.json
    validation    validation.csv, a row per image; None if the run has none
    metrics       metrics.json of the test set; None if the row was not tested
    predictions   predictions.csv; None if the row was not tested
    """

    run_id: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    training: Mapping[str, Any]
    validation: pd.DataFrame | None
    metrics: Mapping[str, Any] | None
    predictions: pd.DataFrame | None

    @property
    def train_images(self) -> int:
        """Return the number of training images."""
        prefix = "split.counts.train."
        return sum(int(value) for name, value in self.params.items() if name.startswith(prefix))

    @property
    def test_images(self) -> pd.DataFrame | None:
        """Return the predictions of the test images; None if there are none."""
        table = self.predictions
        return None if table is None else images_of(table, "test")


@dataclass(frozen=True)
class Settings:
    """Parameters of the bootstrap intervals."""

    resamples: int
    seed: int


@dataclass(frozen=True)
class Figure:
    """A value with its interval (one seed) or its lowest and highest value (several); None if undefined."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RowResult:
    """A row of the study with the runs of its seeds; figures by name.

    runs         by seed; seeds without a run are missing
    validation   macro_f1 and accuracy
    test         SCORES of cxr.evaluation.headline; empty if the row was not tested
    to_baseline  differences of macro_f1 and nll on validation; None without a baseline, or if the images differ
    """

    row: Row
    seeds: tuple[int, ...]
    runs: Mapping[int, RunRecord]
    validation: Mapping[str, Figure]
    test: Mapping[str, Figure]
    to_baseline: Mapping[str, Difference] | None


@dataclass(frozen=True)
class GroupResult:
    """A group of the study and its rows, in order."""

    group: Group
    rows: tuple[RowResult, ...]

    @property
    def was_run(self) -> bool:
        """Return whether any row has a run."""
        return any(row.runs for row in self.rows)

    def row(self, name: str) -> RowResult | None:
        """Return the row called `name`; None if there is none."""
        return next((row for row in self.rows if row.row.name == name), None)


def study_results(study: Study, records: Sequence[RunRecord], settings: Settings) -> list[GroupResult]:
    """Return the results of every group and row of the study; a row that was not run has no runs.

    Args:
        study: the groups and rows.
        records: the runs, the oldest first. A run belongs to a row if it has the row's tag and its recorded parameters
            equal the row's settings; the newest of several is used.
        settings: of the bootstrap.
    """
    return [_group_result(group, records, settings) for group in study.groups]


def stale_tags(study: Study, records: Sequence[RunRecord]) -> list[str]:
    """Return the tags of rows that were run only with other parameters than the study sets now."""
    return [
        group.tag(row, seed)
        for group in study.groups
        for row in group.rows
        for seed in group.seeds_of(row)
        if any(group.tag(row, seed) in record.tags for record in records) and not _found(group, row, seed, records)
    ]


def have_same_images(tables: Sequence[pd.DataFrame]) -> bool:
    """Return whether all tables of predictions can be compared: same images, with the same labels, and same classes."""
    keys = [(frozenset(zip(*(table[name] for name in _OF_AN_IMAGE), strict=True)), _classes(table)) for table in tables]
    return all(a == b for a, b in pairwise(keys))


def images_of(predictions: pd.DataFrame, part: str) -> pd.DataFrame:
    """Return the predictions of the images of one part of the split."""
    return predictions[predictions["split"] == part].reset_index(drop=True)


def labels_and_probabilities(table: pd.DataFrame) -> tuple[Ints, Floats, list[str]]:
    """Return class indices (N,), probabilities (N, C) and the C class names of a table of predictions."""
    classes = _classes(table)
    labels = np.array([classes.index(label) for label in table["label"]], dtype=np.int64)
    return labels, table[[f"p_{name}" for name in classes]].to_numpy(np.float64), classes


def pooled(tables: Sequence[pd.DataFrame], settings: Settings) -> dict[str, Figure]:
    """Return the scores of images that several models predicted, each image by one model."""
    return _measured(pd.concat(tables, ignore_index=True), settings)


def _group_result(group: Group, records: Sequence[RunRecord], settings: Settings) -> GroupResult:
    runs = {
        row.name: {
            seed: found for seed in group.seeds_of(row) if (found := _found(group, row, seed, records)) is not None
        }
        for row in group.rows
    }
    base = runs.get(group.baseline) if group.baseline else None
    rows = [
        RowResult(
            row=row,
            seeds=tuple(group.seeds_of(row)),
            runs=runs[row.name],
            validation=_validation(list(runs[row.name].values()), settings),
            test=_test(list(runs[row.name].values())),
            to_baseline=_to_baseline(runs[row.name], base, settings) if base and row.name != group.baseline else None,
        )
        for row in group.rows
    ]
    return GroupResult(group, tuple(rows))


def _found(group: Group, row: Row, seed: int, records: Sequence[RunRecord]) -> RunRecord | None:
    wanted = _flat(group.settings(row, seed))
    fitting = [
        record
        for record in records
        if group.tag(row, seed) in record.tags
        and all(_plain(record.params[name]) == value for name, value in wanted.items() if name in record.params)
        and (record.metrics is not None or not group.tested)
    ]
    return fitting[-1] if fitting else None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _plain(recorded: str) -> Any:
    """Return the value of a recorded parameter: strings are recorded as they are, other types as JSON."""
    try:
        return json.loads(recorded)
    except json.JSONDecodeError:
        return recorded


def _validation(runs: Sequence[RunRecord], settings: Settings) -> dict[str, Figure]:
    tables = [run.validation for run in runs if run.validation is not None]
    if len(tables) == 1:
        return {name: figure for name, figure in _measured(tables[0], settings).items() if name in _ON_VALIDATION}
    measured = [measure(*labels_and_probabilities(table)).overall for table in tables]
    return _over_seeds([{name: each[name] for name in _ON_VALIDATION} for each in measured])


def _measured(table: pd.DataFrame, settings: Settings) -> dict[str, Figure]:
    labels, probabilities, classes = labels_and_probabilities(table)
    patients = table["patient_id"].astype(str).tolist()
    draws = {"resamples": settings.resamples, "seed": settings.seed}
    scores = headline_scores(labels, probabilities, patients, classes, **draws)
    return _figures(scores, scores["ci95"])


def _test(runs: Sequence[RunRecord]) -> dict[str, Figure]:
    metrics = [run.metrics for run in runs if run.metrics is not None]
    return _figures(metrics[0], metrics[0]["ci95"]) if len(metrics) == 1 else _over_seeds(metrics)


def _figures(values: Mapping[str, Any], intervals: Mapping[str, Any]) -> dict[str, Figure]:
    found = {metric.name: metric.stored_in(values) for metric in SCORES}
    return {
        name: Figure(value, *(intervals.get(name) or (None, None)))
        for name, value in found.items()
        if value is not None
    }


def _over_seeds(values: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    figures = {}
    for metric in SCORES:
        each = [value for found in values if (value := metric.stored_in(found)) is not None]
        if each:
            figures[metric.name] = Figure(float(np.mean(each)), min(each), max(each))
    return figures


def _to_baseline(
    runs: Mapping[int, RunRecord], baseline: Mapping[int, RunRecord], settings: Settings
) -> dict[str, Difference] | None:
    pairs = [
        (ours, theirs)
        for seed, run in runs.items()
        if seed in baseline
        and (ours := run.validation) is not None
        and (theirs := baseline[seed].validation) is not None
    ]
    if not pairs or not have_same_images([table for pair in pairs for table in pair]):
        return None
    return compare_over_seeds(pairs, resamples=settings.resamples, seed=settings.seed)


def _classes(table: pd.DataFrame) -> list[str]:
    return [str(name).removeprefix("p_") for name in table if str(name).startswith("p_")]
