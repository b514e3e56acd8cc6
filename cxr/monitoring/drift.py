"""Compare a window of scored images with the model's reference: one distance and one limit per signal.

The distance is the largest gap between two distribution functions (Kolmogorov and Smirnov), 0 to 1: the share of images
that would have to change. For predicted classes it is half the sum of the differences of their shares, which means the
same. The limits hold a configured share of false alarms over all signals together. They come from windows and
references of the same sizes, drawn from the reference's own images by patient: images of a patient arrive together and
are similar, so limits from p-values of single images would be too low.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cxr.models.reference import MEASURES, Reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd

SIGNALS = (*MEASURES, "confidence", "class_shares")
FAILED = "failed_images"
MIN_LIMIT = 0.05
"""A smaller distance is never an alarm: in large windows even irrelevant shifts are significant."""

Floats = NDArray[np.float64]
_CHUNK = 50  # draws per step
_EXAMPLES = 5


@dataclass(frozen=True)
class Rules:
    """Parameters of the limits.

    images             number of images in a window
    false_alarm_share  share of alarms among windows like the reference, over all signals together
    resamples, seed    of the draws that determine the limits
    max_failed_share   limit of the share of unreadable images
    """

    images: int
    false_alarm_share: float
    resamples: int
    seed: int
    max_failed_share: float


@dataclass(frozen=True)
class Window:
    """One window of scored images, compared with the reference.

    number         from 1, the oldest
    first, last    times at which its first and last image were scored, UTC, ISO 8601
    score          largest distance in units of its limit; above 1 is an alarm
    distances      by signal, 0 to 1
    median_shifts  by signal: the window's median minus the reference's, in units of the reference's spread
    exceeded       signals above their limit, the furthest first
    shares         of each predicted class
    examples       paths of the most distant images by the first exceeded signal
    """

    number: int
    first: str
    last: str
    score: float
    distances: Mapping[str, float]
    median_shifts: Mapping[str, float]
    exceeded: tuple[str, ...]
    shares: Mapping[str, float]
    examples: tuple[str, ...]

    @property
    def alarm(self) -> bool:
        """Whether any signal is above its limit."""
        return bool(self.exceeded)


def find_limits(reference: Reference, rules: Rules) -> dict[str, float]:
    """Return the limit of each of SIGNALS, and of FAILED, for windows of `rules.images`.

    Distances are measured in units of their signal's quantile over the draws. In these units all signals have the same
    limit, which the largest distance exceeds in `false_alarm_share` of the draws.
    """
    distances = np.concatenate(list(_drawn_distances(reference, rules)))
    quantile = 1 - rules.false_alarm_share
    own = np.maximum(np.quantile(distances, quantile, axis=0), 1e-9)
    common = np.quantile((distances / own).max(axis=1), quantile)
    limits = np.maximum(own * common, MIN_LIMIT)
    return dict(zip(SIGNALS, limits.tolist(), strict=True)) | {FAILED: rules.max_failed_share}


def _drawn_distances(reference: Reference, rules: Rules) -> Iterator[Floats]:
    """Yield distances (B, len(SIGNALS)) between a drawn window and a drawn reference.

    Both are drawn with replacement, because the reference itself is a sample of patients.
    """
    generator = np.random.default_rng(rules.seed)
    values = _values(reference)
    orders = values.argsort(axis=0, kind="stable")
    ends = np.ones(values.shape, bool)  # of runs of equal values
    ends[:-1] = np.diff(np.take_along_axis(values, orders, axis=0), axis=0) > 0
    classes = np.eye(len(reference.classes))[reference.predicted]
    for start in range(0, rules.resamples, _CHUNK):
        count = min(_CHUNK, rules.resamples - start)
        gap = _draw(reference.patients, count, rules.images, generator)
        gap -= _draw(reference.patients, count, len(reference.patients), generator)
        columns = [
            np.abs(gap[:, order].cumsum(axis=1)[:, end]).max(axis=1)
            for order, end in zip(orders.T, ends.T, strict=True)
        ]
        yield np.column_stack([*columns, np.abs(gap @ classes).sum(axis=1) / 2])


def _draw(patients: NDArray[np.int64], count: int, images: int, generator: np.random.Generator) -> Floats:
    """Return the share (count, N) of each image in draws of patients with `images` images in total."""
    sizes = np.bincount(patients).astype(float)
    drawn = generator.integers(0, len(sizes), (count, images))
    before = np.cumsum(sizes[drawn], axis=1) - sizes[drawn]
    used = np.clip(images - before, 0, sizes[drawn]) / sizes[drawn]  # only a part of the last patient
    flat = (np.arange(count)[:, None] * len(sizes) + drawn).ravel()
    of_patients = np.bincount(flat, used.ravel(), count * len(sizes)).reshape(count, -1)
    return of_patients[:, patients] / images


def _values(reference: Reference) -> Floats:
    """Return measures and confidence (N, len(SIGNALS) - 1), in the order of SIGNALS."""
    return np.column_stack([reference.measures, reference.confidence]).astype(np.float64)


def cut_windows(scores: pd.DataFrame, images: int) -> list[pd.DataFrame]:
    """Cut scored images, the oldest first, into windows of `images`; the rest is left out."""
    return [scores.iloc[start : start + images] for start in range(0, len(scores) - images + 1, images)]


def compare_window(scored: pd.DataFrame, reference: Reference, limits: Mapping[str, float], *, number: int) -> Window:
    """Compare one window of scored images (see cxr.inference.score_store) with the reference."""
    failed = scored["error"].notna().to_numpy()
    read = scored[~failed]
    values = _values_of(read)
    expected = _values(reference)
    distances = {name: _gap(values[:, s], expected[:, s]) for s, name in enumerate(SIGNALS[:-1])}
    shares = _shares(read, reference.classes)
    usual = np.bincount(reference.predicted, minlength=len(reference.classes)) / len(reference.predicted)
    distances["class_shares"] = float(np.abs(np.array(list(shares.values())) - usual).sum() / 2) if len(read) else 0.0
    distances[FAILED] = float(failed.mean())
    ratios = {name: distance / max(limits[name], 1e-9) for name, distance in distances.items()}
    exceeded = tuple(sorted((name for name, ratio in ratios.items() if ratio > 1), key=lambda name: -ratios[name]))
    return Window(
        number=number,
        first=scored["scored_at"].iloc[0].isoformat(timespec="microseconds"),
        last=scored["scored_at"].iloc[-1].isoformat(timespec="microseconds"),
        score=max(ratios.values()),
        distances=distances,
        median_shifts=dict(zip(SIGNALS[:-1], _median_shifts(values, expected), strict=True)),
        exceeded=exceeded,
        shares=shares,
        examples=_examples(scored, failed, values, expected, exceeded),
    )


def _values_of(read: pd.DataFrame) -> Floats:
    """Return measures and confidence of scored images in the order of `_values`, with its digits.

    A reference has single precision: a confidence of 0.99999999 is 1 there, and would be a shift here.
    """
    columns = [read[f"m_{name}"].to_numpy(np.float64) for name in MEASURES]
    probabilities = read[[name for name in read if str(name).startswith("p_")]].to_numpy(np.float64)
    values = np.column_stack([*columns, probabilities.max(axis=1, initial=0)])
    return values.astype(np.float32).astype(np.float64)


def _gap(values: Floats, expected: Floats) -> float:
    """Return the largest gap between the distribution functions of two samples; 0 if `values` is empty."""
    if not len(values):
        return 0.0
    at = np.concatenate([values, expected])
    below = np.searchsorted(np.sort(values), at, side="right") / len(values)
    below_expected = np.searchsorted(np.sort(expected), at, side="right") / len(expected)
    return float(np.abs(below - below_expected).max())


def _shares(read: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, float]:
    counted = read["predicted_class"].value_counts(normalize=True)
    return {name: float(counted.get(name, 0.0)) for name in classes}


def _median_shifts(values: Floats, expected: Floats) -> list[float]:
    """Return shifts of the medians in units of the spread, the standard deviation estimated by interquartile range."""
    if not len(values):
        return [0.0] * expected.shape[1]
    low, middle, high = np.percentile(expected, (25, 50, 75), axis=0)
    spread = np.maximum((high - low) / 1.349, 1e-6)
    return [float(shift) for shift in (np.median(values, axis=0) - middle) / spread]


def _examples(
    scored: pd.DataFrame, failed: NDArray[np.bool_], values: Floats, expected: Floats, exceeded: tuple[str, ...]
) -> tuple[str, ...]:
    if not exceeded:
        return ()
    if exceeded[0] == FAILED:
        return tuple(scored["path"][failed].head(_EXAMPLES))
    signal = SIGNALS.index(exceeded[0]) if exceeded[0] != "class_shares" else SIGNALS.index("feature_distance")
    furthest = np.abs(values[:, signal] - np.median(expected[:, signal])).argsort(kind="stable")[::-1]
    return tuple(scored["path"][~failed].iloc[furthest[:_EXAMPLES]])


def is_drift(windows: list[Window], *, alarm_windows: int, recent_windows: int, after: str = "") -> bool:
    """Return whether `alarm_windows` of the last `recent_windows` are alarms, without those up to the time `after`."""
    return sum(window.alarm and window.last > after for window in windows[-recent_windows:]) >= alarm_windows
