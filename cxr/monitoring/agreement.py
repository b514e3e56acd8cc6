"""How often readers agree with the champion, by month, with Wilson's interval (Wilson 1927)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cxr.inference.feedback import Feedback, last_of_each_image

_Z = 1.959964  # of 95%


@dataclass(frozen=True)
class Agreement:
    """Agreement in one month.

    month       YYYY-MM
    images      that readers looked at
    agreed      with the predicted class
    share       agreed / images
    low, high   of its 95% interval
    """

    month: str
    images: int
    agreed: int
    share: float
    low: float
    high: float


def agreement_by_month(rows: Sequence[Feedback], *, version: str) -> list[Agreement]:
    """Return the agreement with the answers of a version, the oldest month first.

    An image counts once, by its last feedback, in the month of that feedback.
    """
    months: dict[str, list[bool]] = defaultdict(list)
    own = [row for row in rows if row.model_version == version]
    for row in last_of_each_image(own).values():
        months[row.time[:7]].append(row.agrees)
    return [_agreement(month, sum(agreed), len(agreed)) for month, agreed in sorted(months.items())]


def _agreement(month: str, agreed: int, images: int) -> Agreement:
    low, high = wilson_interval(agreed, images)
    return Agreement(month, images, agreed, agreed / images, low, high)


def wilson_interval(hits: int, of: int) -> tuple[float, float]:
    """Return the 95% interval of a share of one or more."""
    share, square = hits / of, _Z**2
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = _Z * math.sqrt(share * (1 - share) / of + square / (4 * of**2)) / (1 + square / of)
    return max(0.0, middle - half), min(1.0, middle + half)
