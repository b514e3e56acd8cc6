"""Clinical utility: operating points, referral of uncertain images, and net benefit.

Every threshold is chosen on the validation images and measured on the test images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from cxr.evaluation.bootstrap import Interval, Resampling, pair
from cxr.evaluation.metrics import defined
from cxr.evaluation.rates import Floats, Ints

Flags = NDArray[np.bool_]

_BOUND_LEVEL = 0.05  # one-sided, of the accuracy that a referral threshold must reach
_MOST_CANDIDATES = 500  # thresholds that the bootstrap checks: bounds its memory

COVERAGES = tuple(share / 100 for share in range(5, 101, 5))
DECISION_THRESHOLDS = tuple(share / 100 for share in range(2, 99, 2))


@dataclass(frozen=True)
class Rate:
    """A share of `of` images, with its 95% interval; None where `of` is 0."""

    value: float | None
    interval: Interval | None
    of: int

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {"value": self.value, "ci95": pair(self.interval), "of": self.of}


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold: images with a higher probability of pneumonia are called positive. Rates on the test images."""

    target_specificity: float
    threshold: float
    sensitivity: Rate
    specificity: Rate

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        return _with_plain_rates(vars(self))


@dataclass(frozen=True)
class Coverage:
    """A point of the abstention curve: the share and the accuracy of the images with at least this confidence."""

    confidence: float
    coverage: float
    accuracy: float
    interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "confidence": self.confidence,
            "coverage": self.coverage,
            "accuracy": self.accuracy,
            "ci95": pair(self.interval),
        }


@dataclass(frozen=True)
class Referral:
    """The effect of referring images with a lower confidence than `confidence` to a reader.

    coverage          share of images that the model answers
    accuracy_on_kept  share of those that are right
    errors_caught     share of the model's errors that go to a reader
    """

    confidence: float
    coverage: Rate
    accuracy_on_kept: Rate
    errors_caught: Rate

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        return _with_plain_rates(vars(self))


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit over thresholds of treating by the model and of treating all, in true positives per image.

    Treating nobody has the net benefit 0. `gain` holds two intervals a threshold: the model's net benefit minus that
    of treating all, and minus that of treating nobody.
    """

    thresholds: tuple[float, ...]
    model: tuple[float, ...]
    treat_all: tuple[float, ...]
    gain: tuple[tuple[Interval | None, Interval | None], ...]

    @property
    def useful(self) -> tuple[float, float] | None:
        """The widest range of thresholds at which the whole interval of both gains is above 0; None without any."""
        better = [all(one is not None and one.low > 0 for one in gains) for gains in self.gain]
        runs = np.flatnonzero(np.diff([False, *better, False])).reshape(-1, 2)
        if not len(runs):
            return None
        start, end = max(runs.tolist(), key=lambda run: run[1] - run[0])
        return self.thresholds[start], self.thresholds[end - 1]

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return {
            "thresholds": list(self.thresholds),
            "model": list(self.model),
            "treat_all": list(self.treat_all),
            "gain_over_all_ci95": [pair(over_all) for over_all, _ in self.gain],
            "gain_over_none_ci95": [pair(over_none) for _, over_none in self.gain],
            "useful": None if self.useful is None else list(self.useful),
        }


def threshold_at_specificity(scores: Floats, positive: Flags, specificity: float) -> float | None:
    """Return the lowest score above which at most 1 - `specificity` of the negative images lie.

    None without negative images.

    Args:
        scores: (N,) probability of the positive side, of the images to choose on.
        positive: (N,).
        specificity: 0 to 1, above 0.
    """
    negative = np.sort(scores[~positive])
    if not len(negative):
        return None
    # 0.9 * 10 may be 9.000000000000002, which is not meant to ask for ten images
    needed = int(np.ceil(specificity * len(negative) - 1e-9))
    return float(negative[max(needed, 1) - 1])


def operating_point(
    scores: Floats, positive: Flags, *, threshold: float, target_specificity: float, draws: Resampling
) -> OperatingPoint:
    """Measure a threshold on images: an image is called positive when its score (N,) is above it."""
    called = scores > threshold
    sensitivity, specificity = rates([(called, positive), (~called, ~positive)], draws)
    return OperatingPoint(target_specificity, threshold, sensitivity, specificity)


def refer_confidence(confidence: Floats, right: Flags, *, accuracy: float, draws: Resampling) -> float | None:
    """Return the smallest confidence from which on images surely reach `accuracy`; None where none does.

    Surely: the lower bound of their accuracy, one-sided at 95%, is at least `accuracy`. The bound is the lower one of
    Clopper and Pearson's (1934), which holds for few images without an error, and of the bootstrap over patients, which
    knows that images of one patient are similar. The last crossing of the accuracy itself would be a lucky one.

    Args:
        confidence: (N,) probability of the predicted class of the images to choose on.
        right: (N,) whether that class is the true one.
        accuracy: 0 to 1, aimed at for the images kept.
        draws: of the images' patients.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    last_of_ties = np.append(np.diff(ordered) < 0, True)[: len(order)]
    kept, hits = np.arange(1, len(order) + 1), np.cumsum(right[order].astype(np.int64))
    possible = np.flatnonzero(last_of_ties & (_clopper_pearson_low(hits, kept) >= accuracy))
    if not len(possible):
        return None
    if len(possible) > _MOST_CANDIDATES:
        possible = possible[np.linspace(0, len(possible) - 1, _MOST_CANDIDATES).astype(np.int64)]
    low = draws.where(order).cumulative_low(right[order].astype(float), _BOUND_LEVEL, at=possible)
    sure = possible[low >= accuracy]
    return float(ordered[sure].min()) if len(sure) else None


def _clopper_pearson_low(hits: Ints, of: Ints) -> Floats:
    """Return the exact one-sided lower bounds of shares (N,); 0 without a hit."""
    return np.where(hits > 0, beta.ppf(_BOUND_LEVEL, np.maximum(hits, 1), of - hits + 1), 0.0)


def refer(confidence: Floats, right: Flags, *, threshold: float, draws: Resampling) -> Referral:
    """Measure on images what referring those below `threshold` does; arrays as in refer_confidence."""
    kept, every_image = confidence >= threshold, np.ones(len(right), bool)
    return Referral(threshold, *rates([(kept, every_image), (right, kept), (~kept, ~right)], draws))


def abstention_curve(confidence: Floats, right: Flags, draws: Resampling) -> tuple[Coverage, ...]:
    """Return accuracy over coverage, the most confident images first; images of equal confidence stay together.

    Args:
        confidence: (N,) probability of the predicted class.
        right: (N,) whether that class is the true one.
        draws: for the intervals, which take each point's confidence as given.
    """
    descending = -np.sort(-confidence)
    wanted = (max(1, int(np.ceil(share * len(descending) - 1e-9))) for share in COVERAGES)
    limits = sorted({float(descending[number - 1]) for number in wanted}, reverse=True)
    kept = confidence[:, None] >= np.array(limits)
    intervals = draws.ratios((kept & right[:, None]).astype(float), kept.astype(float))
    return tuple(
        Coverage(limit, float(kept[:, k].mean()), float(right[kept[:, k]].mean()), intervals[k])
        for k, limit in enumerate(limits)
    )


def decision_curve(scores: Floats, positive: Flags, draws: Resampling) -> DecisionCurve:
    """Return the net benefit of treating patients with a probability of at least t, for t in DECISION_THRESHOLDS.

    Net benefit is the share of true positives minus the share of false positives times t / (1 - t). Treating from a
    probability of t on implies that one missed positive weighs as much as (1 - t) / t treated negatives (Vickers and
    Elkin 2006).

    Args:
        scores: (N,) probability of the positive side.
        positive: (N,).
        draws: for the intervals of the gains.
    """
    odds = np.array([t / (1 - t) for t in DECISION_THRESHOLDS])
    worth_treated = np.where(positive[:, None], 1.0, -odds)
    by_model = np.where(scores[:, None] >= np.array(DECISION_THRESHOLDS), worth_treated, 0.0)
    gains = np.concatenate([by_model - worth_treated, by_model], axis=1)
    intervals = draws.ratios(gains, np.ones_like(gains))
    return DecisionCurve(
        thresholds=DECISION_THRESHOLDS,
        model=tuple(by_model.mean(axis=0).tolist()),
        treat_all=tuple(worth_treated.mean(axis=0).tolist()),
        gain=tuple(zip(intervals[: len(odds)], intervals[len(odds) :], strict=True)),
    )


def decisions_of(classes: Sequence[str], labels: Ints, probabilities: Floats) -> dict[str, tuple[Floats, Flags]]:
    """Return the yes-or-no decisions among the classes: each with its score and truth (N,).

    `pneumonia` is any class against normal. `bacterial` is that class against all others, the question of antibiotics.
    A decision is left out where the classes lack one of its sides, or where it equals another decision.
    """
    decisions = {}
    if "normal" in classes and len(classes) > 1:
        normal = classes.index("normal")
        decisions["pneumonia"] = (1 - probabilities[:, normal], labels != normal)
    if "bacterial" in classes and (len(classes) > 2 or "normal" not in classes):
        bacterial = classes.index("bacterial")
        decisions["bacterial"] = (probabilities[:, bacterial], labels == bacterial)
    return decisions


def _with_plain_rates(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to_json() if isinstance(value, Rate) else value for name, value in values.items()}


def rates(pairs: Sequence[tuple[Flags, Flags]], draws: Resampling) -> list[Rate]:
    """Return for each pair of flags (hit, counted), each (N,), the share of the counted images that are hits."""
    counted = np.stack([counted for _, counted in pairs], axis=1)
    hits = np.stack([hit for hit, _ in pairs], axis=1) & counted
    intervals = draws.ratios(hits.astype(float), counted.astype(float))
    counts = counted.sum(axis=0)
    with np.errstate(invalid="ignore"):
        values = hits.sum(axis=0) / counts
    return [Rate(defined(v), i, int(n)) for v, i, n in zip(values, intervals, counts, strict=True)]
