"""Measure every image of a set in batches, with a cache on disk.

A few hundred images are in memory at a time. Each batch is a file of the cache, named after its images and settings, so
that an interrupted run continues and a second one computes nothing.
"""

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cxr.common.files import atomic_file
from cxr.dataset.shards import Shards
from cxr.evaluation.rates import Floats
from cxr.forensics.measure import measure_each

_BATCH_IMAGES = 256
_VERSION = 1  # of what cxr.forensics.measure computes; a new one leaves old files of the cache unused

log = logging.getLogger("cxr.forensics")

Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From pixels (N, 224, 224) to features (N, D)."""


@dataclass(frozen=True)
class SetFeatures:
    """The measurements of N images, each (N, ...); see cxr.forensics.measure.MeasuredImage.

    `network` has no columns without a network.
    """

    thumbnail: NDArray[np.uint8]
    border: NDArray[np.float32]
    histogram: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    size: NDArray[np.float32]
    compression: NDArray[np.float32]
    network: NDArray[np.float32]

    def where(self, rows: NDArray[np.int64]) -> "SetFeatures":
        """Return the measurements of the chosen images."""
        return SetFeatures(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def style(self, family: str) -> Floats:
        """Return the features (N, D) of one of cxr.forensics.measure.STYLE_FAMILIES."""
        return np.asarray(getattr(self, family), np.float64)

    def whole_image(self) -> Floats:
        """Return the features of the whole image: those of the network, else the pixels of 32 x 32 thumbnails."""
        if self.network.shape[1]:
            return self.network.astype(np.float64)
        halves = self.thumbnail.reshape(len(self.thumbnail), 32, 2, 32, 2).mean(axis=(2, 4))
        return np.asarray(halves.reshape(len(halves), -1) / 255, np.float64)


@dataclass(frozen=True)
class Extraction:
    """How images are measured.

    max_pixels    larger images are rejected
    network       None: no features of a network
    network_name  identifies the network and its weights in the cache; "" without one
    cache         folder
    workers       threads that decode; 0: one per core
    """

    max_pixels: int
    network: Network | None
    network_name: str
    cache: Path
    workers: int


def extract(shards: Shards, image_ids: Sequence[str], paths: Sequence[str], extraction: Extraction) -> SetFeatures:
    """Measure the images `paths` of `shards`, in their order.

    Raises:
        DataError: an image is missing or a shard is damaged.
        ImageError: an image cannot be decoded; a DecoderError where its decoder does not survive it.
    """
    with tqdm(total=len(paths), unit=" images", desc="measure", disable=None) as progress:
        batches = []
        for batch in _batches(len(paths)):
            batches.append(
                _cached(shards, [image_ids[row] for row in batch], [paths[row] for row in batch], extraction)
            )
            progress.update(len(batch))
    return SetFeatures(
        **{
            field.name: np.concatenate([getattr(batch, field.name) for batch in batches])
            for field in fields(SetFeatures)
        }
    )


def _batches(count: int) -> Iterator[range]:
    for start in range(0, count, _BATCH_IMAGES):
        yield range(start, min(start + _BATCH_IMAGES, count))


def _cached(shards: Shards, image_ids: Sequence[str], paths: Sequence[str], extraction: Extraction) -> SetFeatures:
    key = hashlib.sha256("\n".join([str(_VERSION), extraction.network_name, *image_ids]).encode()).hexdigest()
    path = extraction.cache / f"{key[:32]}.npz"
    if path.is_file():
        try:
            with path.open("rb") as opened, np.load(opened) as stored:  # np.load leaves a damaged file open
                return SetFeatures(**{name: stored[name] for name in stored.files})
        except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
            log.warning("forensics: %s is damaged; its images are measured again", path)
    measured = _measured(shards, paths, extraction)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **vars(measured))
    return measured


def _measured(shards: Shards, paths: Sequence[str], extraction: Extraction) -> SetFeatures:
    images = list(measure_each(shards, paths, max_pixels=extraction.max_pixels, workers=extraction.workers))
    names = [field.name for field in fields(SetFeatures) if field.name != "network"]
    pixels = np.stack([image.pixels for image in images])
    network = extraction.network(pixels) if extraction.network else np.zeros((len(images), 0), np.float32)
    return SetFeatures(
        **{name: np.stack([getattr(image, name) for image in images]) for name in names}, network=network
    )
