"""Films a second from file to prepared pixels: ours against Pillow + torchvision, in turn, same films.

Run   python -m benchmarks.preprocessing FOLDER [--rounds 5]

Two peers do what most pipelines do: open with Pillow, `Resize`, equalise; once in a loop, once in torchvision's
usual company, a DataLoader with as many workers as there are cores. Both sides equalise here, because Pillow and
torchvision have no CLAHE; ours with CLAHE, the default, is a row of its own. The last row says how far decoding a
JPEG at reduced scale moves the grey levels of a film away from decoding it whole.
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
from cxr.imaging.preprocess import Preprocessing, prepare
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from cxr.imaging.decode import SUFFIXES, decode_grey, read_film

Contrast = Literal["clahe", "equalize", "none"]
SIZE_PX = 224
CORES = os.cpu_count() or 1


def ours(films: list[Path], contrast: Contrast) -> None:
    """Prepare films the way tasks.preprocess does."""
    preprocessing = _preprocessing(contrast)
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(lambda film: read_film(film, preprocessing), films))


class PillowFilms(Dataset[np.ndarray]):
    """Films through Pillow and torchvision's transforms."""

    def __init__(self, films: list[Path]) -> None:
        self._films = films
        self._resize = v2.Resize((SIZE_PX, SIZE_PX), antialias=True)

    def __len__(self) -> int:
        return len(self._films)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(self._films[index]) as image:
            return np.array(functional.equalize(self._resize(image.convert("L"))))


def pillow_loop(films: list[Path]) -> None:
    """Prepare films one after the other with Pillow and torchvision."""
    peer = PillowFilms(films)
    for index in range(len(peer)):
        peer[index]


def pillow_loader(films: list[Path]) -> None:
    """Prepare films with Pillow and torchvision in a DataLoader with a worker a core."""
    for _ in DataLoader(PillowFilms(films), batch_size=32, num_workers=CORES):
        pass


def reduced_scale_difference(films: list[Path]) -> str:
    """Return how far prepared films move when JPEGs are decoded at reduced scale (no contrast step)."""
    preprocessing = _preprocessing("none")
    differences = []
    for film in films:
        whole = decode_grey(film.read_bytes(), name=film.name, max_pixels=preprocessing.max_pixels)
        reduced = read_film(film, preprocessing).astype(np.int16)
        differences.append(np.abs(reduced - prepare(whole, preprocessing)))
    stacked = np.stack(differences)
    return f"mean {stacked.mean():.2f}, 99th percentile {np.percentile(stacked, 99):.0f}, largest {stacked.max()}"


def _preprocessing(contrast: Contrast) -> Preprocessing:
    return Preprocessing(SIZE_PX, "stretch", contrast, 2.0, 8, 50_000_000)


def _films_per_second(run: Callable[[], None], count: int) -> float:
    started = time.perf_counter()
    run()
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure all contestants in turn, round by round, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    films = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    cv2.setNumThreads(1)
    contestants: dict[str, Callable[[], None]] = {
        "ours, equalised": lambda: ours(films, "equalize"),
        "ours, CLAHE (default)": lambda: ours(films, "clahe"),
        "Pillow + torchvision, loop": lambda: pillow_loop(films),
        f"Pillow + torchvision, DataLoader({CORES})": lambda: pillow_loader(films),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds + 1):
        for name, run in contestants.items():
            speeds[name].append(_films_per_second(run, len(films)))
    base = "ours, equalised"
    print(f"{len(films)} films, {CORES} cores, {arguments.rounds} rounds in turn after one warm-up; medians")
    for name, measured in speeds.items():
        ratios = [ours_now / now for ours_now, now in zip(speeds[base][1:], measured[1:], strict=True)]
        print(
            f"{name:42s} {statistics.median(measured[1:]):8.1f} films/s   ours / this "
            f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"reduced-scale decode against whole, grey levels of 255: {reduced_scale_difference(films)}")


if __name__ == "__main__":
    main()
