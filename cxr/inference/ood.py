"""Whether a film is like those a model was judged on: if not, its answer may mean nothing, and people are told so.

Two things are looked at, each against the version's own reference films (cxr/models/reference.py), so that the limits move with
the model and no number is typed in here but how many ordinary films may be told a warning by each, 1 in 200.

grey levels   brightness, contrast, sharpness and the like, as one Mahalanobis distance: inverted films, photographs of
              films, flat pictures
features      the share of what the network sees that no reference film explains (`FeatureSpace.outside`): pictures of
              another kind, films on their side or upside down

A reference of few films gives no limit, and one of before there was such a share none for the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr.models.reference import MEASURES, Reference, folds_of, image_measures

_ORDINARY = 0.995  # quantile of the reference films' own values that is the limit
_FILMS_AT_LEAST = 50  # of fewer no such quantile is known
_RIDGE = 1e-3  # of each measure's variance: one that hardly varies must not decide alone
_GREY = tuple(name for name in MEASURES if name != "feature_distance")

OF_ANOTHER_KIND = "not like the films this model was judged on: it may be no frontal chest film, or not upright"
INVERTED = "looks inverted, with dark bones on a bright ground, or is no chest film: give it with bright bones"
OTHER_GREY_LEVELS = "grey levels not like those of the films this model was judged on: photographed, cropped or edited?"


@dataclass(frozen=True)
class _Greys:
    """Where the grey levels of reference films lie: `centre` (M,), `precision` (M, M)."""

    centre: NDArray[np.float64]
    precision: NDArray[np.float64]

    def distance(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the Mahalanobis distance of values (N, M), (N,)."""
        moved = values - self.centre
        return np.asarray(np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", moved, self.precision, moved), 0)))


@dataclass(frozen=True)
class Likeness:
    """The limits of one version; see the module. `outside_at_most` is None where its reference has no such share."""

    reference: Reference
    greys: _Greys
    grey_at_most: float
    outside_at_most: float | None

    def warnings(self, films: NDArray[np.uint8], features: NDArray[np.float32]) -> list[str | None]:
        """Return for each of N films what people should be told, None where there is nothing to say.

        Args:
            films: (N, H, W), prepared.
            features: (N, D), what the network's head saw of them.
        """
        odd = self.greys.distance(_columns(films)) > self.grey_at_most
        negative = odd & (self.greys.distance(_columns(255 - films)) <= self.grey_at_most)
        strange = np.zeros(len(films), np.bool_)
        if self.outside_at_most is not None:
            strange = self.reference.space.outside(features) > self.outside_at_most
        return [_words(*flags) for flags in zip(negative.tolist(), strange.tolist(), odd.tolist(), strict=True)]


def likeness_of(reference: Reference) -> Likeness | None:
    """Return the limits that the reference's films give; None where they are too few."""
    if len(reference.measures) < _FILMS_AT_LEAST:
        return None
    values = reference.measures[:, [MEASURES.index(name) for name in _GREY]].astype(np.float64)
    fold = folds_of(reference.patients)
    held_out = np.zeros(len(values))
    for number in np.unique(fold):
        if (fold != number).any():
            held_out[fold == number] = _fit(values[fold != number]).distance(values[fold == number])
    outside = reference.outside
    return Likeness(
        reference=reference,
        greys=_fit(values),
        grey_at_most=float(np.quantile(held_out, _ORDINARY)),
        outside_at_most=None if outside is None else float(np.quantile(outside, _ORDINARY)),
    )


def _fit(values: NDArray[np.float64]) -> _Greys:
    spread = np.cov(values.T)
    tiny = np.diag(np.maximum(_RIDGE * np.diag(spread), 1e-9))
    return _Greys(values.mean(axis=0), np.linalg.inv(spread + tiny))


def _columns(films: NDArray[np.uint8]) -> NDArray[np.float32]:
    measured = image_measures(films)
    return np.column_stack([measured[name] for name in _GREY])


def _words(negative: bool, strange: bool, odd: bool) -> str | None:
    if negative:
        return INVERTED
    if strange:
        return OF_ANOTHER_KIND
    return OTHER_GREY_LEVELS if odd else None
