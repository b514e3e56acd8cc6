"""Decodes untrusted bytes to the model's input, in a few processes that can be killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ImageError
from cxr.inference.classifier import Classifier
from cxr.webapp.decode_process import DecodeProcess, TooSlowError
from cxr.webapp.decode_worker import Made
from cxr.webapp.fair_turns import FairTurns
from cxr.webapp.limits import Limits, RejectedError
from cxr.webapp.renditions import model_input

_TOO_LARGE = "larger than the pixel limit"


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image and the classifier it was prepared for.

    data        of the file
    format      of the file; see cxr.imaging.decode.FORMATS
    sha256      of the file
    pixels      (H, W), the model's input
    classifier  that prepared it, and that will answer it
    """

    data: bytes
    format: str
    sha256: str
    pixels: NDArray[np.uint8]
    classifier: Classifier


class DecodePool:
    """The decoding processes, each with a thread that waits for it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.turns = FairTurns(limits.decode_workers)
        self._threads = ThreadPoolExecutor(limits.decode_workers, thread_name_prefix="decode")
        self._processes = [DecodeProcess() for _ in range(limits.decode_workers)]
        self._idle: SimpleQueue[DecodeProcess] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def start(self) -> None:
        """Start the processes now, so that the first image need not wait for them."""
        for process in self._processes:
            process.start()

    async def decode(self, data: bytes, classifier: Classifier) -> DecodedImage:
        """Decode an image for `classifier`.

        Raises:
            RejectedError: the bytes are not a readable image, or decoding takes too long.
        """
        made = await self.run(model_input, data, classifier)
        pixels = np.frombuffer(made.content, np.uint8).reshape(made.described["shape"])
        return DecodedImage(data, made.described["format"], made.described["sha256"], pixels, classifier)

    async def run(self, function: Callable[..., Made], data: bytes, classifier: Classifier, *given: Any) -> Made:
        """Return what a function makes of an image, in one of the processes.

        Args:
            function: takes the image's bytes, `classifier` without its network, and `given`.
            data: the bytes.
            classifier: whose preprocessing and limits apply.
            given: further arguments.

        Raises:
            RejectedError: it raises ImageError, crashes or takes too long, or no process is free in time.
        """
        try:
            async with asyncio.timeout(self.limits.queue_timeout_s):
                await self.turns.take()
        except TimeoutError:
            raise RejectedError(
                429, "busy", "the service is busy with other images; send it again", retry_seconds=5
            ) from None
        try:
            return await asyncio.wrap_future(self._submit(function, data, classifier, *given))
        except ImageError as error:
            raise RejectedError(413 if error.reason == _TOO_LARGE else 422, error.reason, str(error)) from None
        except TooSlowError:
            raise RejectedError(422, "too slow", "decoding took too long; export the image uncompressed") from None

    def _submit(self, function: Callable[..., Made], data: bytes, classifier: Classifier, *given: Any) -> Future[Made]:
        """Start a function; its turn ends when it does, which may be after its client has left."""
        loop = asyncio.get_running_loop()

        def pass_on(_done: Future[Made]) -> None:
            with suppress(RuntimeError):  # the service has ended
                loop.call_soon_threadsafe(self.turns.give_back)

        future = self._threads.submit(self._call, function, data, classifier, *given)
        future.add_done_callback(pass_on)
        return future

    def _call(self, function: Callable[..., Made], data: bytes, classifier: Classifier, *given: Any) -> Made:
        process = self._idle.get()
        try:
            return process.call(
                function,
                data,
                classifier.without_network(),
                *given,
                max_pixels=classifier.spec.preprocessing.max_pixels,
                seconds=self.limits.decode_timeout_s,
            )
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Accept no further image, and end the processes."""
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.kill()
