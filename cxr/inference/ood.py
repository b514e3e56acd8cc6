"""Out-of-distribution (OOD) detection: an image unlike the model's reference images gets a warning with its answer.

Two checks compare an image with the version's own reference images (cxr/models/reference.py), so that the limits depend
on the model. The only constant is the share of ordinary images that each check may warn about, 1 in 200.

grey levels   brightness, contrast, sharpness and the like, as one Mahalanobis distance: finds photographs of images,
              flat pictures
features      the share of the network's features that no reference image explains (`FeatureSpace.outside`): finds
              pictures of other things

Which way up an image is, and whether it is inverted, another check says (cxr/inference/orientation.py).

A reference of few images gives no limits. One stored before that share was recorded gives none for the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr.models.reference import MEASURES, Reference, folds_of, image_measures

_ORDINARY = 0.995  # the limit is this quantile of the reference images' own values
_MIN_IMAGES = 50  # fewer do not determine such a quantile
_RIDGE = 1e-3  # share of each measure's variance: a measure that hardly varies must not decide alone
_GREY = tuple(name for name in MEASURES if name != "feature_distance")

OF_ANOTHER_KIND = "unlike the images this model was tested on: it may be no frontal chest X-ray, or not upright"
OTHER_GREY_LEVELS = "grey levels unlike those of the images this model was tested on: photographed, cropped or edited?"


@dataclass(frozen=True)
class _Greys:
    """The distribution of the reference images' grey levels: `centre` (M,), `precision` (M, M)."""

    centre: NDArray[np.float64]
    precision: NDArray[np.float64]

    def distance(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the Mahalanobis distance of values (N, M), (N,)."""
        moved = values - self.centre
        return np.asarray(np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", moved, self.precision, moved), 0)))


@dataclass(frozen=True)
class OodDetector:
    """The limits of one version; see the module. `max_outside` is None where its reference has no such share."""

    reference: Reference
    greys: _Greys
    max_grey: float
    max_outside: float | None

    def warnings(self, images: NDArray[np.uint8], features: NDArray[np.float32]) -> list[str | None]:
        """Return the warning for each of N images, None for none.

        Args:
            images: (N, H, W), prepared.
            features: (N, D), the input of the network's head.
        """
        odd = self.greys.distance(_columns(images)) > self.max_grey
        strange = np.zeros(len(images), np.bool_)
        if self.max_outside is not None:
            strange = self.reference.space.outside(features) > self.max_outside
        return [_words(*flags) for flags in zip(strange.tolist(), odd.tolist(), strict=True)]


def ood_detector(reference: Reference) -> OodDetector | None:
    """Return the limits that the reference images give; None where they are too few."""
    if len(reference.measures) < _MIN_IMAGES:
        return None
    values = reference.measures[:, [MEASURES.index(name) for name in _GREY]].astype(np.float64)
    fold = folds_of(reference.patients)
    held_out = np.zeros(len(values))
    for number in np.unique(fold):
        if (fold != number).any():
            held_out[fold == number] = _fit(values[fold != number]).distance(values[fold == number])
    outside = reference.outside
    return OodDetector(
        reference=reference,
        greys=_fit(values),
        max_grey=float(np.quantile(held_out, _ORDINARY)),
        max_outside=None if outside is None else float(np.quantile(outside, _ORDINARY)),
    )


def _fit(values: NDArray[np.float64]) -> _Greys:
    spread = np.cov(values.T)
    tiny = np.diag(np.maximum(_RIDGE * np.diag(spread), 1e-9))
    return _Greys(values.mean(axis=0), np.linalg.inv(spread + tiny))


def _columns(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    measured = image_measures(images)
    return np.column_stack([measured[name] for name in _GREY])


def _words(strange: bool, odd: bool) -> str | None:
    if strange:
        return OF_ANOTHER_KIND
    return OTHER_GREY_LEVELS if odd else None
