"""Decodes untrusted bytes to the model's input, in a few processes that can be killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from cxr.common.errors import ImageError
from cxr.inference.classifier import Classifier
from cxr.inference.decoding.decoders import Decoders
from cxr.inference.decoding.worker import Made
from cxr.inference.pipeline import ModelInput
from cxr.webapp.fair_turns import FairTurns
from cxr.webapp.limits import Limits, RejectedError
from cxr.webapp.renditions import NAME

_TOO_LARGE = "larger than the pixel limit"

Result = TypeVar("Result")


@dataclass(frozen=True)
class DecodedImage(ModelInput):
    """A decoded image and the classifier it was prepared for.

    data        of the file
    classifier  that prepared it, and that will answer it
    """

    data: bytes
    classifier: Classifier


class DecodePool:
    """The decoding processes, each with a thread that waits for it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.turns = FairTurns(limits.decode_workers)
        self._threads = ThreadPoolExecutor(limits.decode_workers, thread_name_prefix="decode")
        self._decoders = Decoders(
            limits.decode_workers, seconds=limits.decode_timeout_s, module="cxr.webapp.renditions"
        )

    def start(self) -> None:
        """Start the processes now, so that the first image need not wait for them."""
        self._decoders.start()

    async def decode(self, data: bytes, classifier: Classifier) -> DecodedImage:
        """Decode an image for `classifier`.

        Raises:
            RejectedError: the bytes are not a readable image, or decoding takes too long.
        """
        made = await self._in_turn(partial(self._decoders.model_input, data, classifier, name=NAME))
        return DecodedImage(**vars(made), data=data, classifier=classifier)

    async def run(self, function: Callable[..., Made], data: bytes, classifier: Classifier, *given: Any) -> Made:
        """Return what a function of cxr/webapp/renditions.py makes of an image, in one of the processes.

        Args:
            function: takes the image's bytes, `classifier` without its network, and `given`.
            data: the bytes.
            classifier: whose preprocessing and limits apply.
            given: further arguments.

        Raises:
            RejectedError: it raises ImageError, crashes or takes too long, or no process is free in time.
        """
        return await self._in_turn(partial(self._decoders.rendered, function, data, classifier, *given, name=NAME))

    async def _in_turn(self, call: Callable[[], Result]) -> Result:
        try:
            async with asyncio.timeout(self.limits.queue_timeout_s):
                await self.turns.take()
        except TimeoutError:
            raise RejectedError(
                429, "busy", "the service is busy with other images; send it again", retry_seconds=5
            ) from None
        try:
            return await asyncio.wrap_future(self._submit(call))
        except ImageError as error:
            raise RejectedError(413 if error.reason == _TOO_LARGE else 422, error.reason, str(error)) from None

    def _submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Start a call; its turn ends when it does, which may be after its client has left."""
        loop = asyncio.get_running_loop()

        def pass_on(_done: Future[Result]) -> None:
            with suppress(RuntimeError):  # the service has ended
                loop.call_soon_threadsafe(self.turns.give_back)

        future = self._threads.submit(call)
        future.add_done_callback(pass_on)
        return future

    def close(self) -> None:
        """Accept no further image, and end the processes."""
        self._threads.shutdown(cancel_futures=True)
        self._decoders.close()
