"""Bootstrap intervals contain the measured value, resample patients, and are None with too little data."""

import json

import numpy as np
import pytest

from cxr.evaluation.bootstrap import CLASS_FIGURES, Interval, Intervals, Resampling, bootstrap_intervals, patient_draws
from cxr.evaluation.calibration import measure_calibration
from cxr.evaluation.metrics import measure

CLASSES = ("normal", "viral", "bacterial")


def predictions(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    scores = generator.random((n, 3))
    scores[np.arange(n), labels] += 0.4
    return labels, scores / scores.sum(axis=1, keepdims=True)


def intervals_of(
    labels: np.ndarray, probabilities: np.ndarray, patients: list[str] | None = None, seed: int = 1
) -> Intervals:
    patients = patients or [f"p{i}" for i in range(len(labels))]
    return bootstrap_intervals(labels, probabilities, patients, CLASSES, resamples=400, seed=seed, bins=10)


def width(interval: Interval | None) -> float:
    assert interval is not None
    return interval.high - interval.low


def test_each_interval_holds_the_measured_value() -> None:
    labels, probabilities = predictions(150)
    measured, intervals = measure(labels, probabilities, CLASSES), intervals_of(labels, probabilities)
    errors = measure_calibration(labels, probabilities, bins=10)
    pairs = [(value, intervals.overall[name]) for name, value in measured.overall.items()]
    pairs += [(getattr(errors, name), intervals.overall[name]) for name in ("ece", "classwise_ece", "brier")]
    pairs += [
        (getattr(measured.per_class[name], figure), intervals.per_class[name][figure])
        for name in CLASSES
        for figure in CLASS_FIGURES
    ]
    assert all(interval.low <= value <= interval.high for value, interval in pairs)
    assert all(width(interval) > 0 for _, interval in pairs)


def test_the_interval_of_an_accuracy_has_the_width_that_theory_gives() -> None:
    labels, probabilities = predictions(600)
    accuracy = measure(labels, probabilities, CLASSES).overall["accuracy"]
    expected = 2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 600)
    assert width(intervals_of(labels, probabilities).overall["accuracy"]) == pytest.approx(expected, rel=0.15)


def test_fewer_patients_widen_the_intervals() -> None:
    many, few = (intervals_of(*predictions(n)) for n in (600, 60))
    assert width(few.overall["accuracy"]) > 2 * width(many.overall["accuracy"])
    assert width(few.overall["macro_auroc"]) > 2 * width(many.overall["macro_auroc"])


def test_identical_images_of_one_patient_count_little_more_than_one() -> None:
    labels, probabilities = predictions(60)
    labels, probabilities = np.repeat(labels, 4), np.repeat(probabilities, 4, axis=0)
    by_patient = intervals_of(labels, probabilities, [f"p{i // 4}" for i in range(len(labels))])
    by_image = intervals_of(labels, probabilities)
    assert width(by_patient.overall["accuracy"]) > 1.6 * width(by_image.overall["accuracy"])
    assert by_patient.patients == 60


def test_the_seed_decides_the_intervals() -> None:
    labels, probabilities = predictions(90)
    assert intervals_of(labels, probabilities) == intervals_of(labels, probabilities)
    assert intervals_of(labels, probabilities) != intervals_of(labels, probabilities, seed=2)


def test_a_class_missing_from_many_resamples_has_no_interval() -> None:
    labels, probabilities = predictions(40)
    labels = np.where(np.arange(40) == 2, 2, labels % 2)  # one bacterial image
    intervals = intervals_of(labels, probabilities)
    assert intervals.per_class["bacterial"]["recall"] is None
    assert intervals.overall["macro_f1"] is None
    assert intervals.overall["accuracy"] is not None
    assert 80 < intervals.incomplete < 220  # 37% of 400
    json.dumps(intervals.to_json(), allow_nan=False)


def test_averages_keep_an_interval_without_images_of_a_class() -> None:
    labels, probabilities = predictions(60)
    intervals = intervals_of(labels % 2, probabilities)
    assert intervals.per_class["bacterial"]["f1"] is None
    assert intervals.per_class["bacterial"]["specificity"] is not None
    assert intervals.overall["macro_f1"] is not None
    assert intervals.incomplete == 0


def test_too_few_patients_have_no_interval() -> None:
    intervals = intervals_of(*predictions(90), [f"p{i % 9}" for i in range(90)])
    assert intervals.overall["accuracy"] is None
    assert intervals.to_json()["ece"] is None


def test_accuracy_as_a_ratio_of_sums_has_the_same_interval() -> None:
    labels, probabilities = predictions(90)
    right = (probabilities.argmax(axis=1) == labels).astype(float)[:, None]
    patients = [f"p{i // 3}" for i in range(90)]
    (interval,) = Resampling(np.array(patients), 400, 1).ratios(right, np.ones((90, 1)))
    expected = intervals_of(labels, probabilities, patients).overall["accuracy"]
    assert interval is not None
    assert expected is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_a_brier_score_has_the_interval_of_a_mean_over_images() -> None:
    labels, probabilities = predictions(90)
    squares = ((probabilities - np.eye(3)[labels]) ** 2).sum(axis=1)[:, None]
    (interval,) = Resampling(np.arange(90), 2000, 5).ratios(squares, np.ones((90, 1)))
    brier = bootstrap_intervals(
        labels, probabilities, [str(i) for i in range(90)], CLASSES, resamples=2000, seed=5, bins=10
    ).overall["brier"]
    assert interval is not None
    assert brier is not None
    assert (interval.low, interval.high) == pytest.approx((brier.low, brier.high))


def test_a_ratio_that_most_resamples_cannot_define_has_no_interval() -> None:
    rare, always = np.eye(40)[:, :1], np.ones((40, 1))
    below = np.concatenate([rare, always], axis=1)
    undefined, defined = Resampling(np.arange(40), 200, 0).ratios(below, below)
    assert undefined is None
    assert defined == Interval(1.0, 1.0)


def test_the_interval_of_a_median_holds_it_and_counts_patients() -> None:
    values = np.random.default_rng(0).normal(size=101)
    by_image = Resampling(np.arange(101), 500, 0).median(values)
    assert by_image is not None
    assert by_image.low < np.median(values) < by_image.high
    repeated = Resampling(np.repeat(np.arange(101), 4), 500, 0).median(np.repeat(values, 4))
    assert width(repeated) == pytest.approx(width(by_image), rel=0.3)
    assert Resampling(np.arange(101) % 9, 500, 0).median(values) is None


def test_resamples_do_not_depend_on_the_chunk_size() -> None:
    whole, parts = (np.concatenate(list(patient_draws(20, 50, seed=3, width=width))) for width in (0, 200_000))
    assert np.array_equal(whole, parts)
    assert (whole.sum(axis=1) == 20).all()
