"""Slope and intercept of calibration: on probabilities that are right, too extreme, too high, and that separate."""

import numpy as np
import pytest

from cxr.evaluation.calibration_line import calibration_line, calibration_lines

N = 20_000
GENERATOR = np.random.default_rng(4)
TRUE_LOG_ODDS = GENERATOR.normal(0, 1.5, N)
HAPPENED = GENERATOR.random(N) < 1 / (1 + np.exp(-TRUE_LOG_ODDS))
PATIENTS = np.arange(N) // 2


def probabilities(log_odds: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-log_odds)))


@pytest.mark.parametrize(
    ("predicted", "slope", "intercept"),
    [
        (TRUE_LOG_ODDS, 1.0, 0.0),
        (2 * TRUE_LOG_ODDS, 0.5, 0.0),  # too extreme
        (TRUE_LOG_ODDS + 1, 1.0, -1.0),  # too high
    ],
)
def test_slope_and_intercept_undo_what_was_done_to_the_log_odds(
    predicted: np.ndarray, slope: float, intercept: float
) -> None:
    line = calibration_line(probabilities(predicted), HAPPENED, PATIENTS)
    assert line is not None
    assert line.slope == pytest.approx(slope, abs=0.04)
    assert line.intercept == pytest.approx(intercept, abs=0.06)
    assert line.slope_interval is not None
    assert line.intercept_interval is not None
    assert line.slope_interval.low < slope < line.slope_interval.high
    assert line.slope_interval.high - line.slope_interval.low < 0.1


@pytest.mark.parametrize(("sureness", "right"), [(4.0, 0.5), (5.0, 0.7), (7.0, 0.6)])
def test_far_too_sure_predictions_have_a_line(sureness: float, right: float) -> None:
    """As on a set from elsewhere: the first step from an intercept of 0 leads far past the solution."""
    log_odds = GENERATOR.normal(sureness, 1, 300)
    happened = GENERATOR.random(300) < right
    line = calibration_line(probabilities(log_odds), happened, np.arange(300))
    assert line is not None
    recalibrated = probabilities(log_odds + line.intercept)
    assert recalibrated.mean() == pytest.approx(happened.mean()), "what the intercept means: right on average"


def test_copies_of_an_image_do_not_narrow_the_interval() -> None:
    few = slice(0, 400)
    once = calibration_line(probabilities(TRUE_LOG_ODDS[few]), HAPPENED[few], np.arange(400))
    rows = np.repeat(np.arange(400), 4)
    copied = calibration_line(probabilities(TRUE_LOG_ODDS[rows]), HAPPENED[rows], rows)
    assert once is not None
    assert copied is not None
    assert copied.to_json()["ci95"]["slope"] == pytest.approx(once.to_json()["ci95"]["slope"])


def test_what_the_outcomes_do_not_determine_is_none() -> None:
    scores = np.linspace(0.1, 0.9, 40)
    assert calibration_line(scores, scores > 0.5, np.arange(40)) is None  # separated
    assert calibration_line(scores, np.ones(40, bool), np.arange(40)) is None
    the_same = np.full(60, 1 / 3)  # as from a network whose features are dead
    assert calibration_line(the_same, np.arange(60) % 2 == 0, np.arange(60)) is None
    few = calibration_line(probabilities(TRUE_LOG_ODDS[:400]), HAPPENED[:400], np.arange(400) % 5)
    assert few is not None
    assert few.slope_interval is None, "five patients"


def test_there_is_a_line_for_the_call_each_class_and_pneumonia() -> None:
    labels = GENERATOR.integers(0, 3, 300)
    predicted = GENERATOR.dirichlet((1, 1, 1), 300)
    lines = calibration_lines(("normal", "viral", "bacterial"), labels, predicted, np.arange(300))
    assert list(lines) == ["predicted_class", "normal", "viral", "bacterial", "pneumonia"]
    assert lines["normal"] is not None
    assert lines["pneumonia"] is not None
    assert lines["pneumonia"].slope == pytest.approx(lines["normal"].slope), "the same question, asked the other way"
    assert lines["pneumonia"].intercept == pytest.approx(-lines["normal"].intercept)
