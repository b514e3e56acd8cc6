"""From runs to figures: which run belongs to a row, and the figures of one and of several seeds."""

from dataclasses import replace

import numpy as np
import pytest

from cxr.evaluation.metrics import measure
from cxr.study.results import (
    GroupResult,
    RunRecord,
    Settings,
    have_same_images,
    labels_and_probabilities,
    pooled,
    stale_tags,
    study_results,
)
from cxr.study.spec import Study
from tests.support.projects.study_runs import predictions, record, small_study

SETTINGS = Settings(resamples=200, seed=1)


def every_run(study: Study, *, skill: dict[str, float]) -> list[RunRecord]:
    return [
        record(group, row, seed, skill=skill[row.name])
        for group in study.groups
        for row in group.rows
        for seed in group.seeds_of(row)
        if row.name in skill
    ]


def only_group(study: Study, records: list[RunRecord]) -> GroupResult:
    (result,) = study_results(study, records, SETTINGS)
    return result


def test_several_seeds_give_mean_lowest_and_highest_value() -> None:
    study = small_study()
    records = every_run(study, skill={"plain": 1.0, "mixup": 1.0})
    each = [
        measure(*labels_and_probabilities(run.validation)).overall["macro_f1"]
        for run in records[:2]
        if run.validation is not None
    ]
    figure = only_group(study, records).rows[0].validation["macro_f1"]
    assert (figure.value, figure.low, figure.high) == (pytest.approx(np.mean(each)), min(each), max(each))


def test_one_seed_gives_the_interval_over_patients() -> None:
    study = small_study(seeds=[1])
    figure = only_group(study, every_run(study, skill={"plain": 1.0})).rows[0].validation["accuracy"]
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < figure.value < figure.high


def test_row_without_runs_has_no_figures() -> None:
    study = small_study()
    row = only_group(study, every_run(study, skill={"plain": 1.0})).rows[1]
    assert (row.row.name, row.runs, row.validation, row.test, row.to_baseline) == ("mixup", {}, {}, {}, None)


def test_differences_to_the_baseline_are_paired_by_image_and_seed() -> None:
    study = small_study()
    result = only_group(study, every_run(study, skill={"plain": 0.5, "mixup": 4.0}))
    assert result.rows[0].to_baseline is None
    found = result.rows[1].to_baseline
    assert found is not None
    ours, theirs = (row.validation["macro_f1"].value for row in (result.rows[1], result.rows[0]))
    assert found["macro_f1"].value == pytest.approx(ours - theirs)
    assert found["macro_f1"].interval is not None
    assert found["macro_f1"].interval.low > 0
    assert found["nll"].value < 0


def test_rows_with_other_validation_images_are_not_compared() -> None:
    study = small_study(seeds=[1])
    (group,) = study.groups
    records = [record(group, group.rows[0], 1, skill=1.0), record(group, group.rows[1], 1, skill=1.0, first=7)]
    assert only_group(study, records).rows[1].to_baseline is None


def test_run_with_other_settings_is_not_used_and_is_named() -> None:
    study = small_study(seeds=[1])
    (group,) = study.groups
    records = [
        record(group, group.rows[0], 1, skill=1.0),
        record(group, group.rows[1], 1, skill=1.0, params={"train.mixup": "0.4"}),
    ]
    assert only_group(study, records).rows[1].runs == {}
    assert stale_tags(study, records) == ["study.ablation.mixup.1"]


def test_settings_are_compared_with_recorded_strings_numbers_and_lists() -> None:
    settings = {
        "train.weights": "none",
        "train.zoom": [0.9, 1.1],
        "train.rotation_deg": 5,
        "train.rates": {"head": 1e-3},
    }
    study = small_study(seeds=[1], set=settings)
    (group,) = study.groups
    written = {
        "train.weights": "none",
        "train.zoom": "[0.9, 1.1]",
        "train.rotation_deg": "5.0",
        "train.rates.head": "0.001",
    }
    assert only_group(study, [record(group, group.rows[0], 1, skill=1.0, params=written)]).rows[0].runs
    other = record(group, group.rows[0], 1, skill=1.0, params=written | {"train.rates.head": "0.002"})
    assert not only_group(study, [other]).rows[0].runs


def test_newest_of_several_runs_is_used() -> None:
    study = small_study(seeds=[1])
    (group,) = study.groups
    older = record(group, group.rows[0], 1, skill=1.0)
    newer = replace(older, run_id="f" * 32)
    assert only_group(study, [older, newer]).rows[0].runs[1].run_id == "f" * 32


def test_untested_run_is_not_used_in_a_tested_group() -> None:
    study = small_study(seeds=[1], tested=True)
    (group,) = study.groups
    tested = record(group, group.rows[0], 1, skill=2.0)
    result = only_group(study, [tested, replace(tested, metrics=None, predictions=None)])
    assert result.rows[0].test["accuracy"].value == (tested.metrics or {})["accuracy"]
    assert (result.rows[0].test["accuracy"].low, result.rows[0].test["accuracy"].high) == (0.5, 0.9)
    assert not only_group(study, [replace(tested, metrics=None)]).rows[0].runs


def test_folds_are_pooled_into_one_figure() -> None:
    folds = [predictions(skill=1.0, seed=n, first=60 * n) for n in range(3)]
    each = [measure(*labels_and_probabilities(table)).overall["accuracy"] for table in folds]
    assert pooled(folds, SETTINGS)["accuracy"].value == pytest.approx(np.mean(each))


def test_tables_with_other_images_or_classes_are_not_comparable() -> None:
    table = predictions(skill=1.0, seed=1)
    assert have_same_images([table, table[::-1]])
    assert not have_same_images([table, predictions(skill=1.0, seed=1, first=1)])
    assert not have_same_images([table, table.rename(columns={"p_viral": "p_covid"})])
    assert not have_same_images([table, table.replace({"label": {"viral": "bacterial"}})])  # relabelled since


def test_rows_with_other_labels_are_shown_as_not_comparable() -> None:
    rows = [{"name": "plain", "label": "plain"}, {"name": "other", "label": "other"}]
    study = small_study(rows=rows, seeds=[1], baseline="plain")
    first, second = every_run(study, skill={"plain": 1.0, "other": 2.0})
    assert second.validation is not None
    relabelled = replace(second, validation=second.validation.replace({"label": {"viral": "bacterial"}}))
    assert only_group(study, [first, relabelled]).rows[1].to_baseline is None
