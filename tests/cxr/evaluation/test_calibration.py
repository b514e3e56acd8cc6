"""Temperature scaling calibrates probabilities and changes no predicted class."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from cxr.evaluation.calibration import (
    BIAS_RANGE,
    TEMPERATURE_RANGE,
    bin_of,
    fit_temperature,
    fit_temperature_and_bias,
    measure_calibration,
    reliability_table,
)
from cxr.models.forward import softmax_with_temperature


def sharp_logits(sharpness: float, n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose true temperature is `sharpness`: labels are drawn from the softmax of logits / sharpness."""
    generator = np.random.default_rng(0)
    honest = generator.normal(size=(n, 3)) * 1.5
    shares = softmax_with_temperature(honest, 1.0)
    labels = (generator.random((n, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    return (honest * sharpness).astype(np.float32), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_fit_finds_a_known_temperature(sharpness: float) -> None:
    assert fit_temperature(*sharp_logits(sharpness)) == pytest.approx(sharpness, rel=0.1)


def test_scaling_lowers_the_errors_and_keeps_the_predicted_class() -> None:
    logits, labels = sharp_logits(3.0)
    before = softmax_with_temperature(logits, 1.0)
    after = softmax_with_temperature(logits, fit_temperature(logits, labels))
    errors_before, errors_after = (measure_calibration(labels, p, bins=15) for p in (before, after))
    assert errors_after.nll < errors_before.nll
    assert errors_after.ece < errors_before.ece / 3
    assert errors_after.classwise_ece < errors_before.classwise_ece
    assert errors_after.brier < errors_before.brier
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))


def test_a_validation_set_without_error_stays_in_range() -> None:
    labels = np.arange(30) % 3
    assert fit_temperature(np.eye(3)[labels], labels) == pytest.approx(TEMPERATURE_RANGE[0], rel=1e-3)


def test_the_fit_finds_a_known_bias_and_temperature() -> None:
    logits, labels = sharp_logits(2.0)
    shifted = logits + np.array([1.0, -0.4, -0.6]) * 2.0
    temperature, bias = fit_temperature_and_bias(shifted, labels)
    assert temperature == pytest.approx(2.0, rel=0.1)
    assert bias == pytest.approx((-1.0, 0.4, 0.6), abs=0.15)
    assert sum(bias) == pytest.approx(0, abs=1e-9)
    with_bias = softmax_with_temperature(shifted, temperature, bias)
    without = softmax_with_temperature(shifted, fit_temperature(shifted, labels))
    assert measure_calibration(labels, with_bias, bins=15).nll < measure_calibration(labels, without, bins=15).nll
    assert (with_bias.argmax(axis=1) == labels).mean() > (without.argmax(axis=1) == labels).mean()


def test_a_class_without_images_gets_a_finite_bias() -> None:
    logits, labels = sharp_logits(1.0, n=300)
    _, bias = fit_temperature_and_bias(logits[labels < 2], labels[labels < 2])
    assert bias[2] < min(bias[:2])
    assert max(bias) - min(bias) <= BIAS_RANGE[1] - BIAS_RANGE[0]


def test_without_images_there_is_no_bias() -> None:
    assert fit_temperature_and_bias(np.zeros((0, 2)), np.zeros(0, np.int64)) == (1.0, (0.0, 0.0))


def test_without_images_the_temperature_is_1() -> None:
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64)) == 1.0


def test_errors_follow_their_definitions() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.35, 0.65], [0.6, 0.4]])
    errors = measure_calibration(labels, probabilities, bins=2)
    # all confidences (0.9, 0.7, 0.65, 0.6) share the upper bin, 3 of 4 are right
    assert errors.ece == pytest.approx(abs((0.9 + 0.7 + 0.65 + 0.6) / 4 - 0.75))
    # each class: lower bin and upper bin, |sum of probabilities - sum of truth| / 4
    assert errors.classwise_ece == pytest.approx((abs(0.35 - 0) + abs(2.2 - 2)) / 4)
    assert errors.brier == pytest.approx(2 * (0.1**2 + 0.3**2 + 0.35**2 + 0.6**2) / 4)
    assert errors.nll == pytest.approx(log_loss(labels, probabilities))


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    assert np.isfinite(measure_calibration(np.array([1]), np.array([[1.0, 0.0]]), bins=5).nll)


def test_the_reliability_table_counts_every_image_once() -> None:
    logits, labels = sharp_logits(1.0, n=200)
    table = reliability_table(labels, softmax_with_temperature(logits, 1.0), bins=10)
    assert sum(row.count for row in table) == 200
    assert [row.confidence for row in table] == sorted(row.confidence for row in table)
    assert all(row.count for row in table)


def test_probability_1_belongs_to_the_last_bin() -> None:
    assert bin_of(np.array([0.0, 0.1, 1.0]), bins=10).tolist() == [0, 1, 9]
