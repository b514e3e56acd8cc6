"""What is made of an image: pictures for the page, pixels for its viewer, overlay and report.

The functions that take an image's bytes run in a process of their own; see cxr/inference/decoding/decoders.py. What
they raise is an ImageError.
"""

from __future__ import annotations

import base64
from datetime import datetime
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.common.classes import Label
from cxr.imaging.decode import EncodedImage
from cxr.imaging.encode import jpeg_data_url
from cxr.imaging.overlay import heat_layer, shrink
from cxr.inference.answer import Answer
from cxr.inference.classifier import Classifier
from cxr.inference.decoding.worker import Made
from cxr.inference.explanation import captioned_overlay
from cxr.inference.pipeline import check_size

NAME = "the file"
"""The image's name in messages: the file name never reaches the service."""

EXAMPLES = 4
IMAGE_SIDE_PX = 720
_HEAT_SIDE_PX = 256  # finer than the cells of any network; the page enlarges it smoothly


def render_image(data: bytes, classifier: Classifier) -> Made:
    """Return the image as a data URL: a JPEG with at most IMAGE_SIDE_PX on its longer side."""
    grey = _open(data, classifier).grey(min_side_px=IMAGE_SIDE_PX)
    return Made(jpeg_data_url(shrink(grey, IMAGE_SIDE_PX)).encode())


def render_heat(data: bytes, classifier: Classifier, heat: NDArray[np.float32], probability: float) -> Made:
    """Return the heat of a class as a data URL: a PNG to lay over the image; see cxr.imaging.overlay.heat_layer.

    Args:
        data: of the file; decoded for its aspect, because the header does not know of a rotation in EXIF.
        classifier: that prepared the image.
        heat: (H, W), 0 to 1, in the geometry of the model's input.
        probability: of the class.
    """
    height, width = _open(data, classifier).grey(min_side_px=1).shape
    scale = _HEAT_SIDE_PX / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    layer = heat_layer(heat, probability, size, classifier.spec.preprocessing)
    encoded = cv2.imencode(".png", cv2.cvtColor(layer, cv2.COLOR_RGBA2BGRA))[1]
    return Made(b"data:image/png;base64," + base64.b64encode(encoded.tobytes()))


def viewer_pixels(data: bytes, classifier: Classifier) -> Made:
    """Return an image at full size and depth for the viewer: little-endian rows, and what it needs to show them."""
    wide = _open(data, classifier).wide()
    height, width = wide.levels.shape
    described = {
        "width": width,
        "height": height,
        "bits": 8 * wide.levels.itemsize,
        "window": wide.window,
        "zero": wide.zero,
        "step": wide.step,
        "unit": wide.unit,
        "presets": wide.presets,
        "view": wide.view,
        "laterality": wide.laterality,
    }
    return Made(wide.levels.astype(wide.levels.dtype.newbyteorder("<")).tobytes(), described)


def overlay_png(data: bytes, classifier: Classifier, answer: Answer, heat: NDArray[np.float32], of_class: str) -> Made:
    """Return the image with the heat (H, W) of a class and its caption, as a PNG."""
    grey = _open(data, classifier).grey()
    picture = captioned_overlay(grey, heat, answer, of_class, classifier.spec, version=classifier.number)
    return Made(bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()))


def report_of(data: bytes, classifier: Classifier, answer: Answer, made_at: datetime) -> Made:
    """Return the Structured Report of a DICOM image, whose header may lack what links it."""
    from cxr.inference.dicom_objects.report import structured_report
    from cxr.inference.dicom_objects.shared import Author  # highdicom, which they import, takes a second

    author = Author.of(classifier.number, classifier.spec)
    return Made(structured_report(data, answer, author=author, name=NAME, made_at=made_at))


@cache
def example_png(number: int) -> bytes:
    """Return a synthetic chest X-ray as PNG, `number` from 0 to EXAMPLES - 1: the classes in turn, one upside down."""
    from cxr.dataset.synthetic_image import KERMANY_LOOK, draw_anatomy, draw_finding, draw_image

    rng = np.random.default_rng(number + 1)
    label: Label = ("normal", "viral", "bacterial", "normal")[number]
    image = draw_image(draw_anatomy(rng), draw_finding(label, rng), KERMANY_LOOK, rng)
    shown = np.rot90(image, 2) if number == EXAMPLES - 1 else image
    return bytes(cv2.imencode(".png", np.ascontiguousarray(shown))[1].tobytes())


def _open(data: bytes, classifier: Classifier) -> EncodedImage:
    check_size(len(data), classifier, name=NAME)
    return classifier.open(data, name=NAME)
