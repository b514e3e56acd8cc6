"""A labelled folder of as many distinct chest X-rays as are wanted, made from a few: moved, turned, shaded, with noise.

Persons have three images each. No two are near-duplicates for ingest. The same seed gives the same bytes, and a smaller
folder the first images of a larger one.
"""

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.common.files import atomic_folder
from cxr.dataset.ingest import list_files
from cxr.dataset.layouts.labelled_folder import LABELS_FILE
from cxr.dataset.layouts.raw_set import Annotation
from cxr.dataset.sources import Sample, fetch

IMAGES_A_PERSON = 3
_FOLDER_IMAGES = 1000
_BASE_SIDE_PX = 320
_SIDES_PX = (300, 420)
_QUALITY = 88
_NOISE_SIDE_PX = 512


@dataclass(frozen=True)
class Base:
    """An image that others are made from: grey levels (320, 320) and its label."""

    grey: NDArray[np.uint8]
    label: str


def read_bases(location: str, downloads: Path, *, at_most: int) -> list[Base]:
    """Read images of a set laid out as `chest_xray`; `sample` is the synthetic one."""
    folder = fetch(location, downloads=downloads, sample=Sample(50, 20231)).folder
    files = list_files("base", "chest_xray", folder, is_archive=False)
    bases = []
    for at in np.random.default_rng(0).permutation(len(files))[:at_most]:
        data = files[at].location.read_bytes()
        annotation = files[at].raw_set.annotate(files[at].path, data)
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
        if isinstance(annotation, Annotation) and grey is not None:
            sized = cv2.resize(grey, (_BASE_SIDE_PX, _BASE_SIDE_PX), interpolation=cv2.INTER_AREA)
            bases.append(Base(np.asarray(sized, np.uint8), annotation.label))
    return bases


def write_images(folder: Path, bases: Sequence[Base], count: int, *, workers: int) -> None:
    """Write `count` images and their labels.csv; nothing where the folder is there already."""
    if folder.is_dir():
        return
    noise = np.random.default_rng(1).normal(0, 5, (_NOISE_SIDE_PX, _NOISE_SIDE_PX)).astype(np.float32)
    cv2.setNumThreads(1)
    with atomic_folder(folder) as partial:
        for number in range(-(-count // _FOLDER_IMAGES)):
            (partial / f"{number:03d}").mkdir()

        def write(number: int) -> str:
            person = np.random.default_rng([2, number // IMAGES_A_PERSON])
            base = bases[int(person.integers(len(bases)))]
            encoded = cv2.imencode(".jpeg", _variant(base.grey, number, noise), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
            (partial / _path(number)).write_bytes(encoded[1].tobytes())
            return base.label

        with ThreadPoolExecutor(workers) as pool, (partial / LABELS_FILE).open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("path", "label", "patient_id", "acquired"))
            for number, label in enumerate(pool.map(write, range(count))):
                person = number // IMAGES_A_PERSON
                table.writerow((_path(number), label, f"person {person}", person))


def _path(number: int) -> str:
    return f"{number // _FOLDER_IMAGES:03d}/{number:06d}.jpeg"


def _variant(grey: NDArray[np.uint8], number: int, noise: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the image turned, moved, scaled and shaded at random: another size, another thumbnail, other bytes."""
    draws = np.random.default_rng([3, number])
    width, height = draws.integers(*_SIDES_PX, 2).tolist()
    turned = cv2.getRotationMatrix2D((_BASE_SIDE_PX / 2, _BASE_SIDE_PX / 2), draws.uniform(-8, 8), 1)
    stretch = np.diag([width, height]) / _BASE_SIDE_PX * draws.uniform(0.95, 1.2)
    moved = stretch @ turned
    moved[:, 2] += draws.uniform(-0.1, 0.04, 2) * (width, height)
    placed = cv2.warpAffine(grey, moved, (width, height), borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    shade = cv2.resize(draws.normal(0, 28, (4, 4)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    top, left = draws.integers(0, _NOISE_SIDE_PX - _SIDES_PX[1], 2).tolist()
    levels = placed * draws.uniform(0.8, 1.1) + shade + noise[top : top + height, left : left + width]
    return np.asarray(np.clip(levels, 0, 255), np.uint8)
