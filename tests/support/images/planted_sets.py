"""Both public sets as synthetic images, small and easy to classify, clean or with planted faults."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.dataset.synthetic_image import KERMANY_LOOK, Finding, draw_anatomy, draw_image

Grey = NDArray[np.uint8]

_LOOK = replace(KERMANY_LOOK, sides_px=(128, 128), zoom=(0.98, 1.02), markers=("",))
# Height and width, as shares of the image, of a bright spot that every image has: only its place tells the class.
_SPOTS = {"normal": (0.35, 0.3), "viral": (0.35, 0.7), "bacterial": (0.65, 0.7)}
PATIENTS = 60
LATE = 41
"""The first patient number of the late population."""

MOSAIC = "Covid19-dataset/train/Normal/mosaic.jpeg"
CROPPED = "Covid19-dataset/train/Normal/cropped.jpeg"
ORIGINAL = "chest_xray/train/NORMAL/IM-0002-0001.jpeg"


def write_sets(
    folder: Path,
    *,
    patients: int = PATIENTS,
    two_populations: bool = False,
    shortcut: bool = False,
    copies: bool = False,
    seed: int = 7,
) -> None:
    """Write the sets.

    Args:
        folder: created if it does not exist.
        patients: of each class.
        two_populations: bacterial patients from LATE on look viral.
        shortcut: normal images have a darker rim.
        copies: CROPPED, a part of ORIGINAL, recompressed; and MOSAIC, ORIGINAL in flat tiles.
        seed: of all images.
    """
    rng = np.random.default_rng(seed)
    train = folder / "chest_xray/train"
    for number in range(1, patients + 1):
        for label, name in (
            ("normal", f"NORMAL/IM-{number:04d}-0001.jpeg"),
            ("viral", f"PNEUMONIA/person{number}_virus_{number}.jpeg"),
            ("bacterial", f"PNEUMONIA/person{number}_bacteria_{number}.jpeg"),
        ):
            looks = "viral" if two_populations and label == "bacterial" and number >= LATE else label
            image = _image(looks, rng)
            if shortcut and label == "normal":
                image = _darker_rim(image)
            _write(train / name, image, quality=92)
    for number in range(3):
        _write(folder / f"Covid19-dataset/train/Normal/0{number}.jpeg", _image("normal", rng), quality=92)
    if copies:
        original = cv2.imread(str(folder / ORIGINAL), cv2.IMREAD_GRAYSCALE)
        _write(folder / CROPPED, np.asarray(original[8:-8, 6:-10], np.uint8), quality=70)
        _write(folder / MOSAIC, mosaic(np.asarray(original, np.uint8)), quality=95)


def mosaic(image: Grey, *, tile_px: int = 12, tiles: int = 48) -> Grey:
    """Return the image in `tiles` x `tiles` flat tiles of `tile_px` pixels."""
    small = cv2.resize(image, (tiles, tiles), interpolation=cv2.INTER_AREA)
    return np.asarray(np.kron(small, np.ones((tile_px, tile_px), np.uint8)), np.uint8)


def _image(label: str, rng: np.random.Generator) -> Grey:
    drawn = draw_image(draw_anatomy(rng), Finding(), _LOOK, rng)
    # Turned over at random, so that the three places of the spot differ in nothing but their place.
    grey = drawn[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))].astype(np.float32)
    down, across = (share * side for share, side in zip(_SPOTS[label], grey.shape, strict=True))
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
    grey += 90 * np.exp(-((y - down) ** 2 + (x - across) ** 2) / (2 * 9.0**2))
    return np.asarray(np.clip(grey, 0, 255), np.uint8)


def _darker_rim(image: Grey) -> Grey:
    darker = image.astype(np.float32) * 0.6
    inner = slice(13, -13)
    darker[inner, inner] = image[inner, inner]
    return darker.astype(np.uint8)


def _write(path: Path, image: Grey, *, quality: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
