"""Decodes untrusted bytes to the model's input, in a few threads.

OpenCV releases the interpreter's lock while it decodes. Compressed frames of DICOM files are decoded in separate
processes.
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
from cxr.webapp.limits import Limits, RejectedError
from cxr.webapp.overlays import render_image

if TYPE_CHECKING:
    from cxr.inference.classifier import Classifier

_NAME = "the file"  # its name in messages: the file name never reaches the service
_TOO_LARGE = "larger than the pixel limit"

log = logging.getLogger("cxr.webapp")


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image and the classifier it was prepared for.

    pixels      (H, W), the model's input
    classifier  that prepared it, and that will answer it
    picture     data URL of the image for display; None: not requested
    size        height and width of the picture, or of `pixels` without one
    """

    pixels: NDArray[np.uint8]
    classifier: Classifier
    picture: str | None
    size: tuple[int, int]


class DecodePool:
    """The decoding threads."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = ThreadPoolExecutor(limits.decode_workers, thread_name_prefix="decode")

    async def decode(self, data: bytes, classifier: Classifier, *, with_picture: bool) -> DecodedImage:
        """Decode an image for `classifier`.

        Raises:
            RejectedError: the bytes are not a readable image, or decoding takes too long.
        """
        future = self.pool.submit(_decode, data, classifier, with_picture=with_picture)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.decode_timeout_s)
        except ImageError as error:
            raise RejectedError(413 if error.reason == _TOO_LARGE else 422, error.reason, str(error)) from None
        except TimeoutError:
            if future.cancelled():  # it never started: earlier images used up the time
                raise RejectedError(
                    429, "busy", "the service is busy with other images; send it again", retry_seconds=5
                ) from None
            raise RejectedError(422, "too slow", "decoding took too long; export the image uncompressed") from None

    def close(self) -> None:
        """Accept no further image."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def _decode(data: bytes, classifier: Classifier, *, with_picture: bool) -> DecodedImage:
    try:
        pixels = classifier.read(data, name=_NAME)
        if not with_picture:
            return DecodedImage(pixels, classifier, None, (pixels.shape[0], pixels.shape[1]))
        picture, size = render_image(data, name=_NAME, max_pixels=classifier.spec.preprocessing.max_pixels)
        return DecodedImage(pixels, classifier, picture, size)
    except ImageError:
        raise
    except Exception as error:  # decoders fail in ways of their own, and their messages may quote a tag
        log.warning("app: an image could not be decoded: %s", type(error).__name__)
        raise ImageError(f"{_NAME} cannot be read: its contents are damaged", reason="not an image") from None
