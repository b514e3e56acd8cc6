"""Pictures that are no frontal chest X-ray: shipped with installed packages, drawn, or made from chest X-rays.

Nothing is downloaded. A set maps a picture's name to its file's bytes.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from pydicom import dcmread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

Files = dict[str, bytes]

_MADE_EACH = 40
_CROPS_EACH = 5
_SIDE = 320


def shipped_sets() -> dict[str, Files]:
    """Return the pictures that scikit-image, scikit-learn, matplotlib and pydicom ship, unchanged and in grey."""
    photos = _colour_files()
    return {
        "colour pictures": photos,
        "the same, made grey": {name: _png(_grey(data)) for name, data in photos.items()},
        "crops of them, grey": _crops(photos),
        "grey pictures": _grey_files(),
        "faces": _faces(),
        "DICOM files of other kinds": _dicom_files(),
        "their pictures as PNG": _dicom_pictures(),
    }


def drawn_sets() -> dict[str, Files]:
    """Return pictures drawn from fixed seeds."""
    return {
        name: {f"{name} {number}": _png(draw(np.random.default_rng(number))) for number in range(_MADE_EACH)}
        for name, draw in _DRAWN.items()
    }


def changed_images(images: Mapping[str, NDArray[np.uint8]]) -> dict[str, Files]:
    """Return images (H, W) with a defect, by the defect."""
    return {
        defect: {f"{defect} {name}": _png(change(image, np.random.default_rng(number)))
               for number, (name, image) in enumerate(images.items())}
        for defect, change in _CHANGES.items()
    }  # fmt: skip


def _png(picture: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", np.ascontiguousarray(picture))[1].tobytes())


def _grey(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8)


def _folder(module: str, *inside: str) -> Path:
    return Path(str(importlib.import_module(module).__file__)).parent.joinpath(*inside)


def _colour_files() -> Files:
    named = {
        "skimage": ("astronaut.png", "chelsea.png", "coffee.png", "color.png", "hubble_deep_field.jpg", "ihc.png",
                    "logo.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg"),
        "sklearn.datasets": ("china.jpg", "flower.jpg"),
        "matplotlib": ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png", "logo2.png"),
    }  # fmt: skip
    inside = {"skimage": ("data",), "sklearn.datasets": ("images",), "matplotlib": ("mpl-data", "sample_data")}
    paths = [_folder(module, *inside[module], name) for module, names in named.items() for name in names]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _grey_files() -> Files:
    names = ("brick", "camera", "cell", "chessboard_GRAY", "clock_motion", "coins", "grass", "gravel", "horse",
             "microaneurysms", "moon", "page", "synthetic", "text")  # fmt: skip
    paths = [_folder("skimage", "data", f"{name}.png") for name in names]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _faces() -> Files:
    faces = np.load(_folder("skimage", "data", "lfw_subset.npy"))[:100]
    pictures = (faces * 255).clip(0, 255).astype(np.uint8)
    return {
        f"face {n}": _png(cv2.resize(face, (224, 224), interpolation=cv2.INTER_CUBIC))
        for n, face in enumerate(pictures)
    }


def _crops(photos: Files) -> Files:
    crops = {}
    for number, (name, data) in enumerate(photos.items()):
        rng, grey = np.random.default_rng(number), _grey(data)
        height, width = grey.shape
        side = min(height, width) // 2
        for crop in range(_CROPS_EACH):
            top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
            crops[f"{name} crop {crop}"] = _png(grey[top : top + side, left : left + side])
    return crops


def _dicom_paths() -> list[Path]:
    root = _folder("pydicom", "data", "test_files")
    return sorted(path for path in root.rglob("*") if path.is_file() and path.suffix in {".dcm", ""})


def _dicom_files() -> Files:
    return {str(path.name): path.read_bytes() for path in _dicom_paths() if path.stat().st_size > 2000}


def _dicom_pictures() -> Files:
    pictures: Files = {}
    for path in _dicom_paths():
        try:
            pixels = np.asarray(dcmread(path, force=True).pixel_array, np.float32)
        except Exception:  # many of these files are broken on purpose
            continue
        pixels = pixels[0] if pixels.ndim == 3 and pixels.shape[-1] != 3 else pixels
        if pixels.ndim >= 2 and min(pixels.shape[:2]) >= 32:
            low, high = float(pixels.min()), float(pixels.max())
            pictures[path.name] = _png(((pixels - low) * (255 / max(high - low, 1))).astype(np.uint8))
    return pictures


def _noise(rng: np.random.Generator) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (_SIDE, _SIDE), np.uint8)


def _clouds(rng: np.random.Generator) -> NDArray[np.uint8]:
    soft = cv2.GaussianBlur(rng.normal(size=(_SIDE, _SIDE)), (0, 0), float(rng.uniform(8, 40)))
    return _stretched(soft)


def _blank(rng: np.random.Generator) -> NDArray[np.uint8]:
    level, spread = rng.integers(0, 256), rng.uniform(0, 3)
    return (level + rng.normal(0, spread, (_SIDE, _SIDE))).clip(0, 255).astype(np.uint8)


def _gradient(rng: np.random.Generator) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    angle = rng.uniform(0, 2 * np.pi)
    return _stretched(rows * np.sin(angle) + columns * np.cos(angle))


def _chequers(rng: np.random.Generator) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:_SIDE, :_SIDE] // int(rng.integers(4, 80))
    low, high = sorted(rng.integers(0, 256, 2).tolist())
    return np.asarray(np.where((rows + columns) % 2, high, low), np.uint8)


def _page(rng: np.random.Generator) -> NDArray[np.uint8]:
    page = np.full((900, 640), 255, np.uint8)
    for line in range(40, 860, int(rng.integers(18, 40))):
        words = "".join(rng.choice(list("abcdefghijklmno   pqrstuvwxyz"), 60))
        cv2.putText(page, words, (40, line), cv2.FONT_HERSHEY_SIMPLEX, 0.5, int(rng.integers(0, 60)), 1, cv2.LINE_AA)
    return page


def _screen(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Windows of flat grey with a few words: a screenshot."""
    screen = np.full((720, 1280), int(rng.integers(20, 250)), np.uint8)
    for _ in range(12):
        left, top = int(rng.integers(0, 1100)), int(rng.integers(0, 600))
        right, bottom = left + int(rng.integers(80, 700)), top + int(rng.integers(30, 400))
        cv2.rectangle(screen, (left, top), (right, bottom), int(rng.integers(0, 256)), -1)
        cv2.putText(
            screen, "File  Edit  View", (left, top + 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, int(rng.integers(0, 256))
        )
    return screen


def _ct_slice(rng: np.random.Generator) -> NDArray[np.uint8]:
    """An axial slice of a thorax as a viewer shows it: a bright oval with two dark lungs, air around it."""
    side = 512
    slice_ = np.full((side, side), int(rng.integers(0, 12)), np.float64)
    wide, deep = int(rng.integers(190, 235)), int(rng.integers(130, 175))
    at = (side // 2 + int(rng.integers(-12, 12)), side // 2 + int(rng.integers(-12, 12)))
    cv2.ellipse(slice_, at, (wide, deep), 0, 0, 360, 110, -1)
    cv2.ellipse(slice_, at, (wide - 14, deep - 14), 0, 0, 360, 150, -1)
    for direction in (-1, 1):
        middle = (at[0] + direction * wide // 2, at[1] - 5)
        cv2.ellipse(slice_, middle, (int(wide * 0.36), int(deep * 0.66)), 0, 0, 360, 22, -1)
        for _ in range(25):
            spot = (middle[0] + int(rng.normal(0, 30)), middle[1] + int(rng.normal(0, 35)))
            cv2.circle(slice_, spot, int(rng.integers(1, 5)), 110, -1)
    cv2.ellipse(slice_, (at[0] + 20, at[1] - 20), (58, 66), 0, 0, 360, 165, -1)
    cv2.circle(slice_, (at[0], at[1] + deep - 45), 26, 230, -1)
    return (cv2.GaussianBlur(slice_, (0, 0), 1.5) + rng.normal(0, 6, slice_.shape)).clip(0, 255).astype(np.uint8)


def _stretched(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    return np.asarray((values - low) * (255 / (high - low)), np.uint8)


_DRAWN: dict[str, Callable[[np.random.Generator], NDArray[np.uint8]]] = {
    "noise": _noise,
    "clouds": _clouds,
    "blank": _blank,
    "gradients": _gradient,
    "chequers": _chequers,
    "text pages": _page,
    "screenshots": _screen,
    "CT slices, drawn": _ct_slice,
}


def _turned(quarters: int) -> Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]:
    return lambda image, _rng: np.ascontiguousarray(np.rot90(image, quarters))


def _corner(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = image.shape
    top, left = int(rng.integers(height // 2 + 1)), int(rng.integers(width // 2 + 1))
    return image[top : top + height // 2, left : left + width // 2]


def _photographed(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """As a phone photographs it on a light box: askew, unevenly lit, soft, with the box around it."""
    height, width = image.shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    share = rng.uniform(0.06, 0.14, (4, 2)).astype(np.float32) * [[1, 1], [-1, 1], [-1, -1], [1, -1]]
    moved = (corners + share * [width, height]).astype(np.float32)
    warped = cv2.warpPerspective(image, cv2.getPerspectiveTransform(corners, moved), (width, height), borderValue=235)
    light = (
        np.linspace(rng.uniform(0.6, 0.9), 1.1, width)[None] * np.linspace(1.05, rng.uniform(0.7, 1), height)[:, None]
    )
    return (cv2.GaussianBlur(warped, (0, 0), max(height, width) / 400) * light).clip(0, 255).astype(np.uint8)


_CHANGES: dict[str, Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]] = {
    "inverted": lambda image, _rng: 255 - image,
    "a quarter to the left": _turned(1),
    "upside down": _turned(2),
    "a quarter to the right": _turned(3),
    "mirrored": lambda image, _rng: np.ascontiguousarray(image[:, ::-1]),
    "a corner of it": _corner,
    "photographed": _photographed,
}
