"""Where along the order of acquisition the agreement of labels with out-of-fold predictions changes.

The persons of one class are put in the order in which they were acquired. Each person adds a number of images and how
many of them the prediction agrees with. A change point divides them in two runs with different rates of agreement. Its
position maximises the likelihood ratio of two binomial rates against one (James, James and Siegmund 1987). Several
change points are found by seeded binary segmentation (Kovács, Bühlmann, Li and Munk 2023): the ratio is maximised over
a fixed set of long and short intervals, because rates that go up and down cancel out over the whole sequence. The
sequence is divided at the best cut, and each side is searched in the same way.

Images of one person are similar, so images are never exchanged: the p-value comes from permutations of whole persons,
the interval of the position from a bootstrap of whole persons between the neighbouring change points.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import xlogy

from cxr.evaluation.bootstrap import Interval
from cxr.evaluation.rates import Floats, Ints

MIN_PERSONS = 20
"""On either side of a change point."""

_CELLS_AT_A_TIME = 2_000_000
_LAYERS = 4  # several arrays of a layer of intervals are in memory


@dataclass(frozen=True)
class Persons:
    """The persons of one class in order of acquisition.

    number    (P,) acquisition number, not falling
    images    (P,) how many images each has
    agreeing  (P,) how many of them are predicted as labelled
    """

    number: Ints
    images: Ints
    agreeing: Ints

    def part(self, rows: slice | Ints) -> "Persons":
        """Return the chosen persons."""
        return Persons(self.number[rows], self.images[rows], self.agreeing[rows])


@dataclass(frozen=True)
class ChangePoint:
    """A change of agreement.

    number              acquisition number of the first person after it
    interval            95% of the bootstrap's positions
    likelihood_ratio    2 log of the ratio of likelihoods, two rates against one, in the interval where it is largest
    p_value             share of permutations of persons that reach this ratio in any interval
    before, after       rate of agreement on either side, as far as the next change point
    """

    number: int
    interval: Interval
    likelihood_ratio: float
    p_value: float
    before: float
    after: float


@dataclass(frozen=True)
class SearchSettings:
    """How change points are searched.

    alpha         largest p-value of a change point, before it is divided by the number of `sequences`
    sequences     how many sequences of persons are searched in all (Bonferroni)
    permutations  of the p-value, at the least
    resamples     of the interval
    seed          of all draws
    """

    alpha: float
    sequences: int
    permutations: int
    resamples: int
    seed: int


def persons_of(images: pd.DataFrame) -> Persons:
    """Return the persons of a table with an image a row: person, number, agrees (0 or 1).

    A person with images of several numbers stands at the first one.
    """
    table = images.groupby("person").agg(number=("number", "min"), n=("agrees", "size"), k=("agrees", "sum"))
    table = table.reset_index().sort_values(["number", "person"], kind="stable")
    return Persons(*(table[name].to_numpy(np.int64) for name in ("number", "n", "k")))


def find_change_points(persons: Persons, settings: SearchSettings) -> list[ChangePoint]:
    """Return the change points in their order; none where no side could hold MIN_PERSONS persons."""
    generator = np.random.default_rng(settings.seed)
    alpha = settings.alpha / settings.sequences
    permutations = max(settings.permutations, math.ceil(2 / alpha))  # fewer could not reach alpha
    found: dict[int, tuple[float, float]] = {}
    waiting = deque([(0, len(persons.number))])
    while waiting:
        start, end = waiting.popleft()
        part = persons.part(slice(start, end))
        at, ratio = _best(part)
        p_value = _p_value(part, ratio, permutations, alpha, generator) if at else 1.0
        if p_value <= alpha:
            found[start + at] = (ratio, p_value)
            waiting += [(start, start + at), (start + at, end)]
    cuts = sorted(found)
    edges = [0, *cuts, len(persons.number)]
    points = []
    for before, at, after in zip(edges[:-2], cuts, edges[2:], strict=True):
        around = persons.part(slice(before, after))
        ratio, p_value = found[at]
        points.append(
            ChangePoint(
                number=int(persons.number[at]),
                interval=_interval(around, at - before, settings.resamples, generator),
                likelihood_ratio=ratio,
                p_value=p_value,
                before=_rate(around.part(slice(0, at - before))),
                after=_rate(around.part(slice(at - before, None))),
            )
        )
    return points


def seeded_intervals(count: int) -> list[tuple[int, int]]:
    """Return overlapping intervals of 0 to `count` in layers, each shorter by the square root of 2 (Kovács et al.).

    In the shortest, either half holds MIN_PERSONS.
    """
    intervals = []
    shrink = 1.0
    while count / shrink >= 2 * MIN_PERSONS:
        length = count / shrink
        starts = np.linspace(0, count - length, 2 * math.ceil(shrink) - 1)
        intervals += [(math.floor(start), min(count, math.ceil(start + length))) for start in starts]
        shrink *= math.sqrt(2)
    return intervals


def best_ratios(images: Ints, agreeing: Ints, number: Ints) -> tuple[Floats, Ints]:
    """Return for each row of (B, P) the largest likelihood ratio (B,) over all seeded intervals, and its cut (B,).

    A cut c divides the persons before c from those from c on; 0 where no cut is allowed.
    """
    log = _x_log_x(int(images[0].sum()))
    n = np.concatenate([np.zeros((len(images), 1), np.int64), np.cumsum(images, axis=1)], axis=1)
    k = np.concatenate([np.zeros((len(images), 1), np.int64), np.cumsum(agreeing, axis=1)], axis=1)
    best, cut = np.zeros(len(images)), np.zeros(len(images), np.int64)
    rows = np.arange(len(images))
    for start, end in seeded_intervals(images.shape[1]):
        cuts = np.arange(start + MIN_PERSONS, end - MIN_PERSONS + 1)
        cuts = cuts[number[cuts - 1] < number[cuts]]  # persons of one number stay together
        if not len(cuts):
            continue
        n0, k0, n1, k1, n2, k2 = (side[:, at] for at in ([start], cuts, [end]) for side in (n, k))
        ratios = 2 * (
            _likelihood(log, k1 - k0, n1 - n0) + _likelihood(log, k2 - k1, n2 - n1) - _likelihood(log, k2 - k0, n2 - n0)
        )
        at = ratios.argmax(axis=1)
        better = ratios[rows, at] > best
        best = np.where(better, ratios[rows, at], best)
        cut = np.where(better, cuts[at], cut)
    return best, cut


def _x_log_x(largest: int) -> Floats:
    counts = np.arange(largest + 1, dtype=np.float64)
    return np.asarray(xlogy(counts, counts))


def _likelihood(log: Floats, agreeing: Ints, images: Ints) -> Floats:
    """Return the log likelihood of a common rate; `log` is the table of x log x."""
    return np.asarray(log[agreeing] + log[images - agreeing] - log[images])


def _best(persons: Persons) -> tuple[int, float]:
    """Return the best cut and its ratio; (0, 0.0) where there is none."""
    ratio, cut = best_ratios(persons.images[None], persons.agreeing[None], persons.number)
    return int(cut[0]), float(ratio[0])


def _p_value(persons: Persons, ratio: float, permutations: int, alpha: float, generator: np.random.Generator) -> float:
    """Return the p-value; 1 as soon as it cannot reach `alpha` any more."""
    count = len(persons.number)
    reached = 0
    for size in _parts(permutations, count * _LAYERS):
        order = generator.permuted(np.tile(np.arange(count), (size, 1)), axis=1)
        ratios, _ = best_ratios(persons.images[order], persons.agreeing[order], persons.number)
        reached += int((ratios >= ratio).sum())
        if 1 + reached > alpha * (1 + permutations):
            return 1.0
    return (1 + reached) / (1 + permutations)


def _interval(persons: Persons, at: int, resamples: int, generator: np.random.Generator) -> Interval:
    """Return where the best single cut of resampled persons falls."""
    count = len(persons.number)
    log = _x_log_x(int(persons.images.max()) * count)
    positions = []
    for size in _parts(resamples, count):
        left = np.sort(generator.integers(0, at, size=(size, at)), axis=1)
        right = np.sort(generator.integers(at, count, size=(size, count - at)), axis=1)
        drawn = np.concatenate([left, right], axis=1)
        n, k = np.cumsum(persons.images[drawn], axis=1), np.cumsum(persons.agreeing[drawn], axis=1)
        ratios = _likelihood(log, k, n) + _likelihood(log, k[:, -1:] - k, n[:, -1:] - n)
        first_after = ratios[:, MIN_PERSONS - 1 : count - MIN_PERSONS].argmax(axis=1) + MIN_PERSONS
        positions.append(persons.number[drawn[np.arange(size), first_after]])
    low, high = np.percentile(np.concatenate(positions), [2.5, 97.5])
    return Interval(float(low), float(high))


def _parts(total: int, width: int) -> list[int]:
    at_a_time = max(1, _CELLS_AT_A_TIME // max(width, 1))
    return [min(at_a_time, total - start) for start in range(0, total, at_a_time)]


def _rate(persons: Persons) -> float:
    return float(persons.agreeing.sum() / persons.images.sum())
