"""What a model is worth to who acts on it: operating points, referral of doubtful images, net benefit.

Every threshold is chosen on validation images; test images only say what it reached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.evaluation.bootstrap import Interval, Resampling, pair
from cxr.evaluation.metrics import Floats, Ints, defined

Flags = NDArray[np.bool_]

MIN_KEPT = 10
"""A referral threshold must keep so many validation images; fewer carry no accuracy."""

COVERAGES = tuple(share / 100 for share in range(5, 101, 5))
DECISION_THRESHOLDS = tuple(share / 100 for share in range(2, 99, 2))


@dataclass(frozen=True)
class Rate:
    """A share `of` so many images, None where there is none of them, with its 95% interval."""

    value: float | None
    interval: Interval | None
    of: int

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {"value": self.value, "ci95": pair(self.interval), "of": self.of}


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold of the probability above which an image is called ill, and what it reached on test images."""

    target_specificity: float
    threshold: float
    sensitivity: Rate
    specificity: Rate

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        return _with_plain_rates(vars(self))


@dataclass(frozen=True)
class Coverage:
    """A point of the abstention curve: images at least as sure as `confidence`, their share, how many are right."""

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
    """What becomes of images when those less sure than `confidence` go to a reader.

    coverage          share that the model answers
    accuracy_on_kept  share of those that is right
    errors_caught     share of the model's errors that a reader sees
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
    """Net benefit of treating by the model, all and nobody (0), over thresholds; in true positives an image.

    `gain` holds the intervals of the model's net benefit less that of treating all, and less that of treating none.
    """

    thresholds: tuple[float, ...]
    model: tuple[float, ...]
    treat_all: tuple[float, ...]
    gain: tuple[tuple[Interval | None, Interval | None], ...]

    @property
    def useful(self) -> tuple[float, float] | None:
        """The widest run of thresholds at which both gains are above 0 with their whole interval."""
        sure = [all(one is not None and one.low > 0 for one in gains) for gains in self.gain]
        runs = np.flatnonzero(np.diff([False, *sure, False])).reshape(-1, 2)
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


def threshold_at_specificity(scores: Floats, ill: Flags, specificity: float) -> float | None:
    """Return the lowest score above which at most 1 - `specificity` of the healthy images lie; None without healthy.

    Args:
        scores: (N,) probability of illness of the images to choose on.
        ill: (N,).
        specificity: 0 to 1, above 0.
    """
    healthy = np.sort(scores[~ill])
    if not len(healthy):
        return None
    # 0.9 * 10 may be 9.000000000000002, which is not meant to ask for ten images
    needed = int(np.ceil(specificity * len(healthy) - 1e-9))
    return float(healthy[max(needed, 1) - 1])


def operating_point(
    scores: Floats, ill: Flags, *, threshold: float, target_specificity: float, draws: Resampling
) -> OperatingPoint:
    """Measure a threshold on images: an image is called ill when its score (N,) is above it."""
    called = scores > threshold
    sensitivity, specificity = _rates([(called, ill), (~called, ~ill)], draws)
    return OperatingPoint(target_specificity, threshold, sensitivity, specificity)


def refer_confidence(confidence: Floats, right: Flags, *, accuracy: float) -> float | None:
    """Return the smallest confidence such that images at least as sure reach `accuracy`; None where none does.

    Args:
        confidence: (N,) probability of the predicted class of the images to choose on.
        right: (N,) whether that class is the true one.
        accuracy: 0 to 1, of the images kept; at least MIN_KEPT must be.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    reached = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last_of_ties = np.append(np.diff(ordered) < 0, True)[: len(order)]
    enough = (reached >= accuracy) & last_of_ties & (np.arange(1, len(order) + 1) >= MIN_KEPT)
    return float(ordered[enough].min()) if enough.any() else None


def refer(confidence: Floats, right: Flags, *, threshold: float, draws: Resampling) -> Referral:
    """Measure on images what referring those below `threshold` does; arrays as in refer_confidence."""
    kept, everyone = confidence >= threshold, np.ones(len(right), bool)
    return Referral(threshold, *_rates([(kept, everyone), (right, kept), (~kept, ~right)], draws))


def abstention_curve(confidence: Floats, right: Flags, draws: Resampling) -> tuple[Coverage, ...]:
    """Return accuracy over coverage, from the surest images (COVERAGES' first) to all; equals stay together.

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


def decision_curve(scores: Floats, ill: Flags, draws: Resampling) -> DecisionCurve:
    """Return the net benefit of treating who has a probability of at least t, for t in DECISION_THRESHOLDS.

    Net benefit is the share of true positives less that of false positives times t / (1 - t): who treats from a
    probability of t on holds an untreated ill patient to be (1 - t) / t times as bad as a treated healthy one
    (Vickers and Elkin 2006).

    Args:
        scores: (N,) probability of illness.
        ill: (N,).
        draws: for the intervals of the gains.
    """
    odds = np.array([t / (1 - t) for t in DECISION_THRESHOLDS])
    worth_treated = np.where(ill[:, None], 1.0, -odds)
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
    """Return the yes-or-no questions that the classes answer: each with its score and truth (N,).

    `pneumonia` is any class against normal, `bacterial` that one against all others: it asks for antibiotics.
    A question is left out where its two sides are not among the classes, or are those of another question.
    """
    questions = {}
    if "normal" in classes and len(classes) > 1:
        normal = classes.index("normal")
        questions["pneumonia"] = (1 - probabilities[:, normal], labels != normal)
    if "bacterial" in classes and (len(classes) > 2 or "normal" not in classes):
        bacterial = classes.index("bacterial")
        questions["bacterial"] = (probabilities[:, bacterial], labels == bacterial)
    return questions


def _with_plain_rates(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to_json() if isinstance(value, Rate) else value for name, value in values.items()}


def _rates(pairs: Sequence[tuple[Flags, Flags]], draws: Resampling) -> list[Rate]:
    """Return, for each (what, of which) of images, the share of the latter that has the former."""
    below = np.stack([of_which for _, of_which in pairs], axis=1)
    above = np.stack([what for what, _ in pairs], axis=1) & below
    intervals = draws.ratios(above.astype(float), below.astype(float))
    counts = below.sum(axis=0)
    with np.errstate(invalid="ignore"):
        values = above.sum(axis=0) / counts
    return [Rate(defined(v), i, int(n)) for v, i, n in zip(values, intervals, counts, strict=True)]
