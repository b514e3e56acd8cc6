"""Keep one image of each group of duplicates, none of a group whose labels disagree, and no mosaic."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cxr.common.classes import Label
from cxr.dataset.ingest import Accepted, Rejected
from cxr.dataset.near_duplicates import Pairs, connected_groups, correlation_of, similar_pairs
from cxr.dataset.raw_set import Rejection

CONFLICTING = "conflicting labels"
MOSAIC = "mosaic or posterised"
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

    kept: list[Accepted]
    duplicates: list[Duplicate]
    conflicting: list[Accepted]
    rejected: list[Rejected]
    near_duplicates: list[tuple[str, str, float]]
    patients: dict[str, str]


def deduplicate(
    images: list[Accepted], *, duplicate: float, near_duplicate: float, decided: Collection[str] = ()
) -> Deduplicated:
    """Keep the largest image of each group of duplicates; of equally large ones the first.

    Images are duplicates when their bytes are equal or their thumbnails correlate at `duplicate` or more. Of a group
    with different labels none is kept, unless a person decided one: it is then the label of the whole group.

    Args:
        images: all accepted images.
        duplicate: correlation of thumbnails from which images are duplicates, 0 to 1.
        near_duplicate: correlation from which kept images must be in the same split, 0 to 1.
        decided: image_ids of the images whose labels a person decided.
    """
    thumbnails = np.array([image.image.thumbnail for image in images], np.uint8).reshape(-1, 32, 32)
    similar = _similar(images, thumbnails, min(duplicate, near_duplicate))
    group_of = connected_groups(len(images), similar.at_least(duplicate).rows)
    kept, duplicates, conflicting, rejected = [], [], [], []
    kept_row: dict[int, Accepted] = {}
    for rows in _members(group_of):
        group = [images[row] for row in rows]
        label = _label_of(group, decided)
        if label is None:
            conflicting += group
            rejected += _conflicts(group)
            continue
        best = min(rows, key=lambda row: (-images[row].image.width * images[row].image.height, row))
        kept_row[best] = replace(images[best], annotation=replace(images[best].annotation, label=label))
        kept.append(kept_row[best])
        duplicates += [_duplicate(images, thumbnails, row, best) for row in rows if row != best]
    return Deduplicated(
        kept=sorted(kept, key=lambda image: image.image_id),
        duplicates=sorted(duplicates, key=lambda row: (row.image.source, row.image.path)),
        conflicting=conflicting,
        rejected=rejected,
        near_duplicates=_near_duplicates(similar.at_least(near_duplicate), kept_row),
        patients=_patients(images, group_of),
    )


def set_mosaics_aside(images: list[Accepted]) -> tuple[list[Accepted], list[Rejected]]:
    """Return the images that are no mosaics, and the mosaics as rejected, each with the image it looks like."""
    kept = [image for image in images if not image.image.is_mosaic]
    return kept, [Rejected(one.source, one.path, _mosaic(one, kept)) for one in images if one.image.is_mosaic]


def _mosaic(mosaic: Accepted, kept: list[Accepted]) -> Rejection:
    detail = "most of it is flat tiles, which no detector makes; look for the original image"
    thumbnails = np.array([mosaic.image.thumbnail, *(image.image.thumbnail for image in kept)], np.uint8)
    rows = np.stack([np.zeros(len(kept), np.int64), np.arange(1, len(kept) + 1)], axis=1)
    correlation = correlation_of(thumbnails, rows)
    if len(kept) and correlation.max() >= _NAMED_FROM:
        like = kept[int(correlation.argmax())]
        detail += f"; it looks like {like.source}/{like.path} (correlation {correlation.max():.2f})"
    return Rejection(MOSAIC, detail)


def _similar(images: list[Accepted], thumbnails: NDArray[np.uint8], at_least: float) -> Pairs:
    """Return pairs of equal bytes (correlation 1), and pairs of similar thumbnails among images of different bytes."""
    first_row: dict[str, int] = {}
    equal = []
    for row, image in enumerate(images):
        first = first_row.setdefault(image.image.sha256, row)
        if first != row:
            equal.append((first, row))
    different = np.array(list(first_row.values()), np.int64)
    hashes = np.array([images[row].image.phash for row in different], np.uint64)
    near = similar_pairs(hashes, thumbnails[different], at_least=at_least)
    rows = np.concatenate([np.array(equal, np.int64).reshape(-1, 2), different[near.rows]])
    return Pairs(rows, np.concatenate([np.ones(len(equal)), near.correlation]))


def _members(group_of: NDArray[np.int64]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_of.tolist()):
        members.setdefault(group, []).append(row)
    return list(members.values())


def _label_of(group: list[Accepted], decided: Collection[str]) -> Label | None:
    """Return the label that the images share, or those that a person decided; None where they differ."""
    labels = {image.annotation.label for image in group if image.image_id in decided}
    labels = labels or {image.annotation.label for image in group}
    return labels.pop() if len(labels) == 1 else None


def _conflicts(group: list[Accepted]) -> list[Rejected]:
    labels = "; ".join(f"{image.source}/{image.path} is {image.annotation.label}" for image in group)
    rejection = Rejection(CONFLICTING, f"duplicates with different labels: {labels}")
    return [Rejected(image.source, image.path, rejection) for image in group]


def _duplicate(images: list[Accepted], thumbnails: NDArray[np.uint8], row: int, kept: int) -> Duplicate:
    if images[row].image.sha256 == images[kept].image.sha256:
        return Duplicate(images[row], images[kept], "exact", 1.0)
    correlation = float(correlation_of(thumbnails, np.array([[row, kept]]))[0])
    return Duplicate(images[row], images[kept], "near", correlation)


def _near_duplicates(pairs: Pairs, kept_row: dict[int, Accepted]) -> list[tuple[str, str, float]]:
    found = []
    for (one, other), correlation in zip(pairs.rows.tolist(), pairs.correlation.tolist(), strict=True):
        if one in kept_row and other in kept_row:
            first, second = sorted((kept_row[one].image_id, kept_row[other].image_id))
            found.append((first, second, correlation))
    return sorted(found)


def _patients(images: list[Accepted], group_of: NDArray[np.int64]) -> dict[str, str]:
    """Merge patients that share an image; the merged patient has the first of their patient_ids.

    Otherwise other images of the patient could be in training while the kept copy is in the test set.
    """
    names = sorted({image.patient_id for image in images})
    number = {name: index for index, name in enumerate(names)}
    patient = np.array([number[image.patient_id] for image in images], np.int64)
    first_of_group: dict[int, int] = {}
    rows = [(first_of_group.setdefault(group, row), row) for row, group in enumerate(group_of.tolist())]
    merged = connected_groups(len(names), patient[np.array(rows, np.int64).reshape(-1, 2)])
    first_name: dict[int, str] = {}
    return {name: first_name.setdefault(one, name) for name, one in zip(names, merged.tolist(), strict=True)}
