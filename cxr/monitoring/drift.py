"""Do the images of a window look like those that the model was judged on? One distance a signal, one limit each.

The distance is the largest gap between two distribution functions (Kolmogorov and Smirnov), 0 to 1: the share of images
that would have to change. Of predicted classes it is half the sum of the differences of their shares, which means the
same. Limits hold a stated share of false alarms over all signals together. They are found by drawing windows of the
same size and references of the same size from the reference's own images, patient by patient, for the images of a
patient come together and look alike; a limit from p-values of single images would be too low.
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
LEAST = 0.05
"""A smaller distance is never an alarm: with large windows even a move that matters to nobody shows."""

Floats = NDArray[np.float64]
_CHUNK = 50  # draws at once
_EXAMPLES = 5


@dataclass(frozen=True)
class Rules:
    """What makes a window an alarm.

    images               in a window
    false_alarm_share   of windows of images like the reference's, over all signals together
    resamples, seed     of the draws that find the limits
    max_failed_share    of images that could not be read
    """

    images: int
    false_alarm_share: float
    resamples: int
    seed: int
    max_failed_share: float


@dataclass(frozen=True)
class Window:
    """One window of scored images against the reference.

    number        counted from 1, the oldest
    first, last   when its first and last image were scored, UTC, ISO 8601
    score         the largest distance in units of its limit; above 1 is an alarm
    distances     by signal, 0 to 1
    moves         by signal: window's median less the reference's, in units of the reference's spread
    speaking      signals above their limit, the furthest first
    shares        of each predicted class
    examples      paths of the images that lie furthest out by the first speaking signal
    """

    number: int
    first: str
    last: str
    score: float
    distances: Mapping[str, float]
    moves: Mapping[str, float]
    speaking: tuple[str, ...]
    shares: Mapping[str, float]
    examples: tuple[str, ...]

    @property
    def alarm(self) -> bool:
        """Whether any signal is above its limit."""
        return bool(self.speaking)


def find_limits(reference: Reference, rules: Rules) -> dict[str, float]:
    """Return the limit of each of SIGNALS, and of FAILED, for windows of `rules.images`.

    Each signal's distance is measured in units of its own quantile over the draws; the limit in these units is the
    same for all, so that the largest of them passes it in `false_alarm_share` of the draws.
    """
    distances = np.concatenate(list(_drawn_distances(reference, rules)))
    quantile = 1 - rules.false_alarm_share
    own = np.maximum(np.quantile(distances, quantile, axis=0), 1e-9)
    common = np.quantile((distances / own).max(axis=1), quantile)
    limits = np.maximum(own * common, LEAST)
    return dict(zip(SIGNALS, limits.tolist(), strict=True)) | {FAILED: rules.max_failed_share}


def _drawn_distances(reference: Reference, rules: Rules) -> Iterator[Floats]:
    """Yield distances (B, len(SIGNALS)) between a drawn window and a drawn reference.

    Both are drawn with replacement, because the reference is itself one draw of patients.
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
    """Return the share (count, N) that each image has in draws of whole patients with `images` images together."""
    sizes = np.bincount(patients).astype(float)
    drawn = generator.integers(0, len(sizes), (count, images))
    before = np.cumsum(sizes[drawn], axis=1) - sizes[drawn]
    taken = np.clip(images - before, 0, sizes[drawn]) / sizes[drawn]  # of the last patient only a part
    flat = (np.arange(count)[:, None] * len(sizes) + drawn).ravel()
    of_patients = np.bincount(flat, taken.ravel(), count * len(sizes)).reshape(count, -1)
    return of_patients[:, patients] / images


def _values(reference: Reference) -> Floats:
    """Return measures and confidence (N, len(SIGNALS) - 1), in the order of SIGNALS."""
    return np.column_stack([reference.measures, reference.confidence]).astype(np.float64)


def cut_windows(scores: pd.DataFrame, images: int) -> list[pd.DataFrame]:
    """Cut scored images, the oldest first, into windows of `images`; what is left over is not a window yet."""
    return [scores.iloc[start : start + images] for start in range(0, len(scores) - images + 1, images)]


def judge(scored: pd.DataFrame, reference: Reference, limits: Mapping[str, float], *, number: int) -> Window:
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
    speaking = tuple(sorted((name for name, ratio in ratios.items() if ratio > 1), key=lambda name: -ratios[name]))
    moves = _moves(values, expected)
    return Window(
        number=number,
        first=scored["scored_at"].iloc[0].isoformat(timespec="microseconds"),
        last=scored["scored_at"].iloc[-1].isoformat(timespec="microseconds"),
        score=max(ratios.values()),
        distances=distances,
        moves=dict(zip(SIGNALS[:-1], moves, strict=True)),
        speaking=speaking,
        shares=shares,
        examples=_examples(scored, failed, values, expected, speaking),
    )


def _values_of(read: pd.DataFrame) -> Floats:
    """Return measures and confidence of scored images, as `_values` does of the reference."""
    columns = [read[f"m_{name}"].to_numpy(np.float64) for name in MEASURES]
    probabilities = read[[name for name in read if str(name).startswith("p_")]].to_numpy(np.float64)
    return np.column_stack([*columns, probabilities.max(axis=1, initial=0)])


def _gap(values: Floats, expected: Floats) -> float:
    """Return the largest gap between the distribution functions of two samples; 0 of none."""
    if not len(values):
        return 0.0
    at = np.concatenate([values, expected])
    below = np.searchsorted(np.sort(values), at, side="right") / len(values)
    below_expected = np.searchsorted(np.sort(expected), at, side="right") / len(expected)
    return float(np.abs(below - below_expected).max())


def _shares(read: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, float]:
    counted = read["predicted_class"].value_counts(normalize=True)
    return {name: float(counted.get(name, 0.0)) for name in classes}


def _moves(values: Floats, expected: Floats) -> list[float]:
    """Return how far medians moved, in units of the reference's spread: its interquartile range as a normal's."""
    if not len(values):
        return [0.0] * expected.shape[1]
    low, middle, high = np.percentile(expected, (25, 50, 75), axis=0)
    spread = np.maximum((high - low) / 1.349, 1e-6)
    return [float(move) for move in (np.median(values, axis=0) - middle) / spread]


def _examples(
    scored: pd.DataFrame, failed: NDArray[np.bool_], values: Floats, expected: Floats, speaking: tuple[str, ...]
) -> tuple[str, ...]:
    if not speaking:
        return ()
    if speaking[0] == FAILED:
        return tuple(scored["path"][failed].head(_EXAMPLES))
    signal = SIGNALS.index(speaking[0]) if speaking[0] != "class_shares" else SIGNALS.index("feature_distance")
    furthest = np.abs(values[:, signal] - np.median(expected[:, signal])).argsort(kind="stable")[::-1]
    return tuple(scored["path"][~failed].iloc[furthest[:_EXAMPLES]])


def is_drift(windows: list[Window], *, alarm_windows: int, of_windows: int, after: str = "") -> bool:
    """Say whether `alarm_windows` of the last `of_windows` are alarms; those up to the time `after` do not count."""
    return sum(window.alarm and window.last > after for window in windows[-of_windows:]) >= alarm_windows
