"""Keep one image of each group of duplicates, none of a group whose labels disagree, and no mosaic."""

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cxr.common.classes import Label
from cxr.common.on_disk import array_on_disk, release
from cxr.dataset.ingest import Accepted, ChosenImages, Rejected
from cxr.dataset.inspect import THUMBNAIL_SIDE_PX
from cxr.dataset.layouts.raw_set import Rejection
from cxr.dataset.near_duplicates import Pairs, connected_groups, correlation_of, similar_pairs

CONFLICTING = "conflicting labels"
MOSAIC = "mosaic or posterised"
_WRITTEN_AT_ONCE = 4096  # thumbnails: 4 MB
_NAMED_FROM = 0.9  # five mosaics correlate with their originals at 0.94 to 0.97


@dataclass(frozen=True)
class Duplicate:
    """An image that is left out as a duplicate of `kept`: the same bytes, or nearly the same thumbnail."""

    image: Accepted
    kept: Accepted
    kind: Literal["exact", "near"]
    correlation: float


@dataclass(frozen=True)
class Deduplicated:
    """The images by result.

    kept             sorted by image_id
    duplicates       sorted by source and path
    conflicting      images that have a duplicate with another label
    rejected         one entry for each of `conflicting`
    near_duplicates  (image_id, image_id, correlation) of kept images that must be in the same split, sorted
    patients         patient_id of the raw set -> patient_id to use; two patients that share an image become one
    """

    kept: Sequence[Accepted]
    duplicates: list[Duplicate]
    conflicting: list[Accepted]
    rejected: list[Rejected]
    near_duplicates: list[tuple[str, str, float]]
    patients: dict[str, str]


def deduplicate(
    images: Sequence[Accepted],
    *,
    duplicate: float,
    near_duplicate: float,
    scratch: Path,
    decided: Collection[str] = (),
) -> Deduplicated:
    """Keep the largest image of each group of duplicates; of equally large ones the first.

    Images are duplicates when their bytes are equal or their thumbnails correlate at `duplicate` or more. Of a group
    with different labels none is kept, unless a person decided one: it is then the label of the whole group.

    Args:
        images: all accepted images.
        duplicate: correlation of thumbnails from which images are duplicates, 0 to 1.
        near_duplicate: correlation from which kept images must be in the same split, 0 to 1.
        scratch: folder on a disk with 1 kB for each image.
        decided: image_ids of the images whose labels a person decided.
    """
    known = _described(images, scratch)
    similar = _similar(known, min(duplicate, near_duplicate))
    group_of = connected_groups(len(images), similar.at_least(duplicate).rows)
    kept: list[int] = []
    labels: dict[int, Label] = {}
    duplicates, conflicting, rejected = [], [], []
    for rows in _members(group_of):
        best = min(rows, key=lambda row: (-known.pixels[row], row))
        if len(rows) > 1:
            group = [images[row] for row in rows]
            label = _label_of(group, decided)
            if label is None:
                conflicting += group
                rejected += _conflicts(group)
                continue
            labels[best] = label
            duplicates += [_duplicate(images, known, row, best) for row in rows if row != best]
        kept.append(best)
    kept.sort(key=known.image_ids.__getitem__)
    return Deduplicated(
        kept=ChosenImages(images, kept, labels),
        duplicates=sorted(duplicates, key=lambda row: (row.image.source, row.image.path)),
        conflicting=conflicting,
        rejected=rejected,
        near_duplicates=_near_duplicates(similar.at_least(near_duplicate), set(kept), known),
        patients=_patients(known, group_of),
    )


def set_mosaics_aside(images: Sequence[Accepted], scratch: Path) -> tuple[Sequence[Accepted], list[Rejected]]:
    """Return the images that are no mosaics, and the mosaics as rejected, each with the image it looks like."""
    flags = np.fromiter((image.image.is_mosaic for image in images), bool, len(images))
    kept, mosaics = (np.flatnonzero(chosen) for chosen in (~flags, flags))
    thumbnails = _described(images, scratch).thumbnails if len(mosaics) else np.empty((0, 32, 32), np.uint8)
    rejected = [_mosaic(images, row, kept, thumbnails) for row in mosaics.tolist()]
    return ChosenImages(images, kept.tolist(), {}), rejected


def _mosaic(
    images: Sequence[Accepted], mosaic: int, kept: NDArray[np.int64], thumbnails: NDArray[np.uint8]
) -> Rejected:
    detail = "most of it is flat tiles, which no detector makes; look for the original image"
    correlation = correlation_of(thumbnails, np.stack([np.full(len(kept), mosaic), kept], axis=1))
    if len(kept) and correlation.max() >= _NAMED_FROM:
        like = images[kept[int(correlation.argmax())]]
        detail += f"; it looks like {like.source}/{like.path} (correlation {correlation.max():.2f})"
    image = images[mosaic]
    return Rejected(image.source, image.path, Rejection(MOSAIC, detail))


@dataclass(frozen=True)
class _Described:
    """What is compared of N images: thumbnails (N, 32, 32) on disk, and (N,) of each other thing."""

    thumbnails: NDArray[np.uint8]
    sha256: NDArray[np.bytes_]
    phash: NDArray[np.uint64]
    pixels: NDArray[np.int64]
    image_ids: list[str]
    patients: list[str]


def _described(images: Sequence[Accepted], scratch: Path) -> _Described:
    """Go once through the images."""
    thumbnails = array_on_disk(scratch, (len(images), THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX), np.uint8)
    sha256, phash = np.zeros(len(images), "S64"), np.zeros(len(images), np.uint64)
    pixels = np.zeros(len(images), np.int64)
    image_ids, patients = [], []
    for row, image in enumerate(images):
        thumbnails[row] = image.image.thumbnail
        sha256[row], phash[row] = image.image.sha256, image.image.phash
        pixels[row] = image.image.width * image.image.height
        image_ids.append(image.image_id)
        patients.append(sys.intern(image.patient_id))
        if row % _WRITTEN_AT_ONCE == 0:
            release(thumbnails)
    return _Described(thumbnails, sha256, phash, pixels, image_ids, patients)


def _similar(known: _Described, at_least: float) -> Pairs:
    """Return pairs of equal bytes (correlation 1), and pairs of similar thumbnails among images of different bytes."""
    _, first, number = np.unique(known.sha256, return_index=True, return_inverse=True)
    rows = np.arange(len(number))
    again = first[number] != rows
    equal = np.stack([first[number][again], rows[again]], axis=1)
    near = similar_pairs(known.phash, known.thumbnails, at_least=at_least, among=np.sort(first))
    return Pairs(np.concatenate([equal, near.rows]), np.concatenate([np.ones(len(equal)), near.correlation]))


def _members(group_of: NDArray[np.int64]) -> Iterator[list[int]]:
    """Yield the rows of each group."""
    order = np.argsort(group_of, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(group_of[order])) + 1, len(order)).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        if end > start:
            yield order[start:end].tolist()


def _label_of(group: list[Accepted], decided: Collection[str]) -> Label | None:
    """Return the label that the images share, or those that a person decided; None where they differ."""
    labels = {image.annotation.label for image in group if image.image_id in decided}
    labels = labels or {image.annotation.label for image in group}
    return labels.pop() if len(labels) == 1 else None


def _conflicts(group: list[Accepted]) -> list[Rejected]:
    labels = "; ".join(f"{image.source}/{image.path} is {image.annotation.label}" for image in group)
    rejection = Rejection(CONFLICTING, f"duplicates with different labels: {labels}")
    return [Rejected(image.source, image.path, rejection) for image in group]


def _duplicate(images: Sequence[Accepted], known: _Described, row: int, kept: int) -> Duplicate:
    if known.sha256[row] == known.sha256[kept]:
        return Duplicate(images[row], images[kept], "exact", 1.0)
    correlation = float(correlation_of(known.thumbnails, np.array([[row, kept]]))[0])
    return Duplicate(images[row], images[kept], "near", correlation)


def _near_duplicates(pairs: Pairs, kept: set[int], known: _Described) -> list[tuple[str, str, float]]:
    found = []
    for (one, other), correlation in zip(pairs.rows.tolist(), pairs.correlation.tolist(), strict=True):
        if one in kept and other in kept:
            first, second = sorted((known.image_ids[one], known.image_ids[other]))
            found.append((first, second, correlation))
    return sorted(found)


def _patients(known: _Described, group_of: NDArray[np.int64]) -> dict[str, str]:
    """Merge patients that share an image; the merged patient has the first of their patient_ids.

    Otherwise other images of the patient could be in training while the kept copy is in the test set.
    """
    names = sorted(set(known.patients))
    number = {name: index for index, name in enumerate(names)}
    patient = np.array([number[name] for name in known.patients], np.int64)
    first_of_group: dict[int, int] = {}
    rows = [(first_of_group.setdefault(group, row), row) for row, group in enumerate(group_of.tolist())]
    merged = connected_groups(len(names), patient[np.array(rows, np.int64).reshape(-1, 2)])
    first_name: dict[int, str] = {}
    return {name: first_name.setdefault(one, name) for name, one in zip(names, merged.tolist(), strict=True)}
