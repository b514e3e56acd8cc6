"""The report: one self-contained HTML page, without network access or scripts.

It shows `reports/metrics.json` in words, tables and figures, with the cards of data and model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr.common.notices import NOT_CLINICAL, SYNTHETIC
from cxr.evaluation.comparison import Comparison
from cxr.evaluation.headline import COMPARED, ERRORS, HEADLINES, SCORES
from cxr.reporting.front_page import (
    FrontPage,
    how_good,
    on_whom,
    verdict_of,
    what_it_is,
    where_it_fails,
    with_contents,
)
from cxr.reporting.paper import (
    OTHER_IMAGES,
    PAPER_AUROC,
    averages_beside_paper,
    compare_with_paper,
    reasons_not_comparable,
)
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
class Champion:
    """This model beside the champion before it.

    champion    its version
    comparison  this model minus the champion on the same test images; None where that is not possible
    because     why not; "" with a comparison
    """

    champion: str
    comparison: Comparison | None = None
    because: str = ""


@dataclass(frozen=True)
class GalleryItem:
    """One image of the gallery; `image` and `overlay` are `data:` addresses of pictures."""

    image_id: str
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
    front     the front page, see `front_page`
    champion  this model beside the champion before it; None where there is none
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
    front: FrontPage
    champion: Champion | None = None
    looks: int | None = None


def front_page(content: Mapping[str, Any], *, origin: Mapping[str, str]) -> FrontPage:
    """Return the front page of a report.

    Args:
        content: the JSON files that the steps wrote, by name.
        origin: date, commit, version and role, as the registry knows them.
    """
    metrics, model, split = content["metrics"], content["model"], content["split"]
    parts = [f"{part} {sum(split['counts'].get(part, {}).values()):,}" for part in ("train", "validation", "test")]
    network = f"A {model['backbone']} network"
    if model["members"] > 1:
        network = f"An ensemble of {model['members']} {model['backbone']} networks"
    return FrontPage(
        sentences={
            "What it is": what_it_is(metrics["classes"], network=network),
            "How good it is": how_good(metrics),
            "On whom": on_whom(metrics, content["ingest"], split["leakage"]),
            "Where it fails": where_it_fails(metrics),
            "Verdict of the audit": verdict_of(content["audit"]),
        },
        facts={
            **origin,
            "Data": f"{', '.join(content['ingest']['sources'])}; images: {', '.join(parts)}",
            "Protocol": metrics["protocol"],
        },
    )


def render_report(content: ReportContent) -> str:
    """Return the report as HTML; the same content gives the same text."""
    matrix = np.asarray(content.metrics["confusion_matrix"])
    classes = content.metrics["classes"]
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
        "ours_found": dict(zip(classes, matrix.diagonal().tolist(), strict=True)),
        "ours_called": dict(zip(classes, matrix.sum(axis=0).tolist(), strict=True)),
        "paper_auroc": PAPER_AUROC,
        "compared": COMPARED,
        "gallery_by_class": _by_class(content.gallery),
        "not_clinical": NOT_CLINICAL,
        "synthetic_notice": SYNTHETIC,
    }
    return with_contents(render("report.html.j2", content_by_name))


def _by_class(items: Sequence[GalleryItem]) -> dict[str, list[GalleryItem]]:
    groups: dict[str, list[GalleryItem]] = {}
    for item in items:
        groups.setdefault(item.actual, []).append(item)
    return groups
