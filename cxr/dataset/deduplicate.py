"""Which of the images that came in are kept: one of each picture, and none whose copies disagree on the label."""

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
    """An image left out because `kept` is the same picture: the same bytes, or nearly the same thumbnail."""

    image: Taken
    kept: Taken
    kind: Literal["exact", "near"]
    correlation: float


@dataclass(frozen=True)
class Sorted:
    """What became of the images.

    kept         sorted by image_id
    duplicates   sorted by source and path
    conflicting  images whose copies have another label; `refused` says so for each
    near_duplicates  (image_id, image_id, correlation) of kept images that a split must not part, sorted
    patients     patient_id as read from the path -> patient_id to use: two that share an image are one
    """

    kept: list[Taken]
    duplicates: list[Duplicate]
    conflicting: list[Taken]
    refused: list[Refused]
    near_duplicates: list[tuple[str, str, float]]
    patients: dict[str, str]


def sort_out(images: list[Taken], *, same_image: float, near_duplicate: float) -> Sorted:
    """Keep one image of each picture: the one with most pixels, of these the first of `images`.

    Images whose thumbnails correlate at `same_image` or more are one picture, as are equal bytes;
    where the images of one picture have different labels, none is kept.
    """
    thumbnails = np.array([image.image.thumbnail for image in images], np.uint8).reshape(-1, 32, 32)
    alike = _alike(images, thumbnails, min(same_image, near_duplicate))
    group_of = components(len(images), alike.at_least(same_image).rows)
    kept, duplicates, conflicting, refused = [], [], [], []
    kept_row: dict[int, Taken] = {}
    for rows in _members(group_of):
        group = [images[row] for row in rows]
        if len({image.placement.label for image in group}) > 1:
            conflicting += group
            refused += _conflicts(group)
            continue
        best = min(rows, key=lambda row: (-images[row].image.width * images[row].image.height, row))
        kept.append(images[best])
        kept_row[best] = images[best]
        duplicates += [_duplicate(images, thumbnails, row, best) for row in rows if row != best]
    return Sorted(
        kept=sorted(kept, key=lambda image: image.image_id),
        duplicates=sorted(duplicates, key=lambda row: (row.image.source, row.image.path)),
        conflicting=conflicting,
        refused=refused,
        near_duplicates=_near_duplicates(alike.at_least(near_duplicate), kept_row),
        patients=_patients(images, group_of),
    )


def _alike(images: list[Taken], thumbnails: NDArray[np.uint8], at_least: float) -> Pairs:
    """Pairs of equal bytes (correlation 1), and pairs of alike thumbnails among images of different bytes."""
    first_row: dict[str, int] = {}
    equal = []
    for row, image in enumerate(images):
        first = first_row.setdefault(image.image.sha256, row)
        if first != row:
            equal.append((first, row))
    different = np.array(list(first_row.values()), np.int64)
    hashes = np.array([images[row].image.phash for row in different], np.uint64)
    near = alike_pairs(hashes, thumbnails[different], at_least=at_least)
    rows = np.concatenate([np.array(equal, np.int64).reshape(-1, 2), different[near.rows]])
    return Pairs(rows, np.concatenate([np.ones(len(equal)), near.correlation]))


def _members(group_of: NDArray[np.int64]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_of.tolist()):
        members.setdefault(group, []).append(row)
    return list(members.values())


def _conflicts(group: list[Taken]) -> list[Refused]:
    said = "; ".join(f"{image.source}/{image.path} is {image.placement.label}" for image in group)
    return [Refused(image.source, image.path, Refusal(CONFLICTING, f"one picture: {said}")) for image in group]


def _duplicate(images: list[Taken], thumbnails: NDArray[np.uint8], row: int, kept: int) -> Duplicate:
    if images[row].image.sha256 == images[kept].image.sha256:
        return Duplicate(images[row], images[kept], "exact", 1.0)
    correlation = float(correlation_of(thumbnails, np.array([[row, kept]]))[0])
    return Duplicate(images[row], images[kept], "near", correlation)


def _near_duplicates(pairs: Pairs, kept_row: dict[int, Taken]) -> list[tuple[str, str, float]]:
    found = []
    for (one, other), correlation in zip(pairs.rows.tolist(), pairs.correlation.tolist(), strict=True):
        if one in kept_row and other in kept_row:
            first, second = sorted((kept_row[one].image_id, kept_row[other].image_id))
            found.append((first, second, correlation))
    return sorted(found)


def _patients(images: list[Taken], group_of: NDArray[np.int64]) -> dict[str, str]:
    """Two patient numbers that share a picture are one person, named by the first of them.

    Otherwise a person's other images could lie in training while the kept copy, under the other
    number, is tested.
    """
    names = sorted({image.patient_id for image in images})
    number = {name: index for index, name in enumerate(names)}
    patient = np.array([number[image.patient_id] for image in images], np.int64)
    first_of_group: dict[int, int] = {}
    rows = [(first_of_group.setdefault(group, row), row) for row, group in enumerate(group_of.tolist())]
    person = components(len(names), patient[np.array(rows, np.int64).reshape(-1, 2)])
    first_name: dict[int, str] = {}
    return {name: first_name.setdefault(one, name) for name, one in zip(names, person.tolist(), strict=True)}
