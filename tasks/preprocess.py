"""Prepare every image once: grey, size, contrast; packed into one memory-mapped array.

Reads   data/raw (manifest and packed images), reports/validation.json (the gate has passed)
Writes  data/images: images.npy uint8 (N, H, W), index.csv, preprocessing.json

An image that cannot be read stops the stage and is named; no half-written output stays behind.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cxr.common.cli import answer_help, run_step, step_parser

if __name__ == "__main__":
    answer_help(step_parser(sys.modules[__name__]))

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cxr.common.errors import DataError, ImageError
from cxr.common.files import atomic_folder
from cxr.common.params import Paths, PreprocessParams
from cxr.dataset.image_array import write_index
from cxr.dataset.manifest import read_manifest
from cxr.dataset.shards import Shards
from cxr.imaging.decode import image_from_bytes
from cxr.imaging.preprocess import Preprocessing

log = logging.getLogger("cxr.preprocess")

_CHUNK_IMAGES = 512  # images in flight at once; at 224 px their pixels take 26 MB
_NAMED_FAILURES = 10


def preprocess(params: PreprocessParams, paths: Paths) -> None:
    """Pack all images of the manifest, in its order.

    Raises:
        DataError: an image is missing, its shard is damaged, or it cannot be prepared.
    """
    preprocessing = Preprocessing(**params.model_dump(exclude={"workers"}))
    manifest = read_manifest(paths.raw)
    images = manifest["path"].tolist()
    shards = Shards(paths.raw / "images")
    size = preprocessing.image_size_px
    with atomic_folder(paths.images) as folder:
        shape = (len(images), size, size)
        pixels = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        failures = _fill(pixels, images, shards, preprocessing, params.workers or os.cpu_count() or 1)
        if failures:
            raise DataError(_summary(failures, len(images)))
        pixels.flush()
        write_index(folder, manifest["image_id"].tolist(), preprocessing)
    log.info("preprocess: %d images of %d x %d px in %s", len(images), size, size, paths.images)


def _fill(
    pixels: NDArray[np.uint8], images: Sequence[str], shards: Shards, preprocessing: Preprocessing, workers: int
) -> list[ImageError]:
    """Write each image into its row of `pixels`; return what went wrong."""

    def fill_row(row: int) -> ImageError | None:
        data = shards.read(images[row])
        try:
            pixels[row] = image_from_bytes(data, preprocessing, name=images[row])
        except ImageError as error:
            return error
        return None

    cv2.setNumThreads(1)  # the pool has a thread a core; OpenCV's own would fight it
    failures: list[ImageError] = []
    with (
        ThreadPoolExecutor(workers) as pool,  # decoding and filters run outside the interpreter's lock
        tqdm(total=len(images), unit=" images", desc="preprocess", disable=None) as progress,
    ):
        for chunk in _chunks(len(images)):
            for failure in pool.map(fill_row, chunk):
                progress.update()
                if failure is not None:
                    failures.append(failure)
    return failures


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, _CHUNK_IMAGES):
        yield range(start, min(start + _CHUNK_IMAGES, count))


def _summary(failures: Sequence[ImageError], total: int) -> str:
    named = "; ".join(str(failure) for failure in failures[:_NAMED_FAILURES])
    more = len(failures) - _NAMED_FAILURES
    rest = f"; and {more} more" if more > 0 else ""
    return (
        f"{len(failures)} of {total} images cannot be prepared: {named}{rest}. Run `dvc repro ingest` to sort them out"
    )


if __name__ == "__main__":
    run_step(preprocess)
