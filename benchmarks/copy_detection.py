"""Which changed copies of a picture the forensics find, and how alike strangers are at most.

Run   ./run benchmarks.copy_detection [--raw data/raw] [--images 600] [--copies 60]

Draws images from data/raw, changes some of them in eight ways, and searches each kind of copy among all drawn images.
Prints the share of copies that are paired with their original, and the pairs of two different images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.common.params import read_params
from cxr.dataset.manifest import read_manifest
from cxr.dataset.shards import Shards
from cxr.forensics.copies import find_copies
from cxr.forensics.measure import THUMBNAIL_SIDE_PX
from cxr.imaging.decode import decode_grey

Grey = NDArray[np.uint8]


def _cut(left: float, right: float, top: float, bottom: float) -> Callable[[Grey], Grey]:
    def cut(image: Grey) -> Grey:
        height, width = image.shape
        return image[int(height * top) : int(height * (1 - bottom)), int(width * left) : int(width * (1 - right))]

    return cut


def _jpeg(image: Grey) -> Grey:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, [1, 20])[1], cv2.IMREAD_GRAYSCALE), np.uint8)


def _tiles(image: Grey) -> Grey:
    small = cv2.resize(image, (28, 28), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


CHANGES: dict[str, Callable[[Grey], Grey]] = {
    "JPEG of quality 20": _jpeg,
    "gamma 0.6": lambda image: np.asarray(255 * (image / 255) ** 0.6, np.uint8),
    "8 grey levels": lambda image: image // 32 * 32,
    "28 x 28 flat tiles": _tiles,
    "3% cut off each side": _cut(0.03, 0.03, 0.03, 0.03),
    "6% cut off each side": _cut(0.06, 0.06, 0.06, 0.06),
    "10% cut off each side": _cut(0.1, 0.1, 0.1, 0.1),
    "15% cut below, 12% left": _cut(0.12, 0, 0, 0.15),
}


def _thumbnail(image: Grey) -> Grey:
    size = (THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def main() -> None:
    """Read the command line, search each kind of copy and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="(%(default)s)")
    parser.add_argument("--images", type=int, default=600, help="(%(default)s)")
    parser.add_argument("--copies", type=int, default=60, help="(%(default)s)")
    given = parser.parse_args()
    params = read_params(Path("params.yaml")).forensics
    paths = read_manifest(given.raw)["path"].sample(given.images, random_state=params.seed).tolist()
    shards = Shards(given.raw / "images")
    images = [decode_grey(shards.read(path), name=path, max_pixels=params.max_pixels) for path in paths]
    originals = [_thumbnail(image) for image in images]
    for name, change in CHANGES.items():
        copies = [_thumbnail(change(image)) for image in images[: given.copies]]
        found = find_copies(np.stack([*originals, *copies]), limit=params.copy_correlation)
        right = sum(pair.other - given.images == pair.one for pair in found)
        print(f"{name:<26} {right}/{given.copies} found, {len(found) - right} other pairs", flush=True)


if __name__ == "__main__":
    main()
