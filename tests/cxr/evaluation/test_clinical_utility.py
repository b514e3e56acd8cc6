"""Operating points, referral and net benefit on a few images, counted by hand."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from cxr.evaluation.bootstrap import Resampling
from cxr.evaluation.clinical_utility import (
    DECISION_THRESHOLDS,
    abstention_curve,
    decision_curve,
    decisions_of,
    operating_point,
    refer,
    refer_confidence,
    threshold_at_specificity,
)

RIGHT = np.array([True] * 9 + [False] + [True] * 6 + [False] * 4)
CONFIDENCE = np.linspace(0.99, 0.42, 20)


def draws(n: int) -> Resampling:
    return Resampling(np.arange(n), resamples=200, seed=1)


@pytest.mark.parametrize(
    ("specificity", "threshold"),
    [
        (0.90, 0.9),  # nine of ten healthy images are at or below it
        (0.95, 1.0),  # ten are needed
        (0.85, 0.9),  # 8.5 are needed, so nine
        (0.05, 0.1),
        (1.0, 1.0),
    ],
)
def test_the_threshold_keeps_the_target_share_of_negative_images_below(specificity: float, threshold: float) -> None:
    scores = np.array([0.5, 0.3, 0.1, 0.2, 0.4, 0.6, 0.9, 0.8, 0.7, 1.0, 0.05])
    ill = np.arange(11) == 10
    assert threshold_at_specificity(scores, ill, specificity) == threshold


def test_negative_images_with_equal_scores_stay_on_one_side() -> None:
    scores, ill = np.array([0.1, 0.2, 0.2, 0.2, 0.9]), np.zeros(5, bool)
    threshold = threshold_at_specificity(scores, ill, 0.5)
    assert threshold == 0.2
    assert (scores <= threshold).mean() == 0.8


def test_without_negative_images_there_is_no_threshold() -> None:
    assert threshold_at_specificity(np.array([0.4]), np.array([True]), 0.9) is None


def test_an_operating_point_counts_what_lies_above_its_threshold() -> None:
    scores = np.array([0.9, 0.8, 0.5, 0.2, 0.6, 0.5, 0.1, 0.1, 0.1, 0.1])
    point = operating_point(scores, np.arange(10) < 4, threshold=0.5, target_specificity=0.9, draws=draws(10))
    assert (point.sensitivity.value, point.sensitivity.of) == (0.5, 4)
    assert point.specificity.value == pytest.approx(5 / 6)
    assert point.specificity.of == 6
    assert point.specificity.interval is not None
    assert point.specificity.interval.low < 5 / 6 <= point.specificity.interval.high


def test_test_images_of_one_side_leave_the_other_rate_undefined() -> None:
    point = operating_point(np.full(12, 0.9), np.ones(12, bool), threshold=0.5, target_specificity=0.9, draws=draws(12))
    assert point.specificity.to_json() == {"value": None, "ci95": None, "of": 0}
    assert point.sensitivity.value == 1.0


@pytest.mark.parametrize("accuracy", [0.6, 0.65, 0.7])
def test_as_many_images_are_kept_as_the_bound_of_their_accuracy_allows(accuracy: float) -> None:
    threshold = refer_confidence(CONFIDENCE, RIGHT, accuracy=accuracy, draws=draws(20))
    assert threshold is not None
    hits = np.cumsum(RIGHT)
    surely = [n for n in range(1, 21) if binomtest(int(hits[n - 1]), n).proportion_ci(0.9, "exact").low >= accuracy]
    assert np.count_nonzero(threshold <= CONFIDENCE) == max(surely)


def test_few_images_without_an_error_are_not_enough() -> None:
    confidence = np.linspace(0.99, 0.5, 70)
    assert refer_confidence(confidence[:58], np.ones(58, bool), accuracy=0.95, draws=draws(58)) is None
    found = refer_confidence(confidence[:59], np.ones(59, bool), accuracy=0.95, draws=draws(59))
    assert found == confidence[58]
    assert refer_confidence(np.zeros(0), np.zeros(0, bool), accuracy=0.5, draws=draws(0)) is None


def test_images_of_equal_confidence_are_kept_or_referred_together() -> None:
    confidence, right = np.array([0.9] * 60 + [0.6] * 40), np.array([True] * 80 + [False] * 20)
    assert refer_confidence(confidence, right, accuracy=0.95, draws=draws(100)) == 0.9


def test_similar_images_of_a_patient_make_the_bound_lower() -> None:
    right = np.arange(200) % 10 > 0
    right = np.sort(right)[::-1]  # 180 right ones, the errors are those of the last two patients of ten
    alone, together = draws(200), Resampling(np.arange(200) // 20, resamples=500, seed=1)
    confidence = np.full(200, 0.7)
    assert refer_confidence(confidence, right, accuracy=0.85, draws=alone) == 0.7
    assert refer_confidence(confidence, right, accuracy=0.85, draws=together) is None


def test_the_accuracy_is_kept_on_new_images_far_more_often_than_not() -> None:
    generator = np.random.default_rng(5)
    kept_it = []
    for _ in range(200):
        confidence = generator.uniform(0.34, 1, 400)
        right = generator.random(400) < confidence  # calibrated: the accuracy above t is (1 + t) / 2
        found = refer_confidence(confidence, right, accuracy=0.85, draws=draws(400))
        kept_it.append(found is None or (1 + found) / 2 >= 0.85)
    assert np.mean(kept_it) > 0.85


def test_referral_counts_images_kept_right_ones_and_errors_caught() -> None:
    referral = refer(CONFIDENCE, RIGHT, threshold=float(CONFIDENCE[11]), draws=draws(20))
    assert (referral.coverage.value, referral.coverage.of) == (0.6, 20)
    assert referral.accuracy_on_kept.value == pytest.approx(11 / 12)
    assert referral.accuracy_on_kept.of == 12
    assert (referral.errors_caught.value, referral.errors_caught.of) == (0.8, 5)
    json.dumps(referral.to_json(), allow_nan=False)


def test_without_errors_the_share_caught_is_undefined() -> None:
    referral = refer(CONFIDENCE, np.ones(20, bool), threshold=0.7, draws=draws(20))
    assert referral.errors_caught.value is None
    assert referral.accuracy_on_kept.value == 1.0


def test_the_abstention_curve_runs_from_the_most_confident_images_to_all() -> None:
    curve = abstention_curve(CONFIDENCE, RIGHT, draws(20))
    assert [round(point.coverage, 2) for point in curve] == [share / 100 for share in range(5, 101, 5)]
    accuracy = {round(point.coverage, 2): point.accuracy for point in curve}
    assert accuracy[0.45] == 1.0
    assert accuracy[0.5] == pytest.approx(0.9)
    assert accuracy[1.0] == pytest.approx(0.75)
    last = curve[-1].interval
    assert last is not None
    assert last.low < 0.75 < last.high


def test_images_of_equal_confidence_make_one_point_of_the_curve() -> None:
    curve = abstention_curve(np.full(12, 0.5), np.arange(12) < 6, draws(12))
    assert [(point.coverage, point.accuracy) for point in curve] == [(1.0, 0.5)]


def test_net_benefit_follows_its_definition() -> None:
    scores = np.array([0.9, 0.9, 0.3, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    curve = decision_curve(scores, np.arange(10) < 3, draws(10))
    at = DECISION_THRESHOLDS.index(0.2)
    assert curve.model[at] == pytest.approx(3 / 10 - 1 / 10 * 0.25)
    assert curve.treat_all[at] == pytest.approx(3 / 10 - 7 / 10 * 0.25)
    at = DECISION_THRESHOLDS.index(0.5)
    assert curve.model[at] == pytest.approx(2 / 10 - 1 / 10)
    assert curve.treat_all[at] == pytest.approx(3 / 10 - 7 / 10)


def test_a_good_model_is_useful_over_a_range_and_a_random_one_nowhere() -> None:
    ill = np.arange(200) % 2 == 0
    noise = np.random.default_rng(0).random(200)
    good = decision_curve(np.clip(0.6 * ill + 0.4 * noise, 0, 1), ill, draws(200))
    assert good.useful is not None
    low, high = good.useful
    assert low < 0.3
    assert high > 0.6
    assert decision_curve(noise, ill, draws(200)).useful is None
    json.dumps(good.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("classes", "questions"),
    [
        (("normal", "viral", "bacterial"), ["pneumonia", "bacterial"]),
        (("normal", "viral", "bacterial", "covid"), ["pneumonia", "bacterial"]),
        (("normal", "bacterial"), ["pneumonia"]),  # bacterial against the rest is the same question
        (("viral", "bacterial"), ["bacterial"]),
        (("viral", "covid"), []),
        (("normal",), []),
    ],
)
def test_each_set_of_classes_has_its_decisions(classes: tuple[str, ...], questions: list[str]) -> None:
    n = len(classes)
    asked = decisions_of(classes, np.arange(n), np.eye(n) * 0.8 + 0.1)
    assert list(asked) == questions
    for scores, ill in asked.values():
        assert ((scores > 0.5) == ill).all()
