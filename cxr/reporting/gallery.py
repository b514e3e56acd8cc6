"""The images that a report shows: correct predictions drawn at random, and the most confident errors."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from cxr.dataset.image_array import ImageArray
from cxr.evaluation.predictions import Predictions
from cxr.imaging.encode import JPEG_QUALITY, jpeg_data_url
from cxr.imaging.overlay import MIN_SIDE_PX, Caption, draw_overlay, enlarge, shrink
from cxr.models.bundle import ModelSpec
from cxr.models.grad_cam import grad_cam_of_images
from cxr.reporting.report import GalleryItem

_SHEET_COLUMNS = 3
_TILE_PX = 320
_CAPTION_PX = 16


@dataclass(frozen=True)
class Pick:
    """An image to show: its row among the predictions, and whether the prediction is right."""

    row: int
    correct: bool


def make_gallery(
    model: nn.Module,
    spec: ModelSpec,
    packed: ImageArray,
    test: Predictions,
    picks: list[Pick],
    originals: Callable[[Sequence[str]], Sequence[NDArray[np.uint8]]],
) -> list[GalleryItem]:
    """Return the picked images with the Grad-CAM of their predicted class.

    Args:
        model: in evaluation mode.
        spec: of the model.
        packed: the prepared images.
        test: the predictions that `picks` name.
        picks: what to show.
        originals: returns the images with some image_ids as they were before preparation, (H, W) of any size.
    """
    chosen = test.where(np.array([pick.row for pick in picks], dtype=np.int64))
    predicted = chosen.calibrated.argmax(axis=1)
    shown = originals(chosen.image_ids.tolist())
    images = packed.images[packed.rows(chosen.image_ids.tolist())]
    heat = grad_cam_of_images(model, images, predicted, mean=spec.mean, std=spec.std)
    return [_item(chosen, i, spec, shown[i], heat[i]) for i in range(len(picks))]


def _item(
    chosen: Predictions, row: int, spec: ModelSpec, original: NDArray[np.uint8], heat: NDArray[np.float32]
) -> GalleryItem:
    actual, best = int(chosen.labels[row]), int(chosen.calibrated[row].argmax())
    return gallery_item(
        original,
        heat,
        spec,
        actual=chosen.classes[actual],
        predicted=spec.classes[best],
        probability=float(chosen.calibrated[row, best]),
        source=str(chosen.sources[row]),
        image_id=str(chosen.image_ids[row]),
    )


def gallery_item(
    original: NDArray[np.uint8],
    heat: NDArray[np.float32],
    spec: ModelSpec,
    *,
    actual: str,
    predicted: str,
    probability: float,
    source: str,
    image_id: str,
) -> GalleryItem:
    """Return an image (H, W) as it was before preparation, and the same under the heat of the predicted class."""
    shown = shrink(enlarge(original), MIN_SIDE_PX)
    caption = Caption(predicted, probability, f"weights {spec.weights_sha256[:8]}", spec.synthetic)
    return GalleryItem(
        image_id=image_id,
        image=jpeg_data_url(shown),
        overlay=jpeg_data_url(draw_overlay(shown, heat, spec.preprocessing, caption)),
        actual=actual,
        predicted=predicted,
        probability=probability,
        correct=actual == predicted,
        source=source,
    )


def pick_images(test: Predictions, *, per_class: int, seed: int) -> list[Pick]:
    """Choose images: for each actual class up to `per_class` right ones, then up to `per_class` errors.

    The right ones are drawn at random with `seed`, so that they are typical and not the best ones. The errors are those
    with the highest probability of the wrong class, one a patient.
    """
    generator = np.random.default_rng(seed)
    predicted = test.calibrated.argmax(axis=1)
    picks: list[Pick] = []
    for c in range(len(test.classes)):
        right = np.flatnonzero((test.labels == c) & (predicted == c))
        drawn = np.sort(generator.permutation(right)[:per_class])
        picks += [Pick(int(row), True) for row in drawn]
        picks += _most_confident(test, (test.labels == c) & (predicted != c), at_most=per_class)
    return picks


def pick_most_confident_errors(test: Predictions, *, at_most: int) -> list[Pick]:
    """Choose the wrong predictions with the highest probability, one a patient, the most confident first."""
    return _most_confident(test, test.calibrated.argmax(axis=1) != test.labels, at_most=at_most)


def _most_confident(test: Predictions, wrong: NDArray[np.bool_], *, at_most: int) -> list[Pick]:
    """Return the most confident of the `wrong` rows (N,), one a patient: further images of a person teach less."""
    rows = np.flatnonzero(wrong)
    ordered = rows[np.argsort(-test.calibrated.max(axis=1)[rows], kind="stable")]
    first_of_patient = np.sort(np.unique(test.patients[ordered].astype(str), return_index=True)[1])
    return [Pick(int(row), False) for row in ordered[first_of_patient][:at_most]]


def contact_sheet(items: list[GalleryItem]) -> bytes:
    """Return one JPEG of the images, each beside its Grad-CAM, three in a row, with actual and predicted class."""
    tiles = [_tile(item) for item in items]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % _SHEET_COLUMNS)
    rows = [np.hstack(tiles[first : first + _SHEET_COLUMNS]) for first in range(0, len(tiles), _SHEET_COLUMNS)]
    _, encoded = cv2.imencode(".jpg", np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return encoded.tobytes()


def _tile(item: GalleryItem) -> NDArray[np.uint8]:
    image, overlay = (_on_tile(_decoded(address)) for address in (item.image, item.overlay))
    pair = np.hstack([image, overlay])
    caption = np.full((_CAPTION_PX, pair.shape[1], 3), 255, np.uint8)
    text = f"{item.actual}, called {item.predicted} {item.probability:.0%}"
    cv2.putText(caption, text, (2, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.32, (0, 0, 0), 1, cv2.LINE_AA)
    tile: NDArray[np.uint8] = np.vstack([pair, caption])
    return tile


def _on_tile(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) within a square of _TILE_PX, on black."""
    small = shrink(picture, _TILE_PX)
    height, width = small.shape[:2]
    tile = np.zeros((_TILE_PX, _TILE_PX, 3), np.uint8)
    tile[:height, (_TILE_PX - width) // 2 :][:, :width] = small
    return tile


def _decoded(address: str) -> NDArray[np.uint8]:
    data = np.frombuffer(base64.b64decode(address.partition(",")[2]), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
