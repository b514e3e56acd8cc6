"""Windows of scored synthetic images against a reference: limits, alarms and the drift rule."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from cxr.dataset.synthetic_image import COVID19_LOOK
from cxr.models.reference import Reference
from cxr.monitoring.drift import (
    FAILED,
    MIN_LIMIT,
    SIGNALS,
    Rules,
    Window,
    compare_window,
    cut_windows,
    find_limits,
    is_drift,
)
from tests.support.images.reference_images import (
    IMAGES_PER_PATIENT,
    Images,
    later_images,
    model_reference,
    scored_images,
    synthetic_images,
)
from tests.support.projects.drift_windows import window

RULES = Rules(images=40, false_alarm_share=0.05, resamples=400, seed=1, max_failed_share=0.1)


@pytest.fixture(scope="module")
def later() -> Images:
    return later_images()


@pytest.fixture(scope="module")
def reference() -> Reference:
    return model_reference()


def compared(table: pd.DataFrame, reference: Reference) -> list[Window]:
    limits = find_limits(reference, RULES)
    parts = cut_windows(table, RULES.images)
    return [compare_window(part, reference, limits, number=i) for i, part in enumerate(parts, start=1)]


def test_false_alarms_are_no_more_frequent_than_configured(later: Images, reference: Reference) -> None:
    # Of 40 windows of other patients, five times the configured share: chance alone does not exceed it.
    table = scored_images(later, reference)
    limits = find_limits(reference, RULES)
    generator, alarms = np.random.default_rng(3), 0
    for _ in range(40):
        order = generator.permutation(len(later) // IMAGES_PER_PATIENT)[: RULES.images // IMAGES_PER_PATIENT]
        rows = (order[:, None] * IMAGES_PER_PATIENT + np.arange(IMAGES_PER_PATIENT)).ravel()
        alarms += compare_window(table.iloc[rows], reference, limits, number=1).alarm
    assert alarms <= 0.25 * 40


@pytest.mark.parametrize(
    ("change", "signal"),
    [
        (lambda images: (0.75 * images).astype(np.uint8), "brightness"),
        (lambda images: np.minimum(1.3 * images, 255).astype(np.uint8), "brightness"),
        (lambda images: 255 - images, "border"),
        (lambda images: np.stack([cv2.GaussianBlur(image, (0, 0), 1.5) for image in images]), "sharpness"),
        (lambda images: images[:, :, ::-1], "feature_distance"),
    ],
    ids=["darker", "brighter", "inverted", "blurred", "mirrored"],
)
def test_shifted_images_are_drift(
    change: Callable[[Images], Images], signal: str, later: Images, reference: Reference
) -> None:
    windows = compared(scored_images(np.ascontiguousarray(change(later)), reference), reference)
    assert is_drift(windows, alarm_windows=2, recent_windows=5)
    assert all(signal in window.exceeded for window in windows)
    assert all(window.score > 1 and window.examples for window in windows)


def test_images_of_another_hospital_are_drift(reference: Reference) -> None:
    other = scored_images(synthetic_images(COVID19_LOOK, 40, seed=4), reference)
    assert all(window.alarm for window in compared(other, reference))


def test_other_class_shares_and_lower_confidence_are_detected(later: Images, reference: Reference) -> None:
    one_class = np.tile([0.8, 0.1, 0.1], (len(later), 1))
    window = compared(scored_images(later, reference, one_class), reference)[0]
    assert {"class_shares", "confidence"} <= set(window.exceeded)
    assert window.shares == {"normal": 1.0, "viral": 0.0, "bacterial": 0.0}


def test_confidences_that_the_reference_rounds_to_1_are_no_shift(later: Images, reference: Reference) -> None:
    """A score holds 0.9999999999, of which a reference, with fewer digits, keeps 1."""
    sure = replace(reference, confidence=np.full_like(reference.confidence, 1))
    table = scored_images(later, reference).iloc[: RULES.images].copy()
    others = [name for name in table if str(name).startswith("p_")][1:]
    table[[f"p_{reference.classes[0]}", *others]] = [1 - 1e-10, *[1e-10 / len(others)] * len(others)]
    found = compare_window(table, sure, find_limits(sure, RULES), number=1)
    assert found.distances["confidence"] == 0


def test_unreadable_images_alone_are_an_alarm(later: Images, reference: Reference) -> None:
    table = scored_images(later[: RULES.images], reference)
    table.loc[:5, "error"] = "truncated"
    table.loc[:5, [name for name in table if str(name).startswith(("m_", "p_"))]] = np.nan
    table.loc[:5, "predicted_class"] = None
    window = compared(table, reference)[0]
    assert window.distances[FAILED] == pytest.approx(6 / RULES.images)
    assert window.exceeded == (FAILED,)
    assert window.examples == tuple(f"image-{i}.png" for i in range(5))
    table.loc[:, "error"] = "truncated"
    assert compared(table, reference)[0].alarm


def test_images_that_do_not_fill_a_window_wait() -> None:
    table = pd.DataFrame({"image": range(7)})
    assert [part["image"].tolist() for part in cut_windows(table, 3)] == [[0, 1, 2], [3, 4, 5]]
    assert cut_windows(table.head(2), 3) == []


def test_more_images_per_patient_widen_the_limits(reference: Reference) -> None:
    numbers = np.arange(len(reference.patients))
    first = numbers // 12 * 12  # twelve images of one patient, equal in every measure
    grouped = replace(reference, patients=numbers // 12, measures=reference.measures[first])
    single = replace(grouped, patients=numbers)
    assert find_limits(grouped, RULES)["brightness"] > 1.5 * find_limits(single, RULES)["brightness"]


def test_limits_shrink_with_larger_windows_down_to_a_minimum(reference: Reference) -> None:
    small, large = (find_limits(reference, Rules(n, 0.05, 200, 1, 0.1)) for n in (30, 300))
    assert all(large[name] < small[name] for name in SIGNALS)
    constant = replace(reference, measures=np.zeros_like(reference.measures))
    assert find_limits(constant, RULES)["border"] == MIN_LIMIT


@pytest.mark.parametrize(
    ("alarms", "after", "drift"),
    [
        ((), "", False),
        ((1,), "", False),
        ((2, 6), "", True),
        ((1, 6), "", False),  # the first is not among the last five
        ((2, 6), "2026-01-02T12", False),  # a rebuild was started for the first
        ((2, 5, 6), "2026-01-02T12", True),
    ],
)
def test_rule_counts_alarms_of_the_last_windows(alarms: tuple[int, ...], after: str, drift: bool) -> None:
    windows = [window(number, alarm=number in alarms) for number in range(1, 7)]
    assert is_drift(windows, alarm_windows=2, recent_windows=5, after=after) is drift
