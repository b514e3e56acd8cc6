"""Decodes untrusted bytes to the model's input, in a few threads.

OpenCV releases the interpreter's lock while it decodes. Compressed frames of DICOM files are decoded in separate
processes.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ImageError
from cxr.inference.classifier import Classifier
from cxr.inference.pipeline import prepare
from cxr.webapp.limits import Limits, RejectedError
from cxr.webapp.overlays import render_image

_NAME = "the file"  # its name in messages: the file name never reaches the service
_TOO_LARGE = "larger than the pixel limit"


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
    keep = render_image if with_picture else None
    prepared = prepare(data, classifier, key=None, name=_NAME, keep=keep)
    if prepared.pixels is None:
        raise prepared.error or ImageError(f"{_NAME} cannot be read", reason="not an image")
    if prepared.kept is None:
        return DecodedImage(prepared.pixels, classifier, None, (prepared.pixels.shape[0], prepared.pixels.shape[1]))
    return DecodedImage(prepared.pixels, classifier, *prepared.kept)
