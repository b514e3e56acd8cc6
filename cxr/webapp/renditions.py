"""What the page and its downloads are made from: pictures as data URLs, pixels for the viewer, the overlay as PNG."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.common.classes import Label
from cxr.imaging.decode import EncodedImage
from cxr.imaging.encode import jpeg_data_url
from cxr.imaging.overlay import heat_layer, shrink
from cxr.imaging.preprocess import Preprocessing
from cxr.inference.answer import Answer
from cxr.inference.classifier import Classifier
from cxr.inference.explanation import captioned_overlay
from cxr.webapp.batcher import HeatMap
from cxr.webapp.decode_pool import NAME, DecodedImage, open_checked

EXAMPLES = 4
IMAGE_SIDE_PX = 720
_HEAT_SIDE_PX = 256  # finer than the cells of any network; the page enlarges it smoothly


def render_image(image: EncodedImage) -> str:
    """Return the image as a JPEG with at most IMAGE_SIDE_PX on its longer side.

    Raises:
        ImageError: see cxr.imaging.decode.EncodedImage.grey.
    """
    return jpeg_data_url(shrink(image.grey(min_side_px=IMAGE_SIDE_PX), IMAGE_SIDE_PX))


def render_heat(
    image: EncodedImage, heat: NDArray[np.float32], probability: float, preprocessing: Preprocessing
) -> str:
    """Return the heat of a class as a PNG to lay over the image; see cxr.imaging.overlay.heat_layer.

    Args:
        image: the opened file; decoded for its aspect, because the header does not know of a rotation in EXIF.
        heat: (H, W), 0 to 1, in the geometry of the model's input.
        probability: of the class.
        preprocessing: how the image was prepared.
    """
    height, width = image.grey(min_side_px=1).shape
    scale = _HEAT_SIDE_PX / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    layer = heat_layer(heat, probability, size, preprocessing)
    encoded = cv2.imencode(".png", cv2.cvtColor(layer, cv2.COLOR_RGBA2BGRA))[1]
    return f"data:image/png;base64,{base64.b64encode(encoded.tobytes()).decode()}"


@dataclass(frozen=True)
class Pixels:
    """Pixels for the viewer: `content`, little-endian rows; `described` is what it needs to show them."""

    content: bytes
    described: dict[str, Any]


def viewer_pixels(data: bytes, classifier: Classifier) -> Pixels:
    """Return an image at full size and depth. Raises ImageError."""
    wide = open_checked(data, classifier).wide()
    height, width = wide.levels.shape
    described = {
        "width": width,
        "height": height,
        "bits": 8 * wide.levels.itemsize,
        "window": list(wide.window),
        "view": wide.view,
        "laterality": wide.laterality,
    }
    return Pixels(wide.levels.astype(wide.levels.dtype.newbyteorder("<")).tobytes(), described)


def overlay_png(decoded: DecodedImage, answer: Answer, heat: HeatMap) -> bytes:
    """Return the image with the heat of a class and its caption, as a PNG. Raises ImageError."""
    classifier = decoded.classifier
    picture = captioned_overlay(
        decoded.image.grey(), heat.levels, answer, heat.of_class, classifier.spec, version=classifier.number
    )
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def report_of(decoded: DecodedImage, answer: Answer) -> bytes:
    """Return the Structured Report of a DICOM image. Raises ImageError where its header lacks what links it."""
    from cxr.inference.dicom_objects import Author  # highdicom, which they import, takes a second
    from cxr.inference.dicom_sr import structured_report

    author = Author.of(decoded.classifier.number, decoded.classifier.spec)
    now = datetime.now().astimezone()
    return structured_report(decoded.image.data, answer, author=author, name=NAME, made_at=now)


def example_png(number: int) -> bytes:
    """Return a synthetic chest X-ray as PNG, `number` from 0 to EXAMPLES - 1: the classes in turn, one upside down."""
    from cxr.dataset.synthetic_image import KERMANY_LOOK, draw_anatomy, draw_finding, draw_image

    rng = np.random.default_rng(number + 1)
    label: Label = ("normal", "viral", "bacterial", "normal")[number]
    image = draw_image(draw_anatomy(rng), draw_finding(label, rng), KERMANY_LOOK, rng)
    shown = np.rot90(image, 2) if number == EXAMPLES - 1 else image
    return bytes(cv2.imencode(".png", np.ascontiguousarray(shown))[1].tobytes())
