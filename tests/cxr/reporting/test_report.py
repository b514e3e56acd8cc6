"""The report is self-contained, names its limits, and shows undefined values as such."""

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxr.audit.trust import TrustSettings, decisions, headlines, operating_points, referral
from cxr.common.notices import NOT_CLINICAL, SYNTHETIC
from cxr.evaluation.comparison import compare
from cxr.evaluation.predictions import Predictions
from cxr.evaluation.summary import Settings, calibration_summary, flat_metrics, plot_tables, summarize
from cxr.reporting.front_page import FrontPage, verdict_of
from cxr.reporting.paper import averages_beside_paper, compare_with_paper, reasons_not_comparable
from cxr.reporting.report import Champion, GalleryItem, ReportContent, front_page, render_report
from cxr.reporting.report_figures import audit_figures, draw_figures, trust_figures
from tests.support.pages.accessibility import faults_of_report
from tests.support.pages.browsers import launch_browser

CLASSES = ("normal", "viral", "bacterial")
SETTINGS = Settings(resamples=100, seed=1, bins=10)
TRUST_SETTINGS = TrustSettings(
    specificities=[0.9], refer_accuracy=0.8, attention_images=4, sanity_images=4, resamples=100, seed=1
)
PICTURE = "data:image/jpeg;base64,/9j/4AAQSkZJRg=="


def predictions(
    n: int = 60, *, classes_in_b: int = 2, classes: tuple[str, ...] = CLASSES, one_source: bool = False
) -> Predictions:
    """Images of two sources; source b has only the first `classes_in_b` classes."""
    generator = np.random.default_rng(0)
    in_b = np.zeros(n, bool) if one_source else np.arange(n) % 3 == 0
    labels = np.where(in_b, np.arange(n) // 3 % classes_in_b, np.arange(n) % len(classes))
    scores = generator.random((n, len(classes)))
    scores[np.arange(n), labels] += 0.6
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    return Predictions(
        classes=classes,
        image_ids=np.array([f"image-{i}" for i in range(n)], dtype=object),
        sources=np.where(in_b, "b", "a").astype(object),
        patients=np.array([f"patient-{i}" for i in range(n)], dtype=object),
        blocks=np.arange(n) * 3 // n,
        labels=labels,
        uncalibrated=probabilities,
        calibrated=probabilities,
    )


def split_of(**changes: Any) -> dict[str, Any]:
    return {
        "protocol": "patient",
        "task": "three_way",
        "classes": list(CLASSES),
        "synthetic": True,
        "test_set_sha256": "7e57" * 16,
        "blocks": 3,
        "notes": [],
        "manifest_sha256": "facade" * 10,
        "leakage": "No patient is in two parts <by name>.",
        "counts": {"train": dict.fromkeys(CLASSES, 1200), "test": dict.fromkeys(CLASSES, 20), "unused": {"covid": 7}},
        "patients": {"train": 900, "test": 60},
    } | changes


def trust_of(images: Predictions, **changes: Any) -> dict[str, Any]:
    """Return trust.json of images, with heat maps that were measured elsewhere."""
    share = {"value": 0.625, "ci95": [0.5, 0.75]}
    return {
        "operating_points": operating_points(images, images, TRUST_SETTINGS),
        "referral": referral(images, images, TRUST_SETTINGS),
        "decisions": decisions(images, TRUST_SETTINGS),
        "attention": {
            "images": 64, "without_heat": 2, "heat_inside": share, "area_inside": share, "excess": share,
            "keeps_to_the_thorax": True,
        },
        "sanity": {
            "images": 24, "depends_on_weights": True, "similar_from": 0.5,
            "steps": [{"randomised": "head", "similarity": share}, {"randomised": "stem", "similarity": share}],
        },
    } | changes  # fmt: skip


def audit_of() -> dict[str, Any]:
    view = {"accuracy": 0.8, "macro_f1": 0.7, "macro_auroc": 0.9}
    view |= {"ci95": {name: [value - 0.1, value + 0.05] for name, value in view.items()}}
    return {
        "images": 40, "test_images": 60, "patients": 33, "border": 0.1, "largest_class": "viral",
        "largest_class_share": 0.4, "outline": {"from_template": 1, "thorax_share": 0.5, "lung_share_in_border": 0.01},
        "views": {"whole": view | {"title": "whole image"}, "border_only": view | {"title": "border only"}},
        "probe": {"unavailable_because": "all images come from one source"}, "sources": {}, "examples": [],
        "verdict": [{"level": "good", "sentence": "It reads the lungs.", "rule": "none"}],
    }  # fmt: skip


def content(
    images: Predictions | None = None, trust: dict[str, Any] | None = None, **split_changes: Any
) -> ReportContent:
    usual = images is None and trust is None
    images = images or predictions()
    split, trust, audit = split_of(**split_changes), trust or trust_of(images), audit_of()
    bias = (0.0,) * len(images.classes)
    calibration = calibration_summary(images, images, temperature=1.25, bias=bias, settings=SETTINGS)
    metrics = summarize(images, calibration=calibration, split=split, settings=SETTINGS)
    metrics["trust"] = headlines(trust)
    made = ReportContent(
        metrics=metrics,
        calibration=calibration,
        training={
            "best_epoch": 2,
            "epochs_run": 2,
            "seconds": 3725.0,
            "images_per_second": 12.5,
            "device": "cpu",
            "precision": "bf16",
            "hardware": "2 cores, x86_64",
            "weights": {"source": "imagenet", "loaded": ["stem", "layer1"], "partial": ["layer4"], "random": ["head"]},
            "params": {"epochs": 2, "weights": "<file>"},
        },
        model={
            "backbone": "resnet50", "head": "linear", "members": 1,
            "classes": list(images.classes),
            "preprocessing": {"image_size_px": 224, "fit": "stretch", "contrast": "clahe"},
        },
        ingest={
            "synthetic": split["synthetic"], "total": 5000, "kept": 4990, "duplicates": 7, "quarantined": 3,
            "sources": {"a": {"total": 5000, "kept": 4990, "duplicates": 7, "quarantined": 3}},
        },
        split=split,
        trust=trust,
        audit=audit,
        figures=usual_figures() if usual else figures_of(images, metrics, trust),
        gallery=[GalleryItem("id-1", PICTURE, PICTURE, "viral", "bacterial", 0.987, False, "a")],
        errors=[GalleryItem("id-2", PICTURE, PICTURE, "normal", "viral", 0.912, False, "b")],
        digests={"weights (SHA-256)": "abc123"},
        front=FrontPage({}, {}),
    )  # fmt: skip
    return replace(made, front=front_page(vars(made), origin={"Version": "7", "Role": "challenger"}))


def figures_of(images: Predictions, metrics: dict[str, Any], trust: dict[str, Any]) -> dict[str, str]:
    curves = pd.DataFrame(
        {"epoch": [1, 2], "train_loss": [1.0, 0.5], "validation_loss": [1.0, 0.7]}
        | {name: [0.5, 0.8] for name in ("train_accuracy", "validation_accuracy", "validation_macro_f1")}
    )
    return (
        draw_figures(images, metrics, curves=curves, best_epoch=2)
        | trust_figures(trust, images)
        | audit_figures(audit_of())
    )


@cache
def usual_figures() -> dict[str, str]:
    """The figures of `content()`, drawn once: they take 1.5 s, and no change of the split shows in them."""
    images = predictions()
    trust = trust_of(images)
    calibration = calibration_summary(images, images, temperature=1.25, bias=(0.0,) * 3, settings=SETTINGS)
    metrics = summarize(images, calibration=calibration, split=split_of(), settings=SETTINGS)
    return figures_of(images, metrics, trust)


class _Loads(HTMLParser):
    """Collects what a browser would fetch, scripts, and the nesting of tags."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}]


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL)).split())


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(content())


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    loads = _Loads()
    loads.feed(page)
    assert all(address.startswith(("data:", "#")) for address in loads.addresses)
    assert loads.addresses
    assert not loads.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"@import|url\((?!#)", page)


def test_the_page_is_whole_and_accessible_on_phones_and_desktops_in_every_scheme(page: str) -> None:
    with launch_browser() as browser:
        assert faults_of_report(browser, page) == []


def test_the_front_page_answers_five_questions_and_says_where_it_comes_from(page: str) -> None:
    front = text_of(page[page.index('class="front"') :])
    metrics = content().metrics
    for words in (
        "What it is An ensemble" if content().model["members"] > 1 else "What it is A resnet50 network that sorts",
        f"it classifies {metrics['accuracy'] * 100:.0f} correctly (95% interval",
        "On whom 60 synthetic images",
        "Its most frequent error: ",
        "The audit for shortcuts found nothing against it (1 good)",
        "Version 7 Role challenger Data a; images: train 3,600",
        "Protocol patient",
    ):
        assert words in front


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (["unknown", "unknown"], "The audit for shortcuts: 2 not measured. Check 0."),  # one class, one source
        (["unknown", "good"], "found nothing against it (1 good and 1 not measured)"),
        (["good", "unknown", "doubt"], "The audit for shortcuts: 1 in doubt, 1 good and 1 not measured. Check 2."),
        (["doubt", "bad"], "The audit for shortcuts: 1 bad and 1 in doubt. Check 1."),
    ],
)
def test_the_verdict_counts_every_check_and_names_the_worst(levels: list[str], expected: str) -> None:
    findings = [{"level": level, "sentence": f"Check {number}.", "rule": ""} for number, level in enumerate(levels)]
    assert expected in verdict_of({"verdict": findings})


def test_the_contents_lead_to_every_section(page: str) -> None:
    anchors = re.findall(r'<section[^>]* id="([^"]+)">', page)
    assert re.findall(r'<li><a href="#([^"]+)">', page) == anchors
    assert len(set(anchors)) == len(anchors) > 12


def test_a_model_stands_beside_the_champion_before_it() -> None:
    images = predictions()
    better = replace(images, calibrated=np.eye(3)[images.labels] * 0.97 + 0.01)
    both = compare(better.to_table("test"), images.to_table("test"), resamples=100, seed=1)
    shown = text_of(render_report(replace(content(better), champion=Champion("4", both))))
    gain = both.differences["accuracy"]
    assert gain.interval is not None
    low, high = gain.interval.low, gain.interval.high
    assert f"Accuracy 1.000 {1 - gain.value:.3f} {gain.value:+.3f} {low:+.3f} to {high:+.3f}" in shown
    other = text_of(render_report(replace(content(), champion=Champion("4", because="it has other test images"))))
    assert "Version 4 was champion when this page was written" in other
    assert "no comparison: it has other test images." in other
    assert "Compared with the champion" not in text_of(render_report(content()))


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_images_get_a_notice_and_real_ones_do_not(synthetic: bool) -> None:
    html = render_report(content(synthetic=synthetic))
    assert (SYNTHETIC in html) is synthetic
    assert ("it has seen no real image" in html) is synthetic
    assert NOT_CLINICAL in html


def test_headline_metrics_have_their_intervals(page: str) -> None:
    metrics, text = content().metrics, text_of(page)
    for name in ("accuracy", "macro_f1", "macro_auroc"):
        low, high = metrics["ci95"][name]
        assert f"{metrics[name]:.3f} {low:.3f} to {high:.3f}" in text


def test_data_and_model_are_described(page: str) -> None:
    text = text_of(page)
    for words in (
        "60 test images of 60 patients",
        "No patient is in two parts &lt;by name&gt;.",
        "1,200 1,200 1,200 3,600 900",
        "all 5,000 4,990 7 3",
        "7 kept images are in no part",
        "loaded: stem, layer1; partly loaded: layer4; random: head",
        "weights=&lt;file&gt;",
        "2 epochs in 1 h 02 min, 12.5 images a second, bf16 on cpu (2 cores, x86_64)",
        "abc123",
        "called bacterial with 98.7%",
    ):
        assert words in text


def test_a_source_without_a_class_is_noted(page: str) -> None:
    assert "no bacterial images here" in text_of(page)


def test_the_papers_values_are_beside_ours(page: str) -> None:
    text = text_of(page)
    ours = content().metrics["per_class"]["viral"]
    assert f"viral 0.866 {ours['precision']:.3f}" in text
    assert "paper 0.918 (0.891 to 0.939)" in text
    assert "not like with like" in text


def test_the_papers_averages_and_specificities_follow_from_its_counts(page: str) -> None:
    rows = {row.name: row.cells for row in compare_with_paper(content().metrics)}
    assert [round(rows["normal"][name].paper, 3) for name in ("Precision", "Recall", "F1")] == [0.935, 0.867, 0.900]
    assert rows["normal"]["Specificity"].paper == pytest.approx(1 - 9 / 350)
    macro, weighted = averages_beside_paper(content().metrics)
    assert weighted.cells["Recall"].paper == pytest.approx(0.918), "the weighted recall is the accuracy"
    assert weighted.cells["Recall"].ours == pytest.approx(content().metrics["accuracy"])
    assert macro.cells["F1"].ours == pytest.approx(content().metrics["macro_f1"])
    assert macro.cells["F1"].ours_ci95 == content().metrics["ci95"]["macro_f1"]
    assert f"weighted average {weighted.cells['Precision'].paper:.3f}" in text_of(page)


def _comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    return {**metrics, "synthetic": False, "protocol": "paper", "task": "three_way", "n_test": 500}


@pytest.mark.parametrize(
    ("change", "token"),
    [
        ({"synthetic": True}, "synthetic"),
        ({"protocol": "patient"}, "protocol patient"),
        ({"task": "four_way"}, "classes"),
        ({"n_test": 1100}, "1,100"),
    ],
)
def test_each_reason_against_the_comparison_is_named(change: dict[str, Any], token: str) -> None:
    (reason,) = reasons_not_comparable(_comparable({}) | change)
    assert token in reason


def test_the_papers_own_design_is_comparable_but_other_images() -> None:
    made = content(protocol="paper", synthetic=False)
    text = text_of(render_report(replace(made, metrics=_comparable(dict(made.metrics)))))
    assert "Not comparable" not in text
    assert "Same design and same numbers of images." in text
    assert "of different images: not like with like" in text


def test_a_test_set_without_a_class_gives_undefined_values() -> None:
    images = predictions()
    html = render_report(content(images.where(images.labels < 2)))
    assert "not defined" in html
    assert "nan" not in text_of(html).lower().split()


def test_too_few_patients_leave_the_intervals_out() -> None:
    images = predictions()
    text = text_of(render_report(content(images.where(np.arange(60) < 8))))
    assert "missing with too few patients" in text


@pytest.mark.parametrize("protocol", ["paper", "official", "cv"])
def test_every_protocol_is_described(protocol: str) -> None:
    test_set = {"paper": "2,500 images", "official": "own test part", "cv": "one fold"}[protocol]
    assert test_set in render_report(content(protocol=protocol))


def test_the_same_content_gives_the_same_page(page: str) -> None:
    assert render_report(content()) == page


@pytest.mark.parametrize(
    "heading",
    [
        "Operating points: pneumonia against normal",
        "Referral to a reader",
        "Net benefit of acting on the model",
        "Sanity check of the heat maps",
        "Share of attention inside the thorax",
        "Shortcut audit",
        "The most confident errors",
    ],
)
def test_each_clinical_question_has_a_section(page: str, heading: str) -> None:
    assert heading in text_of(page)


def test_the_sections_hold_their_numbers(page: str) -> None:
    trust, text = trust_of(predictions()), text_of(page)
    (point,) = trust["operating_points"]["points"]
    found = trust["referral"]["found"]
    for words in (
        f"90.0% {point['threshold']:.3f} {point['sensitivity']['value']:.3f}",
        f"below {found['confidence']:.3f} go to a reader",
        f"answered by the model {found['coverage']['value']:.3f}",
        "The maps depend on the learnt weights.",
        "62.5% of an image's heat lies in the thorax",
        "actually normal, called viral with 91.2%",
        "resnet50 with a linear head, 3 classes",
    ):
        assert words in text


def test_calibration_errors_after_scaling_have_their_intervals(page: str) -> None:
    made = content().metrics
    for name in ("ece", "classwise_ece", "brier"):
        low, high = made["ci95"][name]
        assert f"{made['calibration'][name]:.3f} {low:.3f} to {high:.3f}" in text_of(page)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention": None}, "Not measured: every map was empty."),
        ({"sanity": {"images": 0, "steps": [], "depends_on_weights": None}}, "Not measured: every map was empty."),
        ({"decisions": {}}, "No yes-or-no decision is among the classes."),
    ],
)
def test_unavailable_parts_are_named(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in text_of(render_report(content(trust=trust_of(predictions(), **changes))))


def test_an_unreachable_accuracy_gives_no_referral_threshold() -> None:
    images = predictions()
    out_of_reach = referral(
        images.where(np.arange(60) < 8), images, TRUST_SETTINGS
    )  # 8 images are too few for a threshold
    assert out_of_reach["found"] is None
    text = text_of(render_report(content(trust=trust_of(images, referral=out_of_reach))))
    assert "No referral threshold: " in text


@pytest.mark.parametrize(
    ("classes", "compared"),
    [
        (("normal", "viral"), ["normal", "viral"]),
        (("viral", "bacterial"), ["viral", "bacterial"]),
        (("normal", "covid"), ["normal"]),
        (("covid", "viral"), ["viral"]),
        (("normal", "viral", "bacterial", "covid"), ["normal", "viral", "bacterial"]),
    ],
)
@pytest.mark.parametrize("one_source", [True, False])
def test_two_and_four_classes_and_one_source_are_reported(
    classes: tuple[str, ...], compared: list[str], one_source: bool
) -> None:
    images = predictions(80, classes=classes, one_source=one_source)
    made = content(images, classes=list(classes), task="another")
    assert [row.name for row in compare_with_paper(made.metrics)] == compared
    text = text_of(render_report(made))
    assert "Not comparable: " in text
    assert ("do not separate normal images" in text) is ("normal" not in classes)
    flat = flat_metrics(made.metrics)
    assert ("test_sensitivity_at_specificity_0.9" in flat) is ("normal" in classes)
    assert all(np.isfinite(value) for value in flat.values())
    assert set(plot_tables(images, bins=10)["roc"]["class"]) == set(classes)


def test_a_test_set_without_normal_images_leaves_the_specificity_undefined() -> None:
    images = predictions()
    with_pneumonia = images.where(images.labels > 0)
    trust = trust_of(images) | {"operating_points": operating_points(images, with_pneumonia, TRUST_SETTINGS)}
    assert trust["operating_points"]["points"][0]["specificity"]["value"] is None
    assert "not defined" in text_of(render_report(content(with_pneumonia, trust=trust)))


def test_without_normal_validation_images_no_threshold_is_chosen() -> None:
    images = predictions()
    found = operating_points(images.where(images.labels > 0), images, TRUST_SETTINGS)
    assert found["points"] == []
    assert "no validation image is normal" in found["unavailable_because"]
