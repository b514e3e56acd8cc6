"""Prepare images in parallel and write them to an image array (see cxr/dataset/image_array.py)."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cxr.common.errors import DataError, ImageError
from cxr.dataset.image_array import IMAGES_FILE, write_index
from cxr.dataset.shards import Shards
from cxr.imaging.decode import image_from_bytes
from cxr.imaging.preprocess import Preprocessing

_CHUNK_IMAGES = 512  # images in progress at once; at 224 px their pixels take 26 MB
_NAMED_FAILURES = 10


def write_image_array(
    folder: Path,
    shards: Shards,
    *,
    image_ids: Sequence[str],
    paths: Sequence[str],
    preprocessing: Preprocessing,
    workers: int = 0,
) -> None:
    """Prepare the images `paths` of `shards` and write images.npy, index.csv and preprocessing.json to `folder`.

    Args:
        folder: an existing folder.
        shards: the packed images.
        image_ids: image_id of each row.
        paths: path of each image in the shards, in the order of the rows.
        preprocessing: how images are prepared.
        workers: threads; 0 means one per core.

    Raises:
        DataError: images are missing or cannot be prepared (names the first ones), or a shard is damaged.
    """
    size = preprocessing.image_size_px
    pixels = np.lib.format.open_memmap(folder / IMAGES_FILE, mode="w+", dtype=np.uint8, shape=(len(paths), size, size))
    _reserve(folder / IMAGES_FILE)
    failures = _fill(pixels, paths, shards, preprocessing, workers or os.cpu_count() or 1)
    if failures:
        raise DataError(_failure_message(failures, len(paths)))
    pixels.flush()
    write_index(folder, image_ids, preprocessing)


def _reserve(path: Path) -> None:
    """Reserve the disk's space for a file now: a full disk would end the process when a page of it is written."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _fill(
    pixels: NDArray[np.uint8], paths: Sequence[str], shards: Shards, preprocessing: Preprocessing, workers: int
) -> list[ImageError]:
    """Write each image into its row of `pixels`, and return the errors."""

    def fill_row(row: int) -> ImageError | None:
        data = shards.read(paths[row])
        try:
            pixels[row] = image_from_bytes(data, preprocessing, name=paths[row])
        except ImageError as error:
            return error
        return None

    cv2.setNumThreads(1)  # the pool has one thread per core; OpenCV's own threads would compete with them
    failures: list[ImageError] = []
    with (
        ThreadPoolExecutor(workers) as pool,  # decoding and filters release the interpreter lock
        tqdm(total=len(paths), unit=" images", desc="prepare", disable=None) as progress,
    ):
        for chunk in _chunks(len(paths)):
            for failure in pool.map(fill_row, chunk):
                progress.update()
                if failure is not None:
                    failures.append(failure)
    return failures


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, _CHUNK_IMAGES):
        yield range(start, min(start + _CHUNK_IMAGES, count))


def _failure_message(failures: Sequence[ImageError], total: int) -> str:
    named = "; ".join(str(failure) for failure in failures[:_NAMED_FAILURES])
    more = len(failures) - _NAMED_FAILURES
    rest = f"; and {more} more" if more > 0 else ""
    return (
        f"{len(failures)} of {total} images cannot be prepared: {named}{rest}. "
        "Run `./run dvc repro ingest` to quarantine such files"
    )
