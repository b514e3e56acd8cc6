"""The report: one self-contained HTML page, without network access or scripts.

It shows `reports/metrics.json` in words, tables and figures, with the cards of data and model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr.common.notices import NOT_CLINICAL, SYNTHETIC
from cxr.evaluation.headline import ERRORS, HEADLINES, SCORES
from cxr.reporting.paper import OTHER_IMAGES, averages_beside_paper, compare_with_paper, reasons_not_comparable
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


def render_report(content: ReportContent) -> str:
    """Return the report as HTML; the same content gives the same text."""
    content_by_name = {
        **vars(content),
        "headlines": HEADLINES,
        "scores": SCORES,
        "calibration_errors": ERRORS,
        "protocol": PROTOCOLS[content.metrics["protocol"]],
        "comparison": compare_with_paper(content.metrics),
        "averages": averages_beside_paper(content.metrics),
        "other_images": OTHER_IMAGES,
        "reasons_not_comparable": reasons_not_comparable(content.metrics),
        "gallery_by_class": _by_class(content.gallery),
        "not_clinical": NOT_CLINICAL,
        "synthetic_notice": SYNTHETIC,
    }
    return render("report.html.j2", content_by_name)


def _by_class(items: Sequence[GalleryItem]) -> dict[str, list[GalleryItem]]:
    groups: dict[str, list[GalleryItem]] = {}
    for item in items:
        groups.setdefault(item.actual, []).append(item)
    return groups
