"""Prepare images in parallel and write them to an image array (see cxr/dataset/image_array.py)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cxr.common.errors import DataError, DecoderError, ImageError
from cxr.common.on_disk import release, reserve
from cxr.dataset.image_array import IMAGES_FILE, write_index
from cxr.dataset.shards import Shards
from cxr.imaging.decode import image_from_bytes
from cxr.imaging.preprocess import Preprocessing
from cxr.imaging.unattended import decode_each, kept_by_ingest

_RELEASED_IMAGES = 512  # written ones that stay mapped; at 224 px they take 26 MB
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
        DecoderError: images crash their decoder or take too much time or memory (names the first ones).
    """
    size = preprocessing.image_size_px
    pixels = np.lib.format.open_memmap(folder / IMAGES_FILE, mode="w+", dtype=np.uint8, shape=(len(paths), size, size))
    with (folder / IMAGES_FILE).open("r+b") as file:
        reserve(file, (folder / IMAGES_FILE).stat().st_size)
    failures = _fill(pixels, paths, shards, preprocessing, workers)
    if failures:
        unsurvived = [failure for failure in failures if isinstance(failure, DecoderError)]
        raise kept_by_ingest(unsurvived) if unsurvived else DataError(_failure_message(failures, len(paths)))
    pixels.flush()
    write_index(folder, image_ids, preprocessing)


def _fill(
    pixels: NDArray[np.uint8], paths: Sequence[str], shards: Shards, preprocessing: Preprocessing, workers: int
) -> list[ImageError]:
    """Write each image into its row of `pixels`, and return the errors."""

    def read(row: int) -> bytes:
        return shards.read(paths[row])

    def fill_row(row: int, data: bytes) -> ImageError | None:
        if row % _RELEASED_IMAGES == 0:
            release(pixels)
        try:
            pixels[row] = image_from_bytes(data, preprocessing, name=paths[row])
        except ImageError as error:
            return error
        return None

    # In a child process, which maps the same file. Decoding and filters release the interpreter lock.
    done = decode_each(
        read,
        fill_row,
        range(len(paths)),
        name=lambda row: paths[row],
        refused=lambda _, error: error,
        max_pixels=preprocessing.max_pixels,
        workers=workers,
    )
    failures = tqdm(done, total=len(paths), unit=" images", desc="prepare", disable=None)
    return [failure for failure in failures if failure is not None]


def _failure_message(failures: Sequence[ImageError], total: int) -> str:
    named = "; ".join(str(failure) for failure in failures[:_NAMED_FAILURES])
    more = len(failures) - _NAMED_FAILURES
    rest = f"; and {more} more" if more > 0 else ""
    return (
        f"{len(failures)} of {total} images cannot be prepared: {named}{rest}. "
        "Run `./run dvc repro ingest` to quarantine such files"
    )
