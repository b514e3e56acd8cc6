"""Model card and data card of a run, in Markdown, every number from the run's own files.

Sections follow Mitchell et al. 2019 (model cards) and Gebru et al. 2021 with Pushkarna et al. 2022 (data cards).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.common.notices import NOT_CLINICAL, SYNTHETIC
from cxr.evaluation.headline import ERRORS, SCORES
from cxr.reporting.report import PROTOCOLS
from cxr.reporting.templating import render

MODEL_CARD, DATA_CARD = "model_card.md", "data_card.md"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class PublicSet:
    """Published facts about a set with a known layout."""

    name: str
    creators: str
    address: str
    licence: str
    collected: str
    labels: str
    biases: tuple[str, ...]


PUBLIC_SETS = {
    "chest_xray": PublicSet(
        name="Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, version 2",
        creators="Kermany, Zhang and Goldbaum, 2018",
        address="https://doi.org/10.17632/rscbjbr9sj.2",
        licence="CC BY 4.0",
        collected="Frontal (anterior-posterior) images of children of one to five years, taken in routine care at the "
        "Guangzhou Women and Children's Medical Center.",
        labels="Read by two physicians; a third checked the set's own test part (Kermany et al. 2018).",
        biases=(
            "Children of one hospital: results do not carry over to adults, other hospitals or other machines.",
            "Bacterial and viral are readings of an image, not results of a culture; readers agree only moderately.",
            "Several images of one patient; one number stands for two people, one with each agent.",
            "Labels and style change together along the numbers of the file names (docs/data-forensics.md).",
            "Neither age, sex nor date of an image is published.",
        ),
    ),
    "covid19": PublicSet(
        name="Covid-19 Image Dataset",
        creators="Kaggle, pranavraikokte",
        address="https://www.kaggle.com/datasets/pranavraikokte/covid19-image-dataset",
        licence="CC BY-SA 4.0",
        collected="Images put together from public collections, mostly of adults.",
        labels="Taken over from those collections; how they were made is not documented.",
        biases=(
            "It has no bacterial class: where both sets are merged, the source gives part of the label away.",
            "Adults here, children in the Kermany set: age, size and text markers reveal the source.",
            "Neither patients, age, sex nor machine are published; each file counts as a patient of its own unless "
            "its name says otherwise.",
        ),
    ),
}
"""By the layout of a source. A folder with the layout of a set is not necessarily that set."""


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
        "sources": {name: _public_set(name, ingest) for name in ingest["sources"]},
    }
    for name in (MODEL_CARD, DATA_CARD):
        (folder / name).write_text(render(f"{name}.j2", content), encoding="utf-8")


def _public_set(name: str, ingest: Json) -> PublicSet | None:
    """Return the public description of a source; None for synthetic images or an unrecorded layout."""
    return None if ingest["synthetic"] else PUBLIC_SETS.get(ingest.get("layouts", {}).get(name, ""))
