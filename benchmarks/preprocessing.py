"""Images per second from file to prepared pixels: this project against Pillow + torchvision, on the same images.

Run   ./run benchmarks.preprocessing FOLDER [--rounds 5]

The two peers do what most pipelines do: open with Pillow, `Resize`, equalise; once in a loop and once in a DataLoader
with one worker per core. All equalise the histogram, because Pillow and torchvision have no CLAHE; this project with
CLAHE, its default, is a separate row. The last row is the difference in grey levels between decoding JPEGs at reduced
and at full scale.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from cxr.imaging.decode import SUFFIXES, decode_grey, image_from_bytes
from cxr.imaging.preprocess import Preprocessing, prepare

Contrast = Literal["clahe", "equalize", "none"]
SIZE_PX = 224
CORES = os.cpu_count() or 1


def ours(images: list[Path], contrast: Contrast) -> None:
    """Prepare images like tasks.preprocess."""
    preprocessing = _preprocessing(contrast)
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(lambda image: _prepared(image, preprocessing), images))


class PillowImages(Dataset[np.ndarray]):
    """Images prepared by Pillow and torchvision's transforms."""

    def __init__(self, images: list[Path]) -> None:
        self._images = images
        self._resize = v2.Resize((SIZE_PX, SIZE_PX), antialias=True)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(self._images[index]) as image:
            return np.array(functional.equalize(self._resize(image.convert("L"))))


def pillow_loop(images: list[Path]) -> None:
    """Prepare images one by one with Pillow and torchvision."""
    peer = PillowImages(images)
    for index in range(len(peer)):
        peer[index]


def pillow_loader(images: list[Path]) -> None:
    """Prepare images with Pillow and torchvision in a DataLoader with one worker per core."""
    for _ in DataLoader(PillowImages(images), batch_size=32, num_workers=CORES):
        pass


def reduced_scale_difference(images: list[Path]) -> str:
    """Return the difference in grey levels when JPEGs are decoded at reduced scale, without contrast step."""
    preprocessing = _preprocessing("none")
    differences = []
    for image in images:
        whole = decode_grey(image.read_bytes(), name=image.name, max_pixels=preprocessing.max_pixels)
        reduced = _prepared(image, preprocessing).astype(np.int16)
        differences.append(np.abs(reduced - prepare(whole, preprocessing)))
    stacked = np.stack(differences)
    return f"mean {stacked.mean():.2f}, 99th percentile {np.percentile(stacked, 99):.0f}, largest {stacked.max()}"


def _prepared(image: Path, preprocessing: Preprocessing) -> np.ndarray:
    return image_from_bytes(image.read_bytes(), preprocessing, name=image.name)


def _preprocessing(contrast: Contrast) -> Preprocessing:
    return Preprocessing(SIZE_PX, "stretch", contrast, 2.0, 8, 50_000_000)


def _images_per_second(run: Callable[[], None], count: int) -> float:
    started = time.perf_counter()
    run()
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure all variants in turn, round by round, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    images = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    cv2.setNumThreads(1)
    variants: dict[str, Callable[[], None]] = {
        "ours, equalised": lambda: ours(images, "equalize"),
        "ours, CLAHE (default)": lambda: ours(images, "clahe"),
        "Pillow + torchvision, loop": lambda: pillow_loop(images),
        f"Pillow + torchvision, DataLoader({CORES})": lambda: pillow_loader(images),
    }
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds + 1):
        for name, run in variants.items():
            speeds[name].append(_images_per_second(run, len(images)))
    base = "ours, equalised"
    print(f"{len(images)} images, {CORES} cores, {arguments.rounds} rounds in turn after one warm-up; medians")
    for name, measured in speeds.items():
        ratios = [ours_now / now for ours_now, now in zip(speeds[base][1:], measured[1:], strict=True)]
        print(
            f"{name:42s} {statistics.median(measured[1:]):8.1f} images/s   ours / this "
            f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"reduced-scale decode against whole, grey levels of 255: {reduced_scale_difference(images)}")


if __name__ == "__main__":
    main()
