"""Model card and data card of a run, in Markdown, every number from the run's own files.

Sections follow Mitchell et al. 2019 (model cards) and Gebru et al. 2021 with Pushkarna et al. 2022 (data cards).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxr.common.notices import NOT_CLINICAL, SYNTHETIC
from cxr.evaluation.headline import ERRORS, SCORES
from cxr.evaluation.result_files import MODEL_CARD_FILE
from cxr.reporting.public_sets import public_set
from cxr.reporting.report import PROTOCOLS
from cxr.reporting.templating import render

DATA_CARD_FILE = "data_card.md"

Json = Mapping[str, Any]


def write_cards(
    folder: Path,
    *,
    metrics: Json,
    calibration: Json,
    training: Json,
    model: Json,
    ingest: Json,
    split: Json,
    audit: Json,
    trust: Json,
) -> None:
    """Write model_card.md and data_card.md into `folder`; the same content gives the same bytes.

    Args:
        folder: exists.
        metrics, calibration, training, model, ingest, split, audit: the JSON files of those names.
        trust: trust.json: operating points, referral, attention.

    Raises:
        jinja2.UndefinedError: a file lacks a value of a card.
        DataError: metrics.json lacks a headline metric.
    """
    content = {
        "metrics": metrics,
        "calibration": calibration,
        "training": training,
        "model": model,
        "ingest": ingest,
        "split": split,
        "audit": audit,
        "trust": trust,
        "protocol": PROTOCOLS[metrics["protocol"]],
        "scores": SCORES,
        "calibration_errors": ERRORS,
        "not_clinical": NOT_CLINICAL,
        "synthetic_notice": SYNTHETIC,
        "sources": {name: public_set(name, ingest) for name in ingest["sources"]},
        **_by_naming(ingest),
    }
    for name in (MODEL_CARD_FILE, DATA_CARD_FILE):
        (folder / name).write_text(render(f"{name}.j2", content), encoding="utf-8")


def _by_naming(ingest: Json) -> dict[str, list[str]]:
    """Return the sources whose file names identify patients, and those where labels.csv or DICOM tags do."""
    labelled = [name for name in ingest["sources"] if ingest.get("layouts", {}).get(name) == "labelled"]
    return {"labelled": labelled, "by_file_name": [name for name in ingest["sources"] if name not in labelled]}
