"""Which of the films that came in are kept: one of each picture, and none whose copies disagree on the label."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cxr.dataset.ingest import Refused, Taken
from cxr.dataset.layouts import Refusal
from cxr.dataset.near_duplicates import Pairs, alike_pairs, components, correlation_of

CONFLICTING = "conflicting labels"


@dataclass(frozen=True)
class Duplicate:
    """A film left out because `kept` is the same picture: the same bytes, or nearly the same thumbnail."""

    film: Taken
    kept: Taken
    kind: Literal["exact", "near"]
    correlation: float


@dataclass(frozen=True)
class Sorted:
    """What became of the films.

    kept         sorted by image_id
    duplicates   sorted by source and path
    conflicting  films whose copies have another label; `refused` says so for each
    look_alikes  (image_id, image_id, correlation) of kept films that a split must not part, sorted
    patients     patient_id as read from the path -> patient_id to use: two that share a film are one
    """

    kept: list[Taken]
    duplicates: list[Duplicate]
    conflicting: list[Taken]
    refused: list[Refused]
    look_alikes: list[tuple[str, str, float]]
    patients: dict[str, str]


def sort_out(films: list[Taken], *, same_film: float, look_alike: float) -> Sorted:
    """Keep one film of each picture: the one with most pixels, of these the first of `films`.

    Films whose thumbnails correlate at `same_film` or more are one picture, as are equal bytes;
    where the films of one picture have different labels, none is kept.
    """
    thumbnails = np.array([film.film.thumbnail for film in films], np.uint8).reshape(-1, 32, 32)
    alike = _alike(films, thumbnails, min(same_film, look_alike))
    group_of = components(len(films), alike.at_least(same_film).rows)
    kept, duplicates, conflicting, refused = [], [], [], []
    kept_row: dict[int, Taken] = {}
    for rows in _members(group_of):
        group = [films[row] for row in rows]
        if len({film.placement.label for film in group}) > 1:
            conflicting += group
            refused += _conflicts(group)
            continue
        best = min(rows, key=lambda row: (-films[row].film.width * films[row].film.height, row))
        kept.append(films[best])
        kept_row[best] = films[best]
        duplicates += [_duplicate(films, thumbnails, row, best) for row in rows if row != best]
    return Sorted(
        kept=sorted(kept, key=lambda film: film.image_id),
        duplicates=sorted(duplicates, key=lambda row: (row.film.source, row.film.path)),
        conflicting=conflicting,
        refused=refused,
        look_alikes=_look_alikes(alike.at_least(look_alike), kept_row),
        patients=_patients(films, group_of),
    )


def _alike(films: list[Taken], thumbnails: NDArray[np.uint8], at_least: float) -> Pairs:
    """Pairs of equal bytes (correlation 1), and pairs of alike thumbnails among films of different bytes."""
    first_row: dict[str, int] = {}
    equal = []
    for row, film in enumerate(films):
        first = first_row.setdefault(film.film.sha256, row)
        if first != row:
            equal.append((first, row))
    different = np.array(list(first_row.values()), np.int64)
    hashes = np.array([films[row].film.phash for row in different], np.uint64)
    near = alike_pairs(hashes, thumbnails[different], at_least=at_least)
    rows = np.concatenate([np.array(equal, np.int64).reshape(-1, 2), different[near.rows]])
    return Pairs(rows, np.concatenate([np.ones(len(equal)), near.correlation]))


def _members(group_of: NDArray[np.int64]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_of.tolist()):
        members.setdefault(group, []).append(row)
    return list(members.values())


def _conflicts(group: list[Taken]) -> list[Refused]:
    said = "; ".join(f"{film.source}/{film.path} is {film.placement.label}" for film in group)
    return [Refused(film.source, film.path, Refusal(CONFLICTING, f"one picture: {said}")) for film in group]


def _duplicate(films: list[Taken], thumbnails: NDArray[np.uint8], row: int, kept: int) -> Duplicate:
    if films[row].film.sha256 == films[kept].film.sha256:
        return Duplicate(films[row], films[kept], "exact", 1.0)
    correlation = float(correlation_of(thumbnails, np.array([[row, kept]]))[0])
    return Duplicate(films[row], films[kept], "near", correlation)


def _look_alikes(pairs: Pairs, kept_row: dict[int, Taken]) -> list[tuple[str, str, float]]:
    found = []
    for (one, other), correlation in zip(pairs.rows.tolist(), pairs.correlation.tolist(), strict=True):
        if one in kept_row and other in kept_row:
            first, second = sorted((kept_row[one].image_id, kept_row[other].image_id))
            found.append((first, second, correlation))
    return sorted(found)


def _patients(films: list[Taken], group_of: NDArray[np.int64]) -> dict[str, str]:
    """Two patient numbers that share a picture are one person, named by the first of them.

    Otherwise a person's other films could lie in training while the kept copy, under the other
    number, is tested.
    """
    names = sorted({film.patient_id for film in films})
    number = {name: index for index, name in enumerate(names)}
    patient = np.array([number[film.patient_id] for film in films], np.int64)
    first_of_group: dict[int, int] = {}
    rows = [(first_of_group.setdefault(group, row), row) for row, group in enumerate(group_of.tolist())]
    person = components(len(names), patient[np.array(rows, np.int64).reshape(-1, 2)])
    first_name: dict[int, str] = {}
    return {name: first_name.setdefault(one, name) for name, one in zip(names, person.tolist(), strict=True)}
