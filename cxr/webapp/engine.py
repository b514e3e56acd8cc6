"""One thread that owns the model: it takes what waits, a batch at a time, and answers.

An image carries the classifier that prepared it and is answered by that one. So a new champion takes over between two
batches, images that are on their way are answered by the one they were made for, and no request is dropped.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from cxr.inference.answer import Answer
from cxr.inference.classifier import Classifier
from cxr.webapp.decode_pool import Prepared
from cxr.webapp.limits import Limits, RefusedError
from cxr.webapp.metrics import Metrics
from cxr.webapp.overlays import heat_layer


@dataclass(frozen=True)
class Heat:
    """Where the model looked for a class: `image` is a picture to lay over the image, a data URL."""

    of_class: str
    image: str


@dataclass(frozen=True)
class Told:
    """What is told of one image."""

    answer: Answer
    heat: Heat | None


@dataclass(frozen=True, eq=False)
class _Asked:
    """An image in the queue; `heat_of`: None for no heat, "" for that of the predicted class."""

    prepared: Prepared
    heat_of: str | None
    told: Future[Told] = field(default_factory=Future)


class Engine:
    """The model's thread, its queue, and the classifier that new images are prepared for."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self.current: Classifier | None = None
        # Never full: every image in it belongs to a request that was let in.
        self._waiting: queue.Queue[_Asked | None] = queue.Queue(limits.waiting + 1)
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, then end."""
        self._waiting.put(None)
        self._thread.join(self.limits.answer_seconds)

    def use(self, classifier: Classifier) -> None:
        """Prepare and answer new images with `classifier`."""
        self.current = classifier
        self.metrics.model_is(version=classifier.number, engine=classifier.engine)

    def classifier(self) -> Classifier:
        """Return the classifier that new images are prepared for. Raises RefusedError while there is none."""
        if self.current is None:
            raise RefusedError(
                503, "not ready", "the model is being loaded; try again in a few seconds", retry_seconds=2
            )
        return self.current

    async def answer(self, prepared: Prepared, *, heat_of: str | None) -> Told:
        """Return what the model says of an image; with its heat where `heat_of` is a class, or "" for the predicted one.

        Raises:
            RefusedError: it takes too long.
        """
        asked = _Asked(prepared, heat_of)
        self._waiting.put_nowait(asked)
        self.metrics.waiting.set(self._waiting.qsize())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(asked.told), self.limits.answer_seconds)
        except TimeoutError:
            raise RefusedError(
                503, "too slow", "the model did not answer in time; send it again", retry_seconds=5
            ) from None

    def _work(self) -> None:
        while True:
            batch, last = self._next_batch()
            for classifier in {id(asked.prepared.classifier): asked.prepared.classifier for asked in batch}.values():
                self._answer(classifier, [asked for asked in batch if asked.prepared.classifier is classifier])
            del batch  # while the queue is empty no image and no old classifier stays in memory
            if last:
                return

    def _next_batch(self) -> tuple[list[_Asked], bool]:
        """Wait for an image, take what else waits; also say whether `stop` was called."""
        taken = [self._waiting.get()]
        while len(taken) < self.limits.batch_images and taken[-1] is not None:
            try:
                taken.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        self.metrics.waiting.set(self._waiting.qsize())
        wanted = [asked for asked in taken if asked is not None and asked.told.set_running_or_notify_cancel()]
        return wanted, taken[-1] is None

    def _answer(self, classifier: Classifier, batch: list[_Asked]) -> None:
        try:
            answers = classifier.answer(np.stack([asked.prepared.image for asked in batch]))
            heats = _heats(classifier, batch, answers)
        except Exception as error:  # whatever a network fails with, those who wait must hear of it
            for asked in batch:
                asked.told.set_exception(error)
            return
        self.metrics.batch_images.observe(len(batch))
        for asked, answer in zip(batch, answers, strict=True):
            asked.told.set_result(Told(answer, heats.get(asked)))


def _heats(classifier: Classifier, batch: list[_Asked], answers: list[Answer]) -> dict[_Asked, Heat]:
    wanted = {
        asked: asked.heat_of or answer.predicted_class
        for asked, answer in zip(batch, answers, strict=True)
        if asked.heat_of is not None
    }
    if not wanted:
        return {}
    maps = classifier.heat(np.stack([asked.prepared.image for asked in wanted]), list(wanted.values()))
    preprocessing = classifier.spec.preprocessing
    return {
        asked: Heat(name, heat_layer(heat, asked.prepared.size, preprocessing))
        for (asked, name), heat in zip(wanted.items(), maps, strict=True)
    }
