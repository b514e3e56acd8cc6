"""The secondary endpoints of docs/endpoints.md on docs/results.md."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from cxr.study.endpoints import secondary_endpoints
from cxr.study.findings import findings
from cxr.study.results import GroupResult, RunRecord, Settings, study_results
from cxr.study.spec import Study
from tests.support.projects.study_runs import CLASSES, record, small_study

SETTINGS = Settings(resamples=200, seed=1)


def headline_study() -> Study:
    return small_study(tested=True, headline=True, rows=[{"name": "plain", "label": "unchanged"}])


def results(study: Study, records: list[RunRecord]) -> list[GroupResult]:
    return study_results(study, records, SETTINGS)


def cells(text: str) -> dict[str, str]:
    """Return the text of each endpoint, of the only row."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return dict(lines[2:])


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d+\.?\d*", text)]


def parts(run: RunRecord) -> Mapping[str, pd.DataFrame]:
    assert run.predictions is not None
    return dict(iter(run.predictions.groupby("split")))


def mean_over(runs: list[RunRecord], measure: object) -> float:
    assert callable(measure)
    return float(np.mean([measure(parts(run)) for run in runs]))


def predicted(table: pd.DataFrame) -> pd.Series:
    return table[[f"p_{name}" for name in CLASSES]].idxmax(axis=1).str.removeprefix("p_")


def sensitivity(split: Mapping[str, pd.DataFrame]) -> float:
    """Return the sensitivity at the threshold above which 1 in 20 normal validation images lies."""
    chosen_on, test = split["validation"], split["test"]
    normal = np.sort(1 - chosen_on.loc[chosen_on["label"] == "normal", "p_normal"])
    threshold = normal[int(np.ceil(0.95 * len(normal))) - 1]
    ill = test[test["label"] != "normal"]
    return float((1 - ill["p_normal"] > threshold).mean())


def test_recall_sensitivity_and_auroc_are_means_over_the_seeds_with_intervals() -> None:
    study = headline_study()
    (group,) = study.groups
    runs = [record(group, group.rows[0], seed, skill=1.5) for seed in group.seeds]
    found = cells(secondary_endpoints(results(study, runs), SETTINGS))

    def recall(split: Mapping[str, pd.DataFrame]) -> float:
        test = split["test"]
        return float(recall_score(test["label"], predicted(test), labels=["viral"], average=None)[0])

    def auroc(split: Mapping[str, pd.DataFrame]) -> float:
        test = split["test"]
        return float(roc_auc_score(test["label"] != "normal", 1 - test["p_normal"]))

    for name, measure in (
        ("recall of viral", recall),
        ("sensitivity for pneumonia", sensitivity),
        ("AUROC of pneumonia against normal", auroc),
    ):
        value, low, high, *_ = numbers(found[name])
        assert value == pytest.approx(mean_over(runs, measure), abs=6e-4), name
        assert low < value < high, name


def test_errors_between_the_pneumonias_are_counted_with_all_errors_over_the_seeds() -> None:
    study = headline_study()
    (group,) = study.groups
    runs = [record(group, group.rows[0], seed, skill=1.0) for seed in group.seeds]
    text = cells(secondary_endpoints(results(study, runs), SETTINGS))["errors between viral and bacterial"]
    tests = pd.concat([parts(run)["test"] for run in runs])
    wrong = tests[predicted(tests) != tests["label"]]
    between = wrong[(wrong["label"] != "normal") & (predicted(wrong) != "normal")]
    assert numbers(text)[0] == pytest.approx(len(between) / len(wrong), abs=6e-4)
    assert text.endswith(f": {len(between) / 2:,.0f} of {len(wrong) / 2:,.0f}")


def test_model_that_cannot_be_sure_answers_nothing() -> None:
    study = headline_study()
    (group,) = study.groups
    guessing = [record(group, group.rows[0], seed, skill=0.0) for seed in group.seeds]
    sure = [record(group, group.rows[0], seed, skill=9.0) for seed in group.seeds]
    found = cells(secondary_endpoints(results(study, guessing), SETTINGS))
    assert found["images answered, not referred"].endswith(": 0 of 60")
    assert found["answers that are right"] == "-"
    assert cells(secondary_endpoints(results(study, sure), SETTINGS))["images answered, not referred"].endswith("of 60")
    assert numbers(cells(secondary_endpoints(results(study, sure), SETTINGS))["answers that are right"])[0] > 0.95


def test_several_test_sets_are_counted_together() -> None:
    study = headline_study()
    (first,) = study.groups
    second = first.model_copy(update={"name": "second"})
    study = Study(groups=[first, second])
    runs = [
        record(group, group.rows[0], seed, skill=1.0 + number, first=500 * number)
        for number, group in enumerate(study.groups)
        for seed in group.seeds
    ]
    both = results(study, runs)
    together = cells(secondary_endpoints(both, SETTINGS))["recall of viral"]
    apart = [cells(secondary_endpoints([each], SETTINGS))["recall of viral"] for each in both]
    assert together.endswith("of 40")
    assert numbers(together)[0] == pytest.approx(np.mean([numbers(each)[0] for each in apart]), abs=1e-3)


def test_seeds_with_images_of_their_own_have_no_such_table() -> None:
    study = headline_study()
    (group,) = study.groups
    moved = [record(group, group.rows[0], seed, skill=1.0, first=6 * seed) for seed in group.seeds]
    assert secondary_endpoints(results(study, moved), SETTINGS) == ""
    assert secondary_endpoints(results(study, []), SETTINGS) == ""
    (result,) = results(study, moved)
    assert all(findings(result, {}, SETTINGS))


def test_calibration_is_the_mean_of_the_seeds_with_the_lowest_and_the_highest() -> None:
    study = headline_study()
    (group,) = study.groups
    runs = []
    for seed, slope in zip(group.seeds, (0.8, 1.4), strict=True):
        run = record(group, group.rows[0], seed, skill=1.0)
        assert run.metrics is not None
        lines = {"predicted_class": {"slope": slope, "intercept": 0.1}}
        runs.append(
            RunRecord(**{**vars(run), "metrics": {**run.metrics, "calibration": {"ece": 0.05, "lines": lines}}})
        )
    found = cells(secondary_endpoints(results(study, runs), SETTINGS))
    assert found["calibration slope"] == "1.100 (0.800 to 1.400)"
    assert found["expected calibration error"] == "0.050 (0.050 to 0.050)"
    plain = [record(group, group.rows[0], seed, skill=1.0) for seed in group.seeds]
    assert cells(secondary_endpoints(results(study, plain), SETTINGS))["calibration slope"] == "-"
