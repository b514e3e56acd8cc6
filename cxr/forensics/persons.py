"""Do images with one patient number belong to one person? Shown by how alike they are.

The thumbnails of two images of one person correlate more than those of strangers. Pairs are compared by what their
names share: the patient and the class; the patient alone, with another class; nothing but the two classes. Where the
second kind is no more alike than strangers are, the number alone does not name a person.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr.evaluation.bootstrap import MIN_PATIENTS, Interval, patient_draws, percentile_interval
from cxr.evaluation.rates import Floats, Ints

_MOST_PAIRS_A_PATIENT = 10
_STRANGER_PAIRS = 5_000

KINDS = ("same patient, same class", "same patient, other class", "strangers, same class", "strangers, other class")


@dataclass(frozen=True)
class Similarity:
    """The mean correlation of the 32 x 32 thumbnails of `pairs` pairs, with its 95% interval over patients."""

    kind: str
    correlation: float | None
    interval: Interval | None
    pairs: int


def similarity(
    thumbnails: NDArray[np.uint8], labels: NDArray[np.str_], patients: NDArray[np.str_], *, resamples: int, seed: int
) -> list[Similarity]:
    """Return how alike the pairs of each of KINDS are.

    Strangers are drawn at random from the patients that have a pair of the kind above, so that the same images are
    compared.

    Args:
        thumbnails: (N, 64, 64) of one source.
        labels, patients: (N,).
        resamples: of patients.
        seed: of all draws.
    """
    generator = np.random.default_rng(seed)
    flat = _standardised(thumbnails)
    same, other = _pairs_of_patients(labels, patients, generator)
    found = []
    for kinds, pairs, equal in ((KINDS[0::2], same, True), (KINDS[1::2], other, False)):
        strangers = _strangers(pairs, labels, patients, equal, generator)
        for kind, chosen in zip(kinds, (pairs, strangers), strict=True):
            values = np.einsum("ij,ij->i", flat[chosen[:, 0]], flat[chosen[:, 1]]).astype(np.float64)
            found.append(_similarity(kind, values, patients[chosen[:, 0]], resamples=resamples, seed=seed))
    return sorted(found, key=lambda one: KINDS.index(one.kind))


def _standardised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = thumbnails.reshape(len(thumbnails), 32, 2, 32, 2).mean(axis=(2, 4), dtype=np.float32)
    flat = small.reshape(len(small), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(norm, 1e-6), np.float32)


def _pairs_of_patients(
    labels: NDArray[np.str_], patients: NDArray[np.str_], generator: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return pairs of rows (M, 2) of one patient, with equal and with different labels."""
    order = np.argsort(patients, kind="stable")
    starts = np.flatnonzero(np.r_[True, patients[order][1:] != patients[order][:-1]])
    same: list[Ints] = [np.zeros((0, 2), np.int64)]
    other: list[Ints] = [np.zeros((0, 2), np.int64)]
    for rows in np.split(order, starts[1:]):
        first, second = np.triu_indices(len(rows), k=1)
        pairs = np.stack([rows[first], rows[second]], axis=1)
        equal = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        for kept, chosen in ((same, pairs[equal]), (other, pairs[~equal])):
            kept.append(generator.permutation(chosen)[:_MOST_PAIRS_A_PATIENT])
    return np.concatenate(same), np.concatenate(other)


def _strangers(
    pairs: Ints, labels: NDArray[np.str_], patients: NDArray[np.str_], equal: bool, generator: np.random.Generator
) -> Ints:
    """Return pairs of rows of different patients; their labels are equal, or as in a pair of `pairs`."""
    if not len(pairs):
        return pairs
    drawn = pairs[generator.integers(len(pairs), size=(4 * _STRANGER_PAIRS, 2))]
    strangers = np.stack([drawn[:, 0, 0], drawn[:, 1, 1]], axis=1)
    one, two = strangers.T
    fits = (patients[one] != patients[two]) & ((labels[one] == labels[two]) == equal)
    return np.asarray(strangers[fits][:_STRANGER_PAIRS], np.int64)


def _similarity(kind: str, values: Floats, patients: NDArray[np.str_], *, resamples: int, seed: int) -> Similarity:
    names, patient = np.unique(patients, return_inverse=True)
    if not len(values):
        return Similarity(kind, None, None, 0)
    sums = np.bincount(patient, weights=values)
    counts = np.bincount(patient).astype(np.float64)
    interval = None
    if len(names) >= MIN_PATIENTS:
        draws = patient_draws(len(names), resamples, seed=seed)
        interval = percentile_interval(np.concatenate([drawn @ sums / (drawn @ counts) for drawn in draws]))
    return Similarity(kind, float(values.mean()), interval, len(values))
