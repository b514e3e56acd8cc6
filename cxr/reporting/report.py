"""The report: one HTML page that needs nothing else, neither network nor script.

It shows what `reports/metrics.json` holds, in words, tables and figures, with the cards of data and model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cxr.common.notices import NOT_CLINICAL, SYNTHETIC

PROTOCOLS = {
    "patient": "All images, divided by patient: no patient, and no pair of images that look alike, is in two parts.",
    "paper": "The 2,500 images of the paper's design (2,000 to train, 500 to test), drawn at random image by image.",
    "official": "The set's own test part is the test set; the model was trained on its train part, "
    "divided by patient for validation.",
    "cv": "All images in folds divided by patient; one fold is the test set.",
}


@dataclass(frozen=True)
class PaperClass:
    """One row of the paper's Table 2."""

    precision: float
    recall: float
    f1: float


PAPER_ACCURACY = 0.918
PAPER_ACCURACY_CI95 = (0.891, 0.939)  # Wilson, from its 500 images; the paper gives none
PAPER_AUROC = 0.92
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
    """What the page shows; the mappings are the JSON files that the steps wrote.

    trust     trust.json, see cxr.audit.trust
    audit     audit.json, see cxr.audit.shortcuts
    figures   name -> SVG: confusion_matrix, roc, reliability, probabilities, training_curves, abstention, audit_views
              and, where the classes ask for them, operating_points and decisions
    gallery   images by actual class
    errors    the most confident errors of all, the surest first
    digests   name -> hexadecimal digest
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
    """Return the page as HTML text; the same content gives the same text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(value=_value, interval=_interval, count=_count, duration=_duration, percent=_percent)
    return environment.get_template("report.html.j2").render(
        **vars(content),
        protocol=PROTOCOLS[content.metrics["protocol"]],
        comparison=compare_with_paper(content.metrics),
        why_not_comparable=why_not_comparable(content.metrics),
        gallery_by_class=_by_class(content.gallery),
        paper_accuracy=PAPER_ACCURACY,
        paper_accuracy_ci95=PAPER_ACCURACY_CI95,
        paper_auroc=PAPER_AUROC,
        not_clinical=NOT_CLINICAL,
        synthetic_notice=SYNTHETIC,
    )


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


def why_not_comparable(metrics: Mapping[str, Any]) -> list[str]:
    """Return the reasons why our figures cannot be set against the paper's; none where they can."""
    reasons = []
    if metrics["synthetic"]:
        reasons.append("ours come from synthetic images")
    if metrics["protocol"] != "paper":
        reasons.append(f"ours follow the protocol {metrics['protocol']}, the paper drew image by image at random")
    if metrics["task"] != "three_way":
        reasons.append("ours tell another set of classes apart")
    if metrics["n_test"] != PAPER_N_TEST:
        reasons.append(f"ours rest on {metrics['n_test']:,} test images, the paper's on {PAPER_N_TEST}")
    return reasons


def _by_class(items: Sequence[GalleryItem]) -> dict[str, list[GalleryItem]]:
    groups: dict[str, list[GalleryItem]] = {}
    for item in items:
        groups.setdefault(item.actual, []).append(item)
    return groups


def _value(number: float | None) -> str:
    return "not defined" if number is None else f"{number:.3f}"


def _interval(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"


def _count(number: int) -> str:
    return f"{number:,}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
