"""Bytes of a stranger to an image as the model takes it, in a few threads.

OpenCV decodes beside other threads; compressed frames of DICOM images are decoded by processes of their own.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ImageError
from cxr.webapp.limits import Limits, RefusedError
from cxr.webapp.overlays import image_layer

if TYPE_CHECKING:
    from cxr.inference.classifier import Classifier

_NAME = "the image"  # what messages call it: its real name is never known here
_TOO_LARGE = "larger than the pixel limit"

log = logging.getLogger("cxr.webapp")


@dataclass(frozen=True)
class Prepared:
    """An image as its `classifier` takes it, (H, W); `layer` a picture of it for people, where that was asked for."""

    image: NDArray[np.uint8]
    classifier: Classifier
    layer: str | None
    size: tuple[int, int]
    """Height and width of the picture, or of `image` without one."""


class DecodePool:
    """The threads that decode."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = ThreadPoolExecutor(limits.read_workers, thread_name_prefix="image")

    async def read(self, data: bytes, classifier: Classifier, *, with_layer: bool) -> Prepared:
        """Decode an image.

        Raises:
            RefusedError: it is no image that can be read, or decoding takes too long.
        """
        future = self.pool.submit(_read, data, classifier, with_layer=with_layer)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.read_seconds)
        except ImageError as error:
            raise RefusedError(413 if error.reason == _TOO_LARGE else 422, error.reason, str(error)) from None
        except TimeoutError:
            if future.cancelled():  # it never began: the images before it took the time
                raise RefusedError(429, "busy", "images before it take long; send it again", retry_seconds=5) from None
            raise RefusedError(422, "too slow", "decoding took too long; export the image uncompressed") from None

    def close(self) -> None:
        """Begin no further image."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def _read(data: bytes, classifier: Classifier, *, with_layer: bool) -> Prepared:
    try:
        image = classifier.read(data, name=_NAME)
        if not with_layer:
            return Prepared(image, classifier, None, (image.shape[0], image.shape[1]))
        layer, size = image_layer(data, name=_NAME, max_pixels=classifier.spec.preprocessing.max_pixels)
        return Prepared(image, classifier, layer, size)
    except ImageError:
        raise
    except Exception as error:  # decoders of strangers' files fail in ways of their own, and their words may hold tags
        log.warning("page: an image could not be read, for a reader failed with %s", type(error).__name__)
        raise ImageError(f"{_NAME} cannot be read: its contents are damaged", reason="not an image") from None
