"""Decodes untrusted bytes to the model's input, in a few threads.

OpenCV releases the interpreter's lock while it decodes. Compressed frames of DICOM files are decoded in separate
processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ImageError
from cxr.imaging.decode import EncodedImage
from cxr.inference.classifier import Classifier
from cxr.inference.pipeline import check_size, prepare
from cxr.webapp.fair_turns import FairTurns
from cxr.webapp.limits import Limits, RejectedError

NAME = "the file"
"""The image's name in messages: the file name never reaches the service."""

Given = ParamSpec("Given")
Made = TypeVar("Made")

_TOO_LARGE = "larger than the pixel limit"


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image and the classifier it was prepared for.

    image       the opened file
    pixels      (H, W), the model's input
    classifier  that prepared it, and that will answer it
    sha256      of the file
    """

    image: EncodedImage
    pixels: NDArray[np.uint8]
    classifier: Classifier
    sha256: str


class DecodePool:
    """The decoding threads."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = ThreadPoolExecutor(limits.decode_workers, thread_name_prefix="decode")
        self.turns = FairTurns(limits.decode_workers)

    async def decode(self, data: bytes, classifier: Classifier) -> DecodedImage:
        """Decode an image for `classifier`.

        Raises:
            RejectedError: the bytes are not a readable image, or decoding takes too long.
        """
        return await self.run(_decode, data, classifier)

    async def run(self, function: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Made:
        """Return what a function makes of an image, in one of the threads.

        Raises:
            RejectedError: it raises ImageError, or takes too long.
        """
        future: Future[Made] | None = None
        try:
            async with asyncio.timeout(self.limits.decode_timeout_s):
                await self.turns.take()
                future = self._submit(function, *given, **named)
                return await asyncio.wrap_future(future)
        except ImageError as error:
            raise RejectedError(413 if error.reason == _TOO_LARGE else 422, error.reason, str(error)) from None
        except TimeoutError:
            if future is None:  # it never started: earlier images used up the time
                raise RejectedError(
                    429, "busy", "the service is busy with other images; send it again", retry_seconds=5
                ) from None
            raise RejectedError(422, "too slow", "decoding took too long; export the image uncompressed") from None

    def _submit(self, function: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Future[Made]:
        """Start a function; its turn ends when it does, which may be after its client was told that it is too slow."""
        loop = asyncio.get_running_loop()

        def pass_on(_done: Future[Made]) -> None:
            with suppress(RuntimeError):  # the service has ended
                loop.call_soon_threadsafe(self.turns.give_back)

        future = self.pool.submit(function, *given, **named)
        future.add_done_callback(pass_on)
        return future

    def close(self) -> None:
        """Accept no further image."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def open_checked(data: bytes, classifier: Classifier) -> EncodedImage:
    """Open an image within the limits of `classifier`, without decoding it. Raises ImageError."""
    check_size(len(data), classifier, name=NAME)
    return classifier.open(data, name=NAME)


def _decode(data: bytes, classifier: Classifier) -> DecodedImage:
    prepared = prepare(data, classifier, key=None, name=NAME, keep=lambda opened: opened)
    if prepared.pixels is None or prepared.kept is None:
        raise prepared.error or ImageError(f"{NAME} cannot be read", reason="not an image")
    return DecodedImage(prepared.kept, prepared.pixels, classifier, prepared.sha256 or "")
