"""Reference statistics and windows on synthetic images: what is kept, what an alarm needs, what moves."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from cxr.common.classes import Label
from cxr.common.errors import WeightsError
from cxr.dataset.synthetic_image import COVID19_LOOK, KERMANY_LOOK, Look, draw_anatomy, draw_finding, draw_image
from cxr.imaging.preprocess import Preprocessing, prepare
from cxr.models.reference import (
    MEASURES,
    Reference,
    fit_space,
    image_measures,
    make_reference,
    measure,
    read_reference,
    write_reference,
)
from cxr.monitoring.drift import FAILED, LEAST, SIGNALS, Rules, Window, cut_windows, find_limits, is_drift, judge
from cxr.monitoring.page import MonitorPage, render_page, to_markdown

Images = NDArray[np.uint8]
CLASSES: tuple[Label, ...] = ("normal", "viral", "bacterial")
PREPROCESSING = Preprocessing(48, "stretch", "none", 2.0, 8, 10**7)
RULES = Rules(images=40, false_alarm_share=0.05, resamples=400, seed=1, max_failed_share=0.1)
IMAGES_A_PATIENT = 2


def images(look: Look, patients: int, *, seed: int) -> Images:
    """Return prepared synthetic images, the classes in turn, two a patient."""
    generator, look = np.random.default_rng(seed), replace(look, sides_px=(72, 96))
    drawn = []
    for number in range(patients):
        anatomy, finding = draw_anatomy(generator), draw_finding(CLASSES[number % 3], generator)
        for _ in range(IMAGES_A_PATIENT):
            drawn.append(prepare(draw_image(anatomy, finding, look, generator), PREPROCESSING))
    return np.stack(drawn)


def seen(images: Images) -> NDArray[np.float32]:
    """Return features in the place of a network's: 6 x 6 mean grey levels."""
    return np.asarray(images.reshape(len(images), 6, 8, 6, 8).mean(axis=(2, 4)).reshape(len(images), 36), np.float32)


def answers(count: int, *, seed: int = 5) -> NDArray[np.float64]:
    return np.random.default_rng(seed).dirichlet(np.ones(3) / 2, count)


def patients(count: int) -> NDArray[np.object_]:
    return np.array([f"patient-{i // IMAGES_A_PATIENT}" for i in range(count)], object)


@pytest.fixture(scope="module")
def usual() -> Images:
    return images(KERMANY_LOOK, 120, seed=1)


@pytest.fixture(scope="module")
def later() -> Images:
    """Images of other patients of the same hospital."""
    return images(KERMANY_LOOK, 100, seed=2)


@pytest.fixture(scope="module")
def reference(usual: Images) -> Reference:
    return reference_of(usual)


def reference_of(images: Images) -> Reference:
    return make_reference(
        classes=CLASSES,
        images=np.column_stack(list(image_measures(images).values())),
        features=seen(images),
        probabilities=answers(len(images)),
        patients=patients(len(images)),
    )


def scores(images: Images, reference: Reference, probabilities: NDArray[np.float64] | None = None) -> pd.DataFrame:
    """Return what scoring writes of images, one a minute."""
    given = answers(len(images), seed=6) if probabilities is None else probabilities
    measured = measure(images, seen(images), reference)
    table = pd.DataFrame({f"m_{name}": values for name, values in measured.items()})
    for c, name in enumerate(CLASSES):
        table[f"p_{name}"] = given[:, c]
    return table.assign(
        predicted_class=np.array(CLASSES)[given.argmax(axis=1)],
        error=None,
        path=[f"image-{i}.png" for i in range(len(images))],
        scored_at=pd.date_range("2026-01-01", periods=len(images), freq="min", tz="UTC"),
    )


def judged(table: pd.DataFrame, reference: Reference, rules: Rules = RULES) -> list[Window]:
    limits = find_limits(reference, rules)
    return [
        judge(part, reference, limits, number=i) for i, part in enumerate(cut_windows(table, rules.images), start=1)
    ]


def test_every_measure_is_there_for_every_image_however_many_images_come_at_once(
    later: Images, reference: Reference
) -> None:
    together = measure(later, seen(later), reference)
    assert tuple(together) == MEASURES
    assert all(values.shape == (len(later),) and values.dtype == np.float32 for values in together.values())
    alone = measure(later[150:151], seen(later[150:151]), reference)
    assert all(np.isclose(alone[name][0], together[name][150], rtol=1e-5) for name in MEASURES)
    assert all(len(values) == 0 for values in measure(later[:0], seen(later[:0]), reference).values())


def test_image_measures_say_what_their_names_say() -> None:
    image = np.full((1, 32, 32), 51, np.uint8)
    image[:, 2:-2, 2:-2] = 255
    image[:, 2:-2, 2:16] = 0
    found = {name: float(values[0]) for name, values in image_measures(image).items()}
    black, white = 28 * 14 / 1024, 28 * 14 / 1024
    assert found["dark_share"] == pytest.approx(black)
    assert found["bright_share"] == pytest.approx(white)
    assert found["border"] == pytest.approx(0.2)
    assert found["brightness"] == pytest.approx((image / 255).mean(), abs=1e-6)
    assert found["contrast"] == pytest.approx((image / 255).std(), abs=1e-6)
    assert found["left_right"] == pytest.approx(28 * 14 / 512, abs=1e-6)
    blurred = np.asarray(cv2.GaussianBlur(image[0], (0, 0), 2), np.uint8)[None]
    assert image_measures(blurred)["sharpness"][0] < found["sharpness"]


def test_a_reference_comes_back_as_it_was_and_its_file_is_the_same_every_time(
    reference: Reference, tmp_path: Path
) -> None:
    path = tmp_path / "reference.safetensors"
    digest = write_reference(path, reference)
    assert write_reference(path, reference) == digest
    back = read_reference(path)
    assert back.classes == reference.classes
    for name in ("measures", "confidence", "predicted", "patients"):
        np.testing.assert_array_equal(getattr(back, name), getattr(reference, name))
    for field in fields(reference.space):
        np.testing.assert_array_equal(getattr(back.space, field.name), getattr(reference.space, field.name))
    assert b"patient-" not in path.read_bytes()


@pytest.mark.parametrize("content", [None, b"no tensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_missing_or_damaged_reference_says_what_to_do(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"dvc repro -f -s evaluate"):
        read_reference(path)


def test_images_of_the_reference_lie_as_far_out_as_new_images(later: Images, reference: Reference) -> None:
    new = measure(later, seen(later), reference)["feature_distance"]
    own = reference.measures[:, MEASURES.index("feature_distance")]
    assert np.median(own) == pytest.approx(np.median(new), rel=0.1)
    fitted_on = reference.space.distance(seen(later))
    assert np.median(fit_space(seen(later)).distance(seen(later))) < np.median(fitted_on)


def test_features_that_never_vary_have_a_distance() -> None:
    distance = fit_space(np.ones((20, 8), np.float32)).distance(np.ones((3, 8), np.float32))
    assert np.isfinite(distance).all()


def test_windows_of_the_same_images_are_alarms_no_more_often_than_stated(later: Images, reference: Reference) -> None:
    # Five times the stated share, of 40 windows of other patients: more than chance allows.
    table = scores(later, reference)
    limits = find_limits(reference, RULES)
    generator, alarms = np.random.default_rng(3), 0
    for _ in range(40):
        order = generator.permutation(len(later) // IMAGES_A_PATIENT)[: RULES.images // IMAGES_A_PATIENT]
        rows = (order[:, None] * IMAGES_A_PATIENT + np.arange(IMAGES_A_PATIENT)).ravel()
        alarms += judge(table.iloc[rows], reference, limits, number=1).alarm
    assert alarms <= 0.25 * 40


@pytest.mark.parametrize(
    ("change", "speaks"),
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
    change: Callable[[Images], Images], speaks: str, later: Images, reference: Reference
) -> None:
    windows = judged(scores(np.ascontiguousarray(change(later)), reference), reference)
    assert is_drift(windows, alarm_windows=2, of_windows=5)
    assert all(speaks in window.speaking for window in windows)
    assert all(window.score > 1 and window.examples for window in windows)


def test_images_of_another_hospital_are_drift(reference: Reference) -> None:
    assert all(window.alarm for window in judged(scores(images(COVID19_LOOK, 40, seed=4), reference), reference))


def test_another_mix_of_answers_and_less_confidence_are_seen(later: Images, reference: Reference) -> None:
    one_class = np.tile([0.8, 0.1, 0.1], (len(later), 1))
    window = judged(scores(later, reference, one_class), reference)[0]
    assert {"class_shares", "confidence"} <= set(window.speaking)
    assert window.shares == {"normal": 1.0, "viral": 0.0, "bacterial": 0.0}


def test_images_that_cannot_be_read_are_counted_and_alarm_alone(later: Images, reference: Reference) -> None:
    table = scores(later[: RULES.images], reference)
    table.loc[:5, "error"] = "truncated"
    table.loc[:5, [name for name in table if str(name).startswith(("m_", "p_"))]] = np.nan
    table.loc[:5, "predicted_class"] = None
    window = judged(table, reference)[0]
    assert window.distances[FAILED] == pytest.approx(6 / RULES.images)
    assert window.speaking == (FAILED,)
    assert window.examples == tuple(f"image-{i}.png" for i in range(5))
    table.loc[:, "error"] = "truncated"
    assert judged(table, reference)[0].alarm


def test_what_does_not_fill_a_window_waits() -> None:
    table = pd.DataFrame({"image": range(7)})
    assert [part["image"].tolist() for part in cut_windows(table, 3)] == [[0, 1, 2], [3, 4, 5]]
    assert cut_windows(table.head(2), 3) == []


def test_images_that_come_in_larger_families_widen_the_limits(reference: Reference) -> None:
    values = dict(vars(reference))
    alike = Reference(**(values | {"patients": np.arange(len(reference.patients)) // 12}))
    # Families alike in every measure, as the images of one patient are.
    first = (np.arange(len(alike.patients)) // 12) * 12
    alike = Reference(**(vars(alike) | {"measures": alike.measures[first]}))
    alone = Reference(**(vars(alike) | {"patients": np.arange(len(reference.patients))}))
    assert find_limits(alike, RULES)["brightness"] > 1.5 * find_limits(alone, RULES)["brightness"]


def test_limits_shrink_with_larger_windows_but_never_below_what_matters(reference: Reference) -> None:
    small, large = (find_limits(reference, Rules(n, 0.05, 200, 1, 0.1)) for n in (30, 300))
    assert all(large[name] < small[name] for name in SIGNALS)
    constant = Reference(**(vars(reference) | {"measures": np.zeros_like(reference.measures)}))
    assert find_limits(constant, RULES)["border"] == LEAST


def window(number: int, *, alarm: bool) -> Window:
    return Window(
        number=number, first=f"2026-01-{number:02d}", last=f"2026-01-{number:02d}T12", score=2.0 if alarm else 0.5,
        distances=dict.fromkeys((*SIGNALS, FAILED), 0.3), moves=dict.fromkeys(SIGNALS[:-1], -1.0),
        speaking=("brightness",) if alarm else (), shares=dict.fromkeys(CLASSES, 1 / 3), examples=("a<b>.png",),
    )  # fmt: skip


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
def test_the_rule_counts_alarms_among_the_last_windows(alarms: tuple[int, ...], after: str, drift: bool) -> None:
    windows = [window(number, alarm=number in alarms) for number in range(1, 7)]
    assert is_drift(windows, alarm_windows=2, of_windows=5, after=after) is drift


def test_the_page_needs_nothing_else_and_says_in_words_what_moved() -> None:
    windows = [window(1, alarm=False), window(2, alarm=True)]
    page = MonitorPage(
        version="3", drift=True, rule="1 alarm", window_images=40, windows=windows,
        limits=dict.fromkeys((*SIGNALS, FAILED), 0.2), usual_shares=dict.fromkeys(CLASSES, 1 / 3),
        reference_images=240, waiting=7, since="2026-01-01T00:00",
    )  # fmt: skip
    html = render_page(page)
    assert "images are darker: the median moved by 1.0 spreads (distance 0.30, limit 0.20)" in html
    assert "http" not in html
    assert "<script" not in html
    assert "a&lt;b&gt;.png" in html
    assert (
        to_markdown(page)
        .splitlines()[-1]
        .endswith("| images are darker: " + html.split("images are darker: ")[1].split("<")[0] + " |")
    )
    empty = MonitorPage(**(vars(page) | {"windows": [], "drift": False}))
    assert "7 of 40 images of the first window are scored" in render_page(empty)
