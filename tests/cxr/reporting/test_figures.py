"""Figures show their numbers, scale, use the page's colours and are reproducible."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest

from cxr.evaluation.calibration import ReliabilityBin
from cxr.evaluation.metrics import RocCurve
from cxr.reporting import drawing, figures
from cxr.reporting.templating import TEMPLATES

CLASSES = ("normal", "viral", "bacterial")
CURVES = {
    "epoch": [1, 2, 3],
    "train_loss": [1.1, 0.8, 0.5],
    "validation_loss": [1.0, 0.9, 0.7],
    "train_accuracy": [0.5, 0.7, 0.9],
    "validation_accuracy": [0.4, 0.6, 0.8],
    "validation_macro_f1": [0.3, 0.5, 0.7],
}
DRAW: dict[str, Callable[[], str]] = {
    "training_curves": lambda: figures.training_curves(CURVES, best_epoch=3),
    "confusion_matrix": lambda: figures.confusion_matrix([[41, 3, 2], [5, 52, 7], [0, 1, 63]], CLASSES),
    "roc": lambda: figures.roc(
        {name: RocCurve(np.array([0, 0.1, 1]), np.array([0, 0.9, 1])) for name in CLASSES},
        {name: {"auroc": auroc, "support": 40} for name, auroc in zip(CLASSES, (0.912, 0.823, 0.934), strict=True)},
        {"normal": {"auroc": [0.9, 0.95]}, "viral": {"auroc": None}, "bacterial": {"auroc": None}},
    ),
    "reliability": lambda: figures.reliability(
        [ReliabilityBin(0.9, 0.7, 20)], [ReliabilityBin(0.5, 0.4, 5), ReliabilityBin(0.8, 0.8, 15)]
    ),
    "abstention": lambda: figures.abstention(
        [{"coverage": 0.5, "accuracy": 0.9, "ci95": [0.8, 1.0]}, {"coverage": 1.0, "accuracy": 0.7, "ci95": None}],
        {"coverage": {"value": 0.5}, "accuracy_on_kept": {"value": 0.9}},
    ),
    "decision_curves": lambda: figures.decision_curves(
        {"bacterial": {"thresholds": [0.2, 0.5], "model": [0.3, 0.2], "treat_all": [0.3, 0.0]}}
    ),
    "operating_points": lambda: figures.operating_points(
        RocCurve(np.array([0, 0.1, 1]), np.array([0, 0.9, 1])),
        [
            {
                "target_specificity": 0.9,
                "sensitivity": {"value": 0.8, "ci95": [0.7, 0.9]},
                "specificity": {"value": 0.92, "ci95": None},
            }
        ],
    ),
    "probabilities": lambda: figures.probability_histogram(np.array([0, 1, 2, 0]), np.eye(3)[[0, 1, 1, 0]], CLASSES),
}


def words(svg: str) -> str:
    return " ".join(
        "".join(element.itertext()) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    )


@pytest.mark.parametrize("name", DRAW)
def test_a_figure_is_one_described_scalable_image_in_the_colour_of_the_page(name: str) -> None:
    svg = DRAW[name]()
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.get("viewBox")
    assert root.get("width") is None
    assert "currentColor" in svg
    assert drawing.INK not in svg
    assert "font-family" not in svg
    assert not re.search(r'(?:href|src)="(?!#|data:)', svg)


@pytest.mark.parametrize("name", DRAW)
def test_the_same_numbers_give_the_same_bytes(name: str) -> None:
    assert DRAW[name]() == DRAW[name]()


def test_several_figures_on_a_page_share_no_ids_that_mean_different_things() -> None:
    page = [DRAW[name]() for name in DRAW]
    meaning: dict[str, str] = {}
    for svg in page:
        for element in ET.fromstring(svg).iter():
            if identity := element.get("id"):
                text = ET.tostring(element, encoding="unicode")
                assert meaning.setdefault(identity, text) == text


def test_the_confusion_matrix_shows_counts_and_row_shares() -> None:
    shown = words(DRAW["confusion_matrix"]())
    for text in ("41", "63", "89%", "98%", "normal", "actual", "predicted"):
        assert text in shown


def test_numbers_show_under_the_pointer() -> None:
    assert "<title>viral called bacterial: 7 of 64, 10.9%</title>" in DRAW["confusion_matrix"]()
    assert "<title>referral threshold: " in DRAW["abstention"]()
    assert "<title>50% answered: 90.0% of them right (80.0% to 100.0%)</title>" in DRAW["abstention"]()
    assert "net benefit" in DRAW["decision_curves"]().partition("<title>acting from ")[2].partition("</title>")[0]
    assert "<title>probability 0.80: 80.0% of 15 images right (51.9% to 95.7%)</title>" in DRAW["reliability"]()


@pytest.mark.parametrize("page", ["#ffffff", "#19212a"])
def test_each_colour_stands_out_on_the_light_and_the_dark_page(page: str) -> None:
    assert f"--card: {page}" in (TEMPLATES / "style.html.j2").read_text(encoding="utf-8")
    low = {name: ratio for name, colour in drawing.COLOURS.items() if (ratio := contrast(colour, page)) < 3}
    assert low == {}


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2), 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_class_without_images_is_an_empty_row() -> None:
    assert "0%" in words(figures.confusion_matrix([[0, 0], [1, 2]], CLASSES[:2]))


def test_the_roc_names_each_class_with_its_area() -> None:
    shown = words(DRAW["roc"]())
    assert "normal, n = 40 AUC 0.912 (0.900 to 0.950)" in shown
    assert "bacterial, n = 40 AUC 0.934" in shown


def test_the_training_curves_mark_the_epoch_that_was_kept() -> None:
    assert "kept: epoch 3" in words(DRAW["training_curves"]())


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    before = dict(mpl.rcParams)
    DRAW["roc"]()
    assert dict(mpl.rcParams) == before


def test_a_referral_threshold_and_an_operating_point_are_named_in_their_figures() -> None:
    assert "referral threshold" in words(DRAW["abstention"]())
    assert "referral threshold" not in words(figures.abstention([{"coverage": 1, "accuracy": 0.7, "ci95": None}], None))
    assert "chosen for specificity 0.90" in words(DRAW["operating_points"]())
    assert "bacterial" in words(DRAW["decision_curves"]())


def test_an_operating_point_without_positive_images_is_left_out_of_its_figure() -> None:
    undefined = {"value": None, "ci95": None}
    point = {"target_specificity": 0.9, "sensitivity": undefined, "specificity": {"value": 0.9, "ci95": None}}
    curve = RocCurve(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert "chosen for" not in words(figures.operating_points(curve, [point]))
