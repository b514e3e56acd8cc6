"""The page stands alone, says plainly what it is about, and hides nothing that is undefined."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxr.evaluation import Predictions, Settings, calibration_summary, draw_figures, summarize
from cxr.report import NOT_CLINICAL, SYNTHETIC, GalleryItem, ReportContent, render_report, why_not_comparable

CLASSES = ("normal", "viral", "bacterial")
SETTINGS = Settings(resamples=100, seed=1, bins=10)
PICTURE = "data:image/jpeg;base64,/9j/4AAQSkZJRg=="


def predictions(n: int = 60, *, classes_in_b: int = 2) -> Predictions:
    """Films of two sources; source b has only the first `classes_in_b` classes."""
    generator = np.random.default_rng(0)
    in_b = np.arange(n) % 3 == 0
    labels = np.where(in_b, np.arange(n) // 3 % classes_in_b, np.arange(n) % 3)
    scores = generator.random((n, 3))
    scores[np.arange(n), labels] += 0.6
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    return Predictions(
        classes=CLASSES,
        image_ids=np.array([f"film-{i}" for i in range(n)], dtype=object),
        sources=np.where(in_b, "b", "a").astype(object),
        patients=np.array([f"patient-{i}" for i in range(n)], dtype=object),
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
        "manifest_sha256": "facade" * 10,
        "leakage": "No patient is in two parts <by name>.",
        "counts": {"train": dict.fromkeys(CLASSES, 1200), "test": dict.fromkeys(CLASSES, 20), "unused": {"covid": 7}},
        "patients": {"train": 900, "test": 60},
    } | changes


def content(films: Predictions | None = None, **split_changes: Any) -> ReportContent:
    films, split = films or predictions(), split_of(**split_changes)
    calibration = calibration_summary(films, films, temperature=1.25, settings=SETTINGS)
    metrics = summarize(films, calibration=calibration, split=split, settings=SETTINGS)
    curves = pd.DataFrame(
        {"epoch": [1, 2], "train_loss": [1.0, 0.5], "validation_loss": [1.0, 0.7]}
        | {name: [0.5, 0.8] for name in ("validation_accuracy", "validation_macro_f1")}
    )
    return ReportContent(
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
            "backbone": "resnet50",
            "classes": list(CLASSES),
            "preprocessing": {"image_size_px": 224, "fit": "stretch", "contrast": "clahe"},
        },
        ingest={
            "total": 5000, "kept": 4990, "duplicates": 7, "quarantined": 3,
            "sources": {"a": {"total": 5000, "kept": 4990, "duplicates": 7, "quarantined": 3}},
        },
        split=split,
        figures=draw_figures(films, metrics, curves=curves, best_epoch=2),
        gallery=[GalleryItem(PICTURE, PICTURE, "viral", "bacterial", 0.987, False, "a")],
        digests={"weights (SHA-256)": "abc123"},
    )  # fmt: skip


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


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_films_are_named_and_real_ones_are_not_called_so(synthetic: bool) -> None:
    html = render_report(content(synthetic=synthetic))
    assert (SYNTHETIC in html) is synthetic
    assert ("phantoms" in html) is synthetic
    assert NOT_CLINICAL in html


def test_the_headline_figures_stand_with_their_intervals(page: str) -> None:
    metrics, text = content().metrics, text_of(page)
    for name in ("accuracy", "macro_f1", "macro_auroc"):
        low, high = metrics["ci95"][name]
        assert f"{metrics[name]:.3f} {low:.3f} to {high:.3f}" in text


def test_data_and_model_are_described(page: str) -> None:
    text = text_of(page)
    for words in (
        "60 test films of 60 patients",
        "No patient is in two parts &lt;by name&gt;.",
        "1,200 1,200 1,200 3,600 900",
        "all 5,000 4,990 7 3",
        "7 kept films are in no part",
        "loaded: stem, layer1; partly loaded: layer4; from random: head",
        "weights=&lt;file&gt;",
        "2 epochs in 1 h 02 min, 12.5 films a second, bf16 on cpu (2 cores, x86_64)",
        "abc123",
        "called bacterial with 98.7%",
    ):
        assert words in text


def test_a_source_without_a_class_says_so(page: str) -> None:
    assert "no bacterial films here" in text_of(page)


def test_the_paper_stands_beside_ours(page: str) -> None:
    text = text_of(page)
    ours = content().metrics["per_class"]["viral"]
    assert f"viral 0.866 {ours['precision']:.3f}" in text
    assert "paper 0.918 (0.891 to 0.939)" in text


def _comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    return {**metrics, "synthetic": False, "protocol": "paper", "task": "three_way", "n_test": 500}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"synthetic": True}, "ours come from synthetic films"),
        ({"protocol": "patient"}, "ours follow the protocol patient, the paper drew film by film at random"),
        ({"task": "four_way"}, "ours tell another set of classes apart"),
        ({"n_test": 1100}, "ours rest on 1,100 test films, the paper's on 500"),
    ],
)
def test_each_reason_against_the_comparison_is_named(change: dict[str, Any], reason: str) -> None:
    assert why_not_comparable(_comparable({}) | change) == [reason]


def test_the_papers_own_design_is_comparable_with_a_word_about_the_draw() -> None:
    made = content(protocol="paper", synthetic=False)
    text = text_of(render_report(replace(made, metrics=_comparable(dict(made.metrics)))))
    assert "Not comparable" not in text
    assert "the films differ" in text


def test_a_test_set_without_a_class_gives_a_page_that_says_not_defined() -> None:
    films = predictions()
    html = render_report(content(films.where(films.labels < 2)))
    assert "not defined" in html
    assert "nan" not in text_of(html).lower().split()


def test_too_few_patients_leave_the_intervals_out() -> None:
    films = predictions()
    text = text_of(render_report(content(films.where(np.arange(60) < 8))))
    assert "missing where there are too few patients" in text


@pytest.mark.parametrize("protocol", ["paper", "official", "cv"])
def test_every_protocol_is_put_into_words(protocol: str) -> None:
    test_set = {"paper": "2,500 films", "official": "own test part", "cv": "one fold"}[protocol]
    assert test_set in render_report(content(protocol=protocol))


def test_the_same_content_gives_the_same_page(page: str) -> None:
    assert render_report(content()) == page
