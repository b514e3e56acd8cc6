"""What a clinician asks before trusting a model, measured from predictions, heat maps and random weights.

The result is trust.json. Where a part cannot be measured, `unavailable_because` gives the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cxr.audit.saliency import Normalisation, attention_in_thorax, randomisation_check
from cxr.dataset.image_array import ImageArray
from cxr.evaluation.bootstrap import Resampling
from cxr.evaluation.clinical_utility import (
    Flags,
    abstention_curve,
    decision_curve,
    decisions_of,
    operating_point,
    refer,
    refer_confidence,
    threshold_at_specificity,
)
from cxr.evaluation.predictions import Predictions
from cxr.evaluation.rates import Floats
from cxr.models.bundle import ModelSpec
from cxr.models.grad_cam import grad_cam_of_images


@dataclass(frozen=True)
class TrustSettings:
    """The targets, and the numbers of test images for the costly parts."""

    specificities: Sequence[float]
    refer_accuracy: float
    attention_images: int
    sanity_images: int
    resamples: int
    seed: int


def measure_trust(
    model: nn.Module,
    spec: ModelSpec,
    packed: ImageArray,
    *,
    validation: Predictions,
    test: Predictions,
    settings: TrustSettings,
) -> dict[str, Any]:
    """Return trust.json.

    Args:
        model: in evaluation mode, on any device.
        spec: its description.
        packed: the prepared images.
        validation: the images that thresholds are chosen on.
        test: the images that they are measured on.
        settings: targets and numbers of images.
    """
    return {
        "operating_points": operating_points(validation, test, settings),
        "referral": referral(validation, test, settings),
        "decisions": decisions(test, settings),
        **_attention(model, spec, packed, test, settings),
    }


def operating_points(validation: Predictions, test: Predictions, settings: TrustSettings) -> dict[str, Any]:
    """Return thresholds for pneumonia against normal from validation images, with their rates on test images."""
    chosen_on, measured_on = (decision_scores(images, "pneumonia") for images in (validation, test))
    if chosen_on is None or measured_on is None:
        return _no_points("the classes do not separate normal images from others")
    scores, positive = chosen_on
    n_normal, n_positive = int((~positive).sum()), int(positive.sum())
    if not n_normal:
        return _no_points("no validation image is normal, so no threshold can be chosen")
    draws = _draws(test, settings)
    points = []
    for target in settings.specificities:
        threshold = threshold_at_specificity(scores, positive, target)
        if threshold is not None:
            point = operating_point(*measured_on, threshold=threshold, target_specificity=target, draws=draws)
            points.append(point.to_json())
    return {
        "unavailable_because": None,
        "validation_normal": n_normal,
        "validation_pneumonia": n_positive,
        "points": points,
    }


def referral(validation: Predictions, test: Predictions, settings: TrustSettings) -> dict[str, Any]:
    """Return the abstention curve of the test images, and the referral threshold that validation images give."""
    confidence, right = _confidence(test)
    draws = _draws(test, settings)
    threshold = refer_confidence(
        *_confidence(validation), accuracy=settings.refer_accuracy, draws=_draws(validation, settings)
    )
    found = None if threshold is None else refer(confidence, right, threshold=threshold, draws=draws).to_json()
    reason = (
        f"no threshold keeps validation images with an accuracy that is {settings.refer_accuracy:.0%} or more with 95% "
        "confidence"
    )
    return {
        "target_accuracy": settings.refer_accuracy,
        "unavailable_because": reason if found is None else None,
        "validation_images": len(validation.labels),
        "found": found,
        "curve": [point.to_json() for point in abstention_curve(confidence, right, draws)],
    }


def decisions(test: Predictions, settings: TrustSettings) -> dict[str, Any]:
    """Return the decision curve of each yes-or-no decision, with the share of positive test images."""
    draws = _draws(test, settings)
    return {
        name: {"share_positive": float(positive.mean()), **decision_curve(scores, positive, draws).to_json()}
        for name, (scores, positive) in decisions_of(test.classes, test.labels, test.calibrated).items()
    }


def headlines(trust: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of trust.json that metrics.json repeats."""
    attention, sanity = trust["attention"], trust["sanity"]
    return {
        "operating_points": trust["operating_points"]["points"],
        "refer": trust["referral"]["found"],
        "attention": {
            "heat_inside_thorax": attention["heat_inside"] if attention else None,
            "area_inside_thorax": attention["area_inside"] if attention else None,
            "keeps_to_the_thorax": attention["keeps_to_the_thorax"] if attention else None,
            "depends_on_weights": sanity["depends_on_weights"],
        },
    }


def _attention(
    model: nn.Module, spec: ModelSpec, packed: ImageArray, test: Predictions, settings: TrustSettings
) -> dict[str, Any]:
    """Return `attention` (None where all maps are empty) and `sanity`, on test images drawn at random."""
    order = np.random.default_rng(settings.seed).permutation(len(test.labels))
    scale = Normalisation(spec.mean, spec.std)
    images, predicted, drawn = _drawn(packed, test, order[: settings.attention_images])
    heat = grad_cam_of_images(model, images, predicted, mean=spec.mean, std=spec.std)
    attention = attention_in_thorax(heat, images, _draws(drawn, settings))
    images, predicted, drawn = _drawn(packed, test, order[: settings.sanity_images])
    sanity = randomisation_check(model, images, predicted, scale=scale, draws=_draws(drawn, settings))
    return {"attention": attention.to_json() if attention else None, "sanity": sanity.to_json()}


def _drawn(
    packed: ImageArray, test: Predictions, rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], Predictions]:
    """Return the pixels, the predicted classes and the predictions of some images, in their order."""
    drawn = test.where(np.sort(rows))
    images = np.array(packed.images[packed.rows(drawn.image_ids.tolist())])
    return images, drawn.calibrated.argmax(axis=1), drawn


def decision_scores(images: Predictions, name: str) -> tuple[Floats, Flags] | None:
    """Return score and truth (N,) of a decision of `decisions_of`; None where the classes do not ask for it."""
    return decisions_of(images.classes, images.labels, images.calibrated).get(name)


def _confidence(images: Predictions) -> tuple[Floats, Flags]:
    """Return the probability of the predicted class, and whether it is the true one; both (N,)."""
    return images.calibrated.max(axis=1), images.calibrated.argmax(axis=1) == images.labels


def _draws(images: Predictions, settings: TrustSettings) -> Resampling:
    return Resampling(images.patients, settings.resamples, settings.seed)


def _no_points(reason: str) -> dict[str, Any]:
    return {"unavailable_because": reason, "validation_normal": 0, "validation_pneumonia": 0, "points": []}
