"""What a version says of itself: its spec, its tags, and the metrics that it was registered with.

Tags that name places of another machine, such as that of the starting weights, stay in the registry.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from cxr.common.errors import CxrError
from cxr.common.notices import notice
from cxr.inference.classifier import Classifier
from cxr.registry.evaluation_store import evaluation_of
from cxr.registry.versions import MODEL, Version

_LINEAGE = ("protocol", "task", "git_commit", "manifest_sha256", "test_set_sha256", "weights_sha256")
_OVERALL = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "macro_auroc": "Macro AUROC",
    "ece": "Expected calibration error",
}
_PER_CLASS = ("precision", "recall", "specificity", "auroc")

log = logging.getLogger("cxr.webapp")


class Score(BaseModel):
    """A measured number with its 95% interval over patients, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


class ClassScores(BaseModel):
    """What was measured of one class on the test images."""

    images: int
    precision: Score | None = None
    recall: Score | None = None
    specificity: Score | None = None
    auroc: Score | None = None


class Measured(BaseModel):
    """What was measured on the test images, as registered with the version."""

    images: int
    patients: int | None
    overall: dict[str, Score]
    per_class: dict[str, ClassScores]


class Card(BaseModel):
    """A version of the model, and what is known of it."""

    model: str
    model_version: str
    engine: str = Field(description='What computes: "torch", to the bit as evaluated, or "openvino" and its precision')
    synthetic: bool = Field(description="Trained on synthetic images: the answers say nothing about patients")
    classes: list[str]
    network: str
    members: int
    image_size_px: int
    refer_below: float | None = Field(description="An image whose largest probability is below goes to a reader")
    max_pixels: int = Field(description="Of one image")
    measured: Measured | None = Field(description="None where the registry has no evidence, or it was changed since")
    lineage: dict[str, str]
    disclaimer: str


def read_card(version: Version, classifier: Classifier) -> Card:
    """Return what the registry knows of a version."""
    spec = classifier.spec
    return Card(
        model=MODEL,
        model_version=version.number,
        engine=classifier.engine,
        synthetic=spec.synthetic,
        classes=list(spec.classes),
        network=f"{spec.backbone}, head {spec.head}",
        members=spec.members,
        image_size_px=spec.preprocessing.image_size_px,
        refer_below=spec.refer_below,
        max_pixels=spec.preprocessing.max_pixels,
        measured=_measured(version),
        lineage={name: version.tags[name] for name in _LINEAGE if name in version.tags},
        disclaimer=notice(synthetic=spec.synthetic),
    )


def _measured(version: Version) -> Measured | None:
    try:
        evidence = evaluation_of(version)
    except CxrError as error:
        log.warning("page: the card of version %s has no metrics: %s", version.number, error)
        return None
    if evidence.metrics is None or evidence.changed:
        return None
    metrics = evidence.metrics
    overall = {**metrics, "ece": metrics.get("calibration", {}).get("ece")}
    intervals = metrics.get("ci95", {})
    return Measured(
        images=int(metrics.get("n_test", 0)),
        patients=metrics.get("n_patients"),
        overall={
            title: score for name, title in _OVERALL.items() if (score := _score(overall, intervals, name)) is not None
        },
        per_class={
            label: _of_class(scores, intervals.get("per_class", {}).get(label, {}))
            for label, scores in metrics.get("per_class", {}).items()
        },
    )


def _of_class(scores: Mapping[str, Any], intervals: Mapping[str, Any]) -> ClassScores:
    named = {name: _score(scores, intervals, name) for name in _PER_CLASS}
    return ClassScores(images=int(scores.get("support", 0)), **named)


def _score(values: Mapping[str, Any], intervals: Mapping[str, Any], name: str) -> Score | None:
    value, interval = values.get(name), intervals.get(name)
    if not isinstance(value, int | float):
        return None
    low, high = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
    return Score(value=value, low=low, high=high)
