"""Whether an image is like those a model was judged on: if not, its answer may mean nothing, and people are told so.

Two things are looked at, each against the version's own reference images (cxr/models/reference.py), so that the limits move with
the model and no number is typed in here but how many ordinary images may be told a warning by each, 1 in 200.

grey levels   brightness, contrast, sharpness and the like, as one Mahalanobis distance: inverted images, photographs of
              images, flat pictures
features      the share of what the network sees that no reference image explains (`FeatureSpace.outside`): pictures of
              another kind, images on their side or upside down

A reference of few images gives no limit, and one of before there was such a share none for the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr.models.reference import MEASURES, Reference, folds_of, image_measures

_ORDINARY = 0.995  # quantile of the reference images' own values that is the limit
_IMAGES_AT_LEAST = 50  # of fewer no such quantile is known
_RIDGE = 1e-3  # of each measure's variance: one that hardly varies must not decide alone
_GREY = tuple(name for name in MEASURES if name != "feature_distance")

OF_ANOTHER_KIND = "not like the images this model was judged on: it may be no frontal chest X-ray, or not upright"
INVERTED = "looks inverted, with dark bones on a bright ground, or is no chest X-ray: give it with bright bones"
OTHER_GREY_LEVELS = (
    "grey levels not like those of the images this model was judged on: photographed, cropped or edited?"
)


@dataclass(frozen=True)
class _Greys:
    """Where the grey levels of reference images lie: `centre` (M,), `precision` (M, M)."""

    centre: NDArray[np.float64]
    precision: NDArray[np.float64]

    def distance(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the Mahalanobis distance of values (N, M), (N,)."""
        moved = values - self.centre
        return np.asarray(np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", moved, self.precision, moved), 0)))


@dataclass(frozen=True)
class OodDetector:
    """The limits of one version; see the module. `outside_at_most` is None where its reference has no such share."""

    reference: Reference
    greys: _Greys
    grey_at_most: float
    outside_at_most: float | None

    def warnings(self, images: NDArray[np.uint8], features: NDArray[np.float32]) -> list[str | None]:
        """Return for each of N images what people should be told, None where there is nothing to say.

        Args:
            images: (N, H, W), prepared.
            features: (N, D), what the network's head saw of them.
        """
        odd = self.greys.distance(_columns(images)) > self.grey_at_most
        negative = odd & (self.greys.distance(_columns(255 - images)) <= self.grey_at_most)
        strange = np.zeros(len(images), np.bool_)
        if self.outside_at_most is not None:
            strange = self.reference.space.outside(features) > self.outside_at_most
        return [_words(*flags) for flags in zip(negative.tolist(), strange.tolist(), odd.tolist(), strict=True)]


def ood_detector(reference: Reference) -> OodDetector | None:
    """Return the limits that the reference's images give; None where they are too few."""
    if len(reference.measures) < _IMAGES_AT_LEAST:
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
        grey_at_most=float(np.quantile(held_out, _ORDINARY)),
        outside_at_most=None if outside is None else float(np.quantile(outside, _ORDINARY)),
    )


def _fit(values: NDArray[np.float64]) -> _Greys:
    spread = np.cov(values.T)
    tiny = np.diag(np.maximum(_RIDGE * np.diag(spread), 1e-9))
    return _Greys(values.mean(axis=0), np.linalg.inv(spread + tiny))


def _columns(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    measured = image_measures(images)
    return np.column_stack([measured[name] for name in _GREY])


def _words(negative: bool, strange: bool, odd: bool) -> str | None:
    if negative:
        return INVERTED
    if strange:
        return OF_ANOTHER_KIND
    return OTHER_GREY_LEVELS if odd else None
