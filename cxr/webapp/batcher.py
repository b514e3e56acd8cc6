"""One thread owns the model and answers the queued images in batches.

Each image carries the classifier that prepared it and is answered by that one. A new champion therefore takes over
between two batches, images already decoded are answered by the old version, and no request is dropped.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cxr.inference.answer import Answer
from cxr.inference.classifier import Classifier
from cxr.webapp.decode_pool import DecodedImage
from cxr.webapp.limits import Limits, RejectedError, not_ready
from cxr.webapp.metrics import Metrics


@dataclass(frozen=True)
class HeatMap:
    """Where the model looked for class `of_class`: `levels` (H, W), 0 to 1, in the geometry of its input."""

    of_class: str
    levels: NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """The model's answer for one image, with its heat map if one was requested."""

    answer: Answer
    heat: HeatMap | None


@dataclass(frozen=True, eq=False)
class _Job:
    """An image in the queue; `heat_of`: None for no heat map, "" for that of the predicted class."""

    image: DecodedImage
    heat_of: str | None
    result: Future[Result] = field(default_factory=Future)


class Batcher:
    """The model's thread, its queue, and the classifier for new images."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self.current: Classifier | None = None
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what is queued, then end the thread."""
        self._queue.put(None)
        self._thread.join(self.limits.inference_timeout_s)

    def use(self, classifier: Classifier) -> None:
        """Prepare and answer new images with `classifier`."""
        self.current = classifier
        self.metrics.set_model(version=classifier.number, engine=classifier.engine)

    def classifier(self) -> Classifier:
        """Return the classifier for new images. Raises RejectedError before the first one is loaded."""
        if self.current is None:
            raise not_ready()
        return self.current

    async def answer(self, image: DecodedImage, *, heat_of: str | None) -> Result:
        """Return the model's answer for an image.

        Args:
            image: decoded for its classifier.
            heat_of: class of the heat map, "" for the predicted class, None for no heat map.

        Raises:
            RejectedError: the answer takes too long, or images whose requests have ended for that reason still wait.
        """
        if self._queue.qsize() >= self.limits.max_queued_images:
            raise RejectedError(
                429, "busy", "the model is behind with other images; send this one again", retry_seconds=5
            )
        job = _Job(image, heat_of)
        self._queue.put(job)
        self.metrics.images_queued.set(self._queue.qsize())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job.result), self.limits.inference_timeout_s)
        except TimeoutError:
            raise RejectedError(
                503, "too slow", "the model did not answer in time; send it again", retry_seconds=5
            ) from None

    def _run(self) -> None:
        while True:
            batch, is_last = self._next_batch()
            for classifier in {id(job.image.classifier): job.image.classifier for job in batch}.values():
                self._answer(classifier, [job for job in batch if job.image.classifier is classifier])
            del batch  # while the queue is empty no image and no old classifier stays in memory
            if is_last:
                return

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """Wait for a job and add what else is queued; the second value says whether `stop` was called."""
        jobs = [self._queue.get()]
        while len(jobs) < self.limits.max_batch_images and jobs[-1] is not None:
            try:
                jobs.append(self._queue.get_nowait())
            except queue.Empty:
                break
        self.metrics.images_queued.set(self._queue.qsize())
        batch = [job for job in jobs if job is not None and job.result.set_running_or_notify_cancel()]
        return batch, jobs[-1] is None

    def _answer(self, classifier: Classifier, batch: list[_Job]) -> None:
        try:
            answers = dict(zip(batch, classifier.answer(np.stack([job.image.pixels for job in batch])), strict=True))
        except Exception as error:  # of any kind: the waiting requests must receive it
            _fail(batch, error)
            return
        try:
            heat_maps = _heat_maps(classifier, answers)
        except Exception as error:  # of any kind: those that asked for no heat map have their answer
            heat_maps = {}
            _fail([job for job in batch if job.heat_of is not None], error)
        self.metrics.batch_images.observe(len(batch))
        for job, answer in answers.items():
            if not job.result.done():
                job.result.set_result(Result(answer, heat_maps.get(job)))


def _fail(jobs: list[_Job], error: Exception) -> None:
    for job in jobs:
        job.result.set_exception(error)


def _heat_maps(classifier: Classifier, answers: dict[_Job, Answer]) -> dict[_Job, HeatMap]:
    classes = {job: job.heat_of or answer.predicted_class for job, answer in answers.items() if job.heat_of is not None}
    if not classes:
        return {}
    maps = classifier.heat(np.stack([job.image.pixels for job in classes]), list(classes.values()))
    return {job: HeatMap(name, levels) for (job, name), levels in zip(classes.items(), maps, strict=True)}
