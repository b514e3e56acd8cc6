"""The report: one self-contained HTML page, without network access or scripts.

It shows `reports/metrics.json` in words, tables and figures, with the cards of data and model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr.common.notices import NOT_CLINICAL, SYNTHETIC
from cxr.evaluation.headline import ERRORS, HEADLINES, SCORES
from cxr.reporting.templating import render

PROTOCOLS = {
    "patient": "All images, split by patient; near-duplicate images stay in one part.",
    "paper": "The 2,500 images of the paper's design (2,000 to train, 500 to test), drawn at random by image; patients "
    "overlap.",
    "official": "The set's own test part is the test set; its train part is split by patient into training and "
    "validation.",
    "cv": "All images in folds by patient; one fold is the test set.",
    "block": "One contiguous block of the order of acquisition is the test set; the other blocks are split by patient "
    "into training and validation.",
}


@dataclass(frozen=True)
class PaperClass:
    """One row of the paper's Table 2."""

    precision: float
    recall: float
    f1: float


PAPER_N_TEST = 500
PAPER_CLASSES = {
    "normal": PaperClass(precision=0.935, recall=0.867, f1=0.900),
    "viral": PaperClass(precision=0.866, recall=0.907, f1=0.886),
    "bacterial": PaperClass(precision=0.946, recall=0.965, f1=0.955),
}
"""Pham and Nguyen 2023, Table 2."""


@dataclass(frozen=True)
class GalleryItem:
    """One image of the gallery; `image` and `overlay` are `data:` addresses of pictures."""

    image: str
    overlay: str
    actual: str
    predicted: str
    probability: float
    correct: bool
    source: str


@dataclass(frozen=True)
class ReportContent:
    """The content of the report; the mappings are the JSON files that the steps wrote.

    trust     trust.json, see cxr.audit.trust
    audit     audit.json, see cxr.audit.shortcuts
    figures   name -> SVG: confusion_matrix, roc, reliability, probabilities, training_curves, abstention, audit_views
              and, depending on the classes, operating_points and decisions
    gallery   images by actual class
    errors    the most confident errors of any class, the most confident first
    digests   name -> hexadecimal digest
    looks     how many models were measured on this test set so far; None where the store does not say
    """

    metrics: Mapping[str, Any]
    calibration: Mapping[str, Any]
    training: Mapping[str, Any]
    model: Mapping[str, Any]
    ingest: Mapping[str, Any]
    split: Mapping[str, Any]
    trust: Mapping[str, Any]
    audit: Mapping[str, Any]
    figures: Mapping[str, str]
    gallery: Sequence[GalleryItem]
    errors: Sequence[GalleryItem]
    digests: Mapping[str, str]
    looks: int | None = None


@dataclass(frozen=True)
class Compared:
    """The paper's value and ours, with our 95% interval where there is one."""

    paper: float
    ours: float | None
    ours_ci95: Sequence[float] | None


@dataclass(frozen=True)
class ComparedClass:
    """One row of the comparison: precision, recall and F1 of a class."""

    name: str
    cells: dict[str, Compared]


def render_report(content: ReportContent) -> str:
    """Return the report as HTML; the same content gives the same text."""
    content_by_name = {
        **vars(content),
        "headlines": HEADLINES,
        "scores": SCORES,
        "calibration_errors": ERRORS,
        "protocol": PROTOCOLS[content.metrics["protocol"]],
        "comparison": compare_with_paper(content.metrics),
        "reasons_not_comparable": reasons_not_comparable(content.metrics),
        "gallery_by_class": _by_class(content.gallery),
        "not_clinical": NOT_CLINICAL,
        "synthetic_notice": SYNTHETIC,
    }
    return render("report.html.j2", content_by_name)


def compare_with_paper(metrics: Mapping[str, Any]) -> list[ComparedClass]:
    """Return the rows of the paper's Table 2 with our values beside them, of the classes that both have."""
    rows = []
    for name, paper in PAPER_CLASSES.items():
        if name not in metrics["per_class"]:
            continue
        ours, ci95 = metrics["per_class"][name], metrics["ci95"]["per_class"][name]
        cells = {
            title: Compared(getattr(paper, figure), ours[figure], ci95[figure])
            for title, figure in (("Precision", "precision"), ("Recall", "recall"), ("F1", "f1"))
        }
        rows.append(ComparedClass(name, cells))
    return rows


def reasons_not_comparable(metrics: Mapping[str, Any]) -> list[str]:
    """Return the reasons why our results are not comparable with the paper's; empty if they are."""
    reasons = []
    if metrics["synthetic"]:
        reasons.append("ours come from synthetic images")
    if metrics["protocol"] != "paper":
        reasons.append(f"ours follow the protocol {metrics['protocol']}, the paper drew images at random")
    if metrics["task"] != "three_way":
        reasons.append("ours use another set of classes")
    if metrics["n_test"] != PAPER_N_TEST:
        reasons.append(f"ours rest on {metrics['n_test']:,} test images, the paper's on {PAPER_N_TEST}")
    return reasons


def _by_class(items: Sequence[GalleryItem]) -> dict[str, list[GalleryItem]]:
    groups: dict[str, list[GalleryItem]] = {}
    for item in items:
        groups.setdefault(item.actual, []).append(item)
    return groups
