"""Which images are called upside down, on their side, mirrored or inverted; and the fit of that check.

Run   ./run benchmarks.orientation RAW [--choose | --shipped | --write]

RAW is a folder with `chest_xray/` and `Covid19-dataset/`, as Kaggle's zips unpack. cxr/inference/orientation.py is
fitted three times, and measured on what that fit has not seen:

persons    two thirds of the persons of the first set; the other third
forward    the first set; the second, of other hospitals and mostly of adults
backward   the second set; the first

The rows of each are the images as they are, with a bright collimation border, on a lit background, and under all that
the fit was trained against; intervals are 95%, exact (Clopper and Pearson 1934).

With --choose the limit of "mirrored" is chosen as well, on a third of the persons that the fit has not seen, and then
measured on images that neither fit nor limit has seen: on the other set, both ways, and on the other half of all
persons, both ways. The rule is the same each time: the lowest limit at which, in the worst row, at most 0.5% of the
images are called anything, half of what is allowed. With --shipped the check that ships is
measured, on the images that it was fitted to. With --write the check is fitted to
both sets and to images of the synthetic sample, and written where the program reads it: arrays of numbers, no image.
Fitting one takes about two minutes on one core.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from safetensors.numpy import save_file
from scipy.stats import binomtest
from torch import nn
from tqdm import tqdm

from cxr.common.classes import Label
from cxr.common.files import atomic_file
from cxr.dataset.synthetic_image import COVID19_LOOK, KERMANY_LOOK, draw_anatomy, draw_finding, draw_image
from cxr.imaging.decode import decode_grey
from cxr.inference.orientation import (
    INVERTED,
    MIRRORED,
    ON_ITS_SIDE,
    UPSIDE_DOWN,
    WEIGHTS,
    OrientationCheck,
    edge_features,
    orientation_check,
    version_orders,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Image = NDArray[np.uint8]

_SIDE_PX = 112
_HIDDEN = 16
_COPIES = 3  # changed copies of each image that a fit sees, beside the image
_STEPS = 2000
_BATCH = 32
_SYNTHETIC = 400
_CLASSES: tuple[Label, ...] = ("normal", "viral", "bacterial")


@dataclass(frozen=True)
class Images:
    """Images (N, H, W), the person and the set of each."""

    pixels: Image
    persons: NDArray[np.str_]
    sets: NDArray[np.str_]

    def where(self, rows: NDArray[np.bool_]) -> Images:
        """Return some of the images."""
        return Images(self.pixels[rows], self.persons[rows], self.sets[rows])


def main() -> None:
    """Read the command line, measure, and write the check where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--choose", action="store_true", help="also choose the limit of 'mirrored', on some persons")
    parser.add_argument("--write", action="store_true", help="only fit the check to all images, and write it")
    parser.add_argument("--shipped", action="store_true", help="only measure the check that ships, on all images")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = read_images(given.raw)
    if given.write:
        _write(fit(np.concatenate([images.pixels, synthetic_images()])))
        return
    if given.shipped:
        _measure("both sets, these images too", [(orientation_check(), images)])
        return
    print("| fitted on | tested on | images | " + " | ".join(_TESTS) + " |")
    print("|---" * (3 + len(_TESTS)) + "|")
    first = images.sets == "chest_xray"
    if given.choose:
        _choose(images, first)
        return
    known = _some_persons(images.persons)
    check = fit(images.where(first & known).pixels)
    _measure("first set, 2/3 of the persons", [(check, images.where(first & ~known))])
    _measure("first set", [(fit(images.where(first).pixels), images.where(~first))])
    _measure("second set", [(fit(images.where(~first).pixels), images.where(first))])


def _choose(images: Images, first: NDArray[np.bool_]) -> None:
    """Choose the limit on some of the images, and measure on others."""
    for name, seen in (("first set", first), ("second set", ~first)):
        check = chosen(images.where(seen))
        _measure(f"{name}: limit {check.mirrored_limit:g}", [(check, images.where(~seen))])
    half = _some_persons(images.persons, share=1 / 2)
    checks = [(chosen(images.where(seen)), images.where(~seen)) for seen in (half, ~half)]
    limits = " and ".join(f"{check.mirrored_limit:g}" for check, _ in checks)
    _measure(f"the other half of the persons: limits {limits}", checks)


def chosen(images: Images) -> OrientationCheck:
    """Fit the check to two thirds of the persons, and choose its limit of "mirrored" on the others."""
    known = _some_persons(images.persons)
    check, others = fit(images.where(known).pixels), images.where(~known)
    seen = [features for _, features in _views(others)]
    for limit in _LIMITS:
        tried = replace(check, mirrored_limit=limit)
        wrong = max(sum(warning is not None for warning in tried.warnings_of(features)) for features in seen)
        if wrong <= _MOST_WRONG * len(others.pixels):
            break
    return tried


def read_images(raw: Path) -> Images:
    """Read both sets; the second one's folders count as sets of their own."""
    files = [(path, "chest_xray") for path in sorted((raw / "chest_xray").rglob("*.jp*g"))]
    files += [(path, path.parent.name) for path in sorted((raw / "Covid19-dataset").rglob("*.*")) if path.is_file()]
    pixels = [
        cv2.resize(_decoded(path), (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
        for path, _ in tqdm(files, desc="images")
    ]
    persons = [f"{name} {_person(path.name)}" for path, name in files]
    return Images(np.stack(pixels), np.array(persons), np.array([name for _, name in files]))


def synthetic_images() -> Image:
    """Return images of the synthetic sample's kind."""
    drawn = []
    for number in range(_SYNTHETIC):
        rng = np.random.default_rng(number)
        look, label = (KERMANY_LOOK, COVID19_LOOK)[number % 2], _CLASSES[number % 3]
        image = draw_image(draw_anatomy(rng), draw_finding(label, rng), look, rng)
        drawn.append(cv2.resize(image, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA))
    return np.stack(drawn)


def fit(pixels: Image) -> OrientationCheck:
    """Fit the check to upright images (N, H, W)."""
    rng = np.random.default_rng(0)
    copies = [pixels, *(np.stack([changed(image, rng) for image in pixels]) for _ in range(_COPIES))]
    features = torch.from_numpy(np.concatenate([edge_features(each) for each in copies]))
    orders, truth = torch.from_numpy(version_orders()), torch.zeros(_BATCH, dtype=torch.long)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Dropout(0.3), nn.Linear(features.shape[1], _HIDDEN), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(_HIDDEN, 1, bias=False),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=_STEPS)
    for _ in tqdm(range(_STEPS), desc="fit"):
        batch = features[torch.from_numpy(rng.integers(len(features), size=_BATCH))]
        loss = nn.functional.cross_entropy(network(batch[:, orders]).squeeze(-1), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    hidden, bias, output = (value.detach().numpy() for value in network.parameters())
    return OrientationCheck(np.ascontiguousarray(hidden.T), bias, output[0])


def changed(image: Image, rng: np.random.Generator) -> Image:
    """Return an upright image as another device may show it: moved, of other grey levels, with one of the defects."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-8, 8), np.exp(rng.uniform(-0.16, 0.18)))
    matrix[0, :2] *= np.exp(rng.uniform(-0.12, 0.12))
    matrix[:, 2] += rng.uniform(-0.05, 0.05, 2) * width
    mode = cv2.BORDER_CONSTANT if rng.random() < 2 / 3 else cv2.BORDER_REPLICATE
    moved = cv2.warpAffine(
        image, matrix, (width, height), borderMode=mode, borderValue=float(rng.choice([0, 128, 255]))
    )
    graded = (moved / 255.0) ** np.exp(rng.uniform(-0.5, 0.5)) * 255 * rng.uniform(0.7, 1) + rng.uniform(0, 30)
    return rng.choice(_DEFECTS)(graded.clip(0, 255).astype(np.uint8), rng)


def bordered(image: Image, rng: np.random.Generator) -> Image:
    """Return an image with a bright collimation border of up to 15% a side."""
    top, bottom, left, right = (rng.uniform(0.02, 0.15, 4) * image.shape[0]).astype(int)
    bright = np.full_like(image, rng.integers(180, 256))
    bright[top:-bottom, left:-right] = image[top:-bottom, left:-right]
    return bright


def lit(image: Image, rng: np.random.Generator) -> Image:
    """Return an image on a lit background, as photographed on a light box: bright around an oval or a rectangle."""
    height, width = image.shape
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    if rng.random() < 0.5:
        far = np.hypot(columns * rng.uniform(0.7, 1), rows * rng.uniform(0.6, 0.9))
    else:
        far = np.maximum(abs(columns) * rng.uniform(0.9, 1.1), abs(rows) * rng.uniform(0.8, 1.05))
    light = rng.integers(160, 256) / (1 + np.exp((rng.uniform(0.75, 0.95) - far) / rng.uniform(0.01, 0.06)))
    return np.maximum(image, light.astype(np.uint8))


def _letterboxed(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape
    bar = int(rng.uniform(0, 0.18) * height)
    size = (width, height - 2 * bar) if rng.random() < 0.5 else (width - 2 * bar, height)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    return cv2.copyMakeBorder(small, top, height - size[1] - top, left, width - size[0] - left, cv2.BORDER_CONSTANT)


def _enhanced(image: Image, _rng: np.random.Generator) -> Image:
    return cv2.createCLAHE(2.0, (8, 8)).apply(image)


def _equalised(image: Image, _rng: np.random.Generator) -> Image:
    return cv2.equalizeHist(image)


def _unchanged(image: Image, _rng: np.random.Generator) -> Image:
    return image


_DEFECTS = (bordered, lit, _letterboxed, _enhanced, _equalised, _unchanged)
_VIEWS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "as they are": _unchanged, "bright border": bordered, "lit background": lit, "all changes": changed,
}  # fmt: skip
_ANY = (UPSIDE_DOWN, ON_ITS_SIDE, MIRRORED, INVERTED)
# By column: which version of an image is tested (cxr.inference.orientation.VERSIONS), and which warnings count.
_TESTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "any warning, %": (0, _ANY),
    "called inverted, %": (0, (INVERTED,)),
    "upside down: warned, %": (2, _ANY),
    "on the left side: warned, %": (1, _ANY),
    "on the right side: warned, %": (3, _ANY),
    "mirrored: warned, %": (4, _ANY),
    "inverted: called so, %": (8, (INVERTED,)),
}
_LIMITS = (0.9, 0.95, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999)
_MOST_WRONG = 0.005


def _measure(fitted_on: str, parts: Sequence[tuple[OrientationCheck, Images]]) -> None:
    """Print the rates of checks on their images, taken together, by set and view."""
    for name in sorted({name for _, images in parts for name in images.sets}):
        of_set = [(check, images.where(images.sets == name)) for check, images in parts]
        by_view = [(check, dict(_views(images))) for check, images in of_set]
        for view in _VIEWS:
            shown = [(check, features[view]) for check, features in by_view]
            cells = [_rate(shown, number, wanted) for number, wanted in _TESTS.values()]
            count = sum(len(features) for _, features in shown)
            print(f"| {fitted_on} | {name}, {view} | {count} | " + " | ".join(cells) + " |", flush=True)


def _views(images: Images) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the name of each view, and the features of the images in it."""
    for view, change in _VIEWS.items():
        rng = np.random.default_rng(1)
        yield view, edge_features(np.stack([change(image, rng) for image in images.pixels]))


def _rate(shown: Sequence[tuple[OrientationCheck, NDArray[np.float32]]], version: int, wanted: tuple[str, ...]) -> str:
    order = version_orders()[version]
    found = [warning in wanted for check, features in shown for warning in check.warnings_of(features[:, order])]
    interval = binomtest(sum(found), len(found)).proportion_ci(method="exact")
    return f"{100 * np.mean(found):.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _some_persons(persons: NDArray[np.str_], *, share: float = 2 / 3) -> NDArray[np.bool_]:
    """Return whether each image belongs to a share of the persons, drawn at random."""
    names = np.random.default_rng(0).permutation(np.unique(persons))
    return np.isin(persons, names[int(len(names) * (1 - share)) :])


def _person(file: str) -> str:
    found = re.search(r"person\d+|(NORMAL2-)?IM-\d+", file)
    return found.group() if found else file


def _decoded(path: Path) -> Image:
    return decode_grey(path.read_bytes(), name=path.name, max_pixels=50_000_000)


def _write(check: OrientationCheck) -> None:
    arrays = {name: getattr(check, name).astype(np.float16) for name in ("hidden", "bias", "output")}
    with atomic_file(WEIGHTS) as partial:
        save_file(arrays, partial)


if __name__ == "__main__":
    main()
