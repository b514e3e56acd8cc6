"""Accepted images lie on disk: the same images come back, and a large set takes little memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cxr.common.on_disk import Spool
from cxr.dataset.deduplicate import deduplicate
from cxr.dataset.ingest import Accepted, AcceptedImages, ChosenImages, RawFile
from cxr.dataset.inspect import InspectedImage, perceptual_hash
from cxr.dataset.layouts.class_folders import ClassFolderSet
from cxr.dataset.layouts.raw_set import Acquisition, Annotation
from cxr.dataset.layouts.table import KERMANY

MANY = 2000
THUMBNAIL_BYTES = 32 * 32
_FRAMES = 8  # from an allocation up to this file


def accepted(number: int) -> Accepted:
    thumbnail = np.random.default_rng(number).integers(0, 256, (32, 32), np.uint8)
    described = InspectedImage(
        sha256=f"{number:064x}",
        phash=perceptual_hash(thumbnail),
        width=300 + number,
        height=400,
        mode="L",
        bytes=10_000 + number,
        grey_mean=number / 7,
        grey_std=30.0,
        grey_p01=1.0,
        grey_p99=250.0,
        saturated_share=0.0,
        thumbnail=thumbnail,
        is_mosaic=False,
    )
    file = RawFile("kermany", ClassFolderSet(KERMANY, Path("/set"), ()), f"train/NORMAL/IM-{number:06d}.jpeg")
    return Accepted(
        file, Annotation("normal", "train", f"train/IM-{number // 3}", Acquisition("IM", number)), described
    )


@pytest.fixture
def spooled(tmp_path: Path) -> Iterator[AcceptedImages]:
    with Spool[tuple[Annotation, InspectedImage]](tmp_path) as spool:
        yield AcceptedImages(spool)


def test_images_come_back_as_they_were_and_some_with_another_label(spooled: AcceptedImages) -> None:
    given = [accepted(number) for number in range(5)]
    for image in given:
        spooled.append(image)
    for image, found in zip(given, spooled, strict=True):
        np.testing.assert_array_equal(found.image.thumbnail, image.image.thumbnail)
        assert (found.file, found.annotation, found.image_id) == (image.file, image.annotation, image.image_id)
    chosen = ChosenImages(spooled, [3, 1], {1: "viral"})
    assert [(image.path, image.annotation.label) for image in chosen] == [
        ("train/NORMAL/IM-000003.jpeg", "normal"),
        ("train/NORMAL/IM-000001.jpeg", "viral"),
    ]


def test_an_image_takes_less_memory_than_its_thumbnail_until_duplicates_are_found(
    spooled: AcceptedImages, tmp_path: Path
) -> None:
    deduplicate([accepted(0)], duplicate=0.995, near_duplicate=0.98, scratch=tmp_path)  # imports and caches
    tracemalloc.start(_FRAMES)
    for number in range(MANY):
        spooled.append(accepted(number))
    result = deduplicate(spooled, duplicate=0.995, near_duplicate=0.98, scratch=tmp_path)
    # Threads of earlier tests may work in this process: what counts is what was allocated below this function.
    traces = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, __file__, all_frames=True)]).traces
    left = sum(trace.size for trace in traces)
    tracemalloc.stop()
    assert len(result.kept) == MANY
    assert left / MANY < THUMBNAIL_BYTES
