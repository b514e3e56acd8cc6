"""Find duplicate and near-duplicate images without comparing all pairs.

Two images are candidates when their 64-bit perceptual hashes agree on two of eight bytes, or on three in sets of more
than 50,000 images. Hashes that differ in at most six (five) bits always agree. Candidates are compared by the
correlation of their 32 x 32 thumbnails. Measured recall against all pairs: docs/decisions.md.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cxr.common.on_disk import take

# Beyond this, buckets of two bytes are too full: 28 * N * N / 2 / 750 comparisons, measured.
_MANY = 50_000
# No pair of images with more different bits correlates at 0.98 (measured); avoids most correlations.
_MOST_BITS_APART = 16
# Neighbours compared within a bucket, which is sorted by hash: keeps the work linear where thousands of images share
# a bucket.
_WINDOW = 256
_PAIRS_AT_ONCE = 1 << 8  # the pages of 256 thumbnails, with those that the system maps beside them: 16 MB
_CANDIDATES_AT_ONCE = 1 << 18
_ROWS_AT_ONCE = 256  # of one set against all of another: 5 MB for each 5,000


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows: `rows` (N, 2) int64, smaller row first, sorted; `correlation` (N,) float64, -1 to 1."""

    rows: NDArray[np.int64]
    correlation: NDArray[np.float64]

    def at_least(self, correlation: float) -> "Pairs":
        """Return the pairs with this correlation or a higher one."""
        chosen = self.correlation >= correlation
        return Pairs(self.rows[chosen], self.correlation[chosen])


def similar_pairs(
    hashes: NDArray[np.uint64],
    thumbnails: NDArray[np.uint8],
    *,
    at_least: float,
    among: NDArray[np.int64] | None = None,
) -> Pairs:
    """Return the candidate pairs whose thumbnails correlate at `at_least` or more.

    Candidates are compared as they are found, and most are dropped: of 50,000 images there are millions.

    Args:
        hashes: (N,) perceptual hashes.
        thumbnails: (N, 32, 32); may be memory-mapped.
        at_least: correlation, 0 to 1. An image with a single grey level correlates with no image.
        among: (M,) the rows to compare, ascending; None: all.
    """
    chosen = np.arange(len(hashes)) if among is None else among
    rows, correlations = [np.empty((0, 2), np.int64)], [np.empty(0)]
    for found in _in_batches(candidate_pairs(hashes[chosen])):
        candidates = chosen[found]
        correlation = correlation_of(thumbnails, candidates)
        similar = correlation >= at_least
        rows.append(candidates[similar])
        correlations.append(correlation[similar])
    unique, first = np.unique(np.concatenate(rows), axis=0, return_index=True)
    return Pairs(unique, np.concatenate(correlations)[first])


def _in_batches(found: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """Join arrays of pairs up to a size, each pair once in a batch: equal hashes agree on every choice of bytes."""
    waiting: list[NDArray[np.int64]] = []
    for pairs in found:
        waiting.append(pairs)
        if sum(map(len, waiting)) >= _CANDIDATES_AT_ONCE:
            yield _distinct(np.concatenate(waiting))
            waiting.clear()
    if waiting:
        yield _distinct(np.concatenate(waiting))


def _distinct(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each of the pairs (M, 2) once, sorted; as single numbers they sort many times faster than as rows."""
    codes = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    return np.stack([codes >> 32, codes & 0xFFFFFFFF], axis=1)


def candidate_pairs(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs (M, 2) of rows whose hashes agree on two or three bytes and differ in few bits of the others.

    The smaller row comes first. At most N pairs are yielded at once; one that agrees on more bytes comes several times.
    """
    bytes_compared = 2 if len(hashes) <= _MANY else 3
    for chosen in combinations(range(8), bytes_compared):
        mask = np.uint64(sum(0xFF << (8 * byte) for byte in chosen))
        yield from _pairs_in_buckets(hashes, mask)


def _pairs_in_buckets(hashes: NDArray[np.uint64], mask: np.uint64) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs (M, 2) of rows whose hashes agree under `mask`."""
    keys = hashes & mask
    order = np.lexsort((hashes, keys))
    keys, sorted_hashes = keys[order], hashes[order]
    position = np.arange(len(order))
    for step in range(1, _WINDOW):
        position = position[position < len(order) - step]
        position = position[keys[position] == keys[position + step]]
        if not len(position):
            break
        apart = np.bitwise_count(sorted_hashes[position] ^ sorted_hashes[position + step])
        near = position[apart <= _MOST_BITS_APART]
        yield np.sort(np.stack([order[near], order[near + step]], axis=1), axis=1)


def correlation_of(thumbnails: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Pearson's correlation (M,) of each pair (M, 2) of thumbnails; 0 where one has a single grey level."""
    values = np.empty(len(rows), np.float64)
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        part = rows[start : start + _PAIRS_AT_ONCE]
        one, other = (_standardised(take(thumbnails, part[:, side])) for side in (0, 1))
        values[start : start + len(part)] = np.einsum("ij,ij->i", one, other)
    return values


def nearest(thumbnails: NDArray[np.uint8], among: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each of N thumbnails (N, 32, 32) the row (N,) of the most similar `among` (M, 32, 32), M from 1.

    Also returns their correlation (N,). All pairs are compared.
    """
    rows, values = np.zeros(len(thumbnails), np.int64), np.zeros(len(thumbnails))
    others = _standardised(among)
    for start in range(0, len(thumbnails), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        correlation = _standardised(thumbnails[part]) @ others.T
        rows[part] = correlation.argmax(axis=1)
        values[part] = correlation.max(axis=1)
    return rows, values


def _standardised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0), np.float32)


def connected_groups(n: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the group number (n,) of each of `n` rows; each of the pairs (M, 2) joins two groups."""
    graph = coo_array((np.ones(len(rows), np.int8), (rows[:, 0], rows[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)
