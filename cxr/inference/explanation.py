"""Where the model looked, for an image at its original size: the picture for people, the values for programs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr.imaging.overlay import Caption, draw_overlay, heat_levels
from cxr.inference.answer import Answer
from cxr.inference.classifier import Classifier
from cxr.models.bundle import ModelSpec

LEVELS_SIDE_PX = 512
"""Longer side of the values: many times finer than the cells of any network, and 0.8 MB instead of 16 MB."""


@dataclass(frozen=True)
class Explanation:
    """Where the model looked for its predicted class.

    picture   (H, W, 3) RGB, the image with the heat and a caption; see cxr.imaging.overlay.draw_overlay
    levels    (h, w), 0 to 1, the heat alone, in the aspect of the image, with LEVELS_SIDE_PX on the longer side
    """

    picture: NDArray[np.uint8]
    levels: NDArray[np.float32]


def explain(grey: NDArray[np.uint8], pixels: NDArray[np.uint8], answer: Answer, classifier: Classifier) -> Explanation:
    """Return where the model looked in an image at its own size (H, W); `pixels` (h, w) are the same, prepared."""
    of_class, spec = answer.predicted_class, classifier.spec
    (heat,) = classifier.heat(pixels[None], [of_class])
    scale = LEVELS_SIDE_PX / max(grey.shape)
    size = (max(1, round(grey.shape[0] * scale)), max(1, round(grey.shape[1] * scale)))
    return Explanation(
        captioned_overlay(grey, heat, answer, of_class, spec, version=classifier.number),
        heat_levels(heat, answer.probabilities[of_class], size, spec.preprocessing),
    )


def captioned_overlay(
    grey: NDArray[np.uint8], heat: NDArray[np.float32], answer: Answer, of_class: str, spec: ModelSpec, *, version: str
) -> NDArray[np.uint8]:
    """Return an image with the heat of a class; see cxr.imaging.overlay.

    Args:
        grey: (H, W), the original image.
        heat: (h, w) of that class, from `Classifier.heat`.
        answer: of the model.
        of_class: one of its classes.
        spec: of the model.
        version: of the model.
    """
    caption = Caption(of_class, answer.probabilities[of_class], f"version {version}", spec.synthetic, answer.warning)
    return draw_overlay(grey, heat, spec.preprocessing, caption)
