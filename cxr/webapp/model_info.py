"""The model card of a version: its spec, its lineage tags, and the metrics it was registered with.

Tags that hold paths of another machine, such as that of the initial weights, are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from cxr.common.errors import CxrError
from cxr.common.notices import notice
from cxr.evaluation.headline import HEADLINES
from cxr.inference.classifier import Classifier
from cxr.registry.evaluation_store import evaluation_of
from cxr.registry.versions import MODEL, Version

_LINEAGE = ("protocol", "task", "git_commit", "manifest_sha256", "test_set_sha256", "weights_sha256")
_PER_CLASS = ("precision", "recall", "specificity", "auroc")

log = logging.getLogger("cxr.webapp")

EngineName = Annotated[
    str,
    Field(description='Inference engine: "torch", bit-identical to the evaluation, or "openvino" and its precision'),
]


class Score(BaseModel):
    """A measured value with its 95% interval over patients, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


class ClassScores(BaseModel):
    """The metrics of one class on the test set."""

    images: int
    predicted: int | None = Field(default=None, description="Test images, of any class, that it predicts as this one")
    precision: Score | None = None
    recall: Score | None = None
    specificity: Score | None = None
    auroc: Score | None = None


class Measured(BaseModel):
    """The metrics on the test set, as registered with the version."""

    images: int
    patients: int | None
    overall: dict[str, Score]
    per_class: dict[str, ClassScores]


class ModelCard(BaseModel):
    """A version of the model, and what is known about it."""

    model: str
    model_version: str
    engine: EngineName
    synthetic: bool = Field(description="Trained on synthetic images: the answers say nothing about patients")
    classes: list[str]
    network: str
    members: int
    image_size_px: int
    refer_below: float | None = Field(
        description="Images whose largest probability is below this are referred to a reader"
    )
    max_pixels: int = Field(description="Largest image accepted")
    measured: Measured | None = Field(
        description="null: the registry has no evaluation of this version, or it was changed since"
    )
    lineage: dict[str, str]
    disclaimer: str


def read_card(version: Version, classifier: Classifier) -> ModelCard:
    """Return the model card of a version."""
    spec = classifier.spec
    return ModelCard(
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
        evaluation = evaluation_of(version)
    except CxrError as error:
        log.warning("app: the model card of version %s has no metrics: %s", version.number, error)
        return None
    if evaluation.metrics is None or evaluation.changed:
        return None
    return measured_of(evaluation.metrics)


def measured_of(metrics: Mapping[str, Any]) -> Measured:
    """Return what the page shows of the metrics in `metrics.json`."""
    intervals = metrics.get("ci95", {})
    counts = zip(*metrics.get("confusion_matrix", []), strict=True)  # by predicted class
    predicted = {label: sum(column) for label, column in zip(metrics.get("classes", []), counts, strict=False)}
    return Measured(
        images=int(metrics.get("n_test", 0)),
        patients=metrics.get("n_patients"),
        overall={
            metric.title: score
            for metric in HEADLINES
            if (score := _score({metric.name: metric.stored_in(metrics)}, intervals, metric.name)) is not None
        },
        per_class={
            label: _of_class(scores, intervals.get("per_class", {}).get(label, {}), predicted.get(label))
            for label, scores in metrics.get("per_class", {}).items()
        },
    )


def _of_class(scores: Mapping[str, Any], intervals: Mapping[str, Any], predicted: int | None) -> ClassScores:
    named = {name: _score(scores, intervals, name) for name in _PER_CLASS}
    return ClassScores(images=int(scores.get("support", 0)), predicted=predicted, **named)


def _score(values: Mapping[str, Any], intervals: Mapping[str, Any], name: str) -> Score | None:
    value, interval = values.get(name), intervals.get(name)
    if not isinstance(value, int | float):
        return None
    low, high = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
    return Score(value=value, low=low, high=high)
