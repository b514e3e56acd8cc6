"""Decodes the images of strangers in a few processes that can be killed, with limits of time and memory.

The web app, the PACS worker, `predict`, `score` and `external` decode here: no service and no nightly run may hang,
crash or run out of memory by one image. What the processes run is cxr/inference/decoding/worker.py.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cxr
from cxr.common.errors import ImageError, MemoryLimitError
from cxr.imaging.unattended import crashes, too_slow
from cxr.inference.classifier import Classifier
from cxr.inference.decoding.worker import READY, Call, Made
from cxr.inference.pipeline import ModelInput, check_size, model_input

_PROGRAM = "from cxr.inference.decoding.worker import main; main"

_TRIES = 2
"""Of an image whose process is killed from outside: the memory that ran out may have been wanted by another program."""

_ENDS_SECONDS = 5.0
"""In which a process whose socket has closed ends; one whose decoder was taken over may not."""

log = logging.getLogger("cxr")


class _KilledError(Exception):
    """The process was killed from outside, as the system does where memory runs out."""


class DecodeProcess:
    """A process that is started when it is needed, and again after it was killed. Of one thread at a time.

    Args:
        module: with the functions that it will be asked to call.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._is_ready = False

    def start(self) -> Connection:
        """Start the process unless it runs, and return the socket to it."""
        if self._running is not None:
            process, connection = self._running
            if process.poll() is None:
                return connection
            self.kill()  # it ended while it was idle, so no image is to blame; its socket is still to be closed
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"{_PROGRAM}({theirs.fileno()}, {self._module!r})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={"PYTHONPATH": str(Path(cxr.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # it is killed with its own child, which decodes a DICOM frame
            )
        self._running = process, ours
        return ours

    def call(self, function: Callable[..., Made], *given: Any, name: str, max_pixels: int, seconds: float) -> Made:
        """Return what `function` makes of `given` in the process.

        Args:
            function: to call.
            given: its arguments.
            name: of the image in messages.
            max_pixels: that an image may have; more need more memory.
            seconds: that it may take.

        Raises:
            ImageError: the function raises it; a DecoderError where the process crashes or takes longer than `seconds`.
            MemoryLimitError: the process does not start, or is killed from outside, and so is a second one.
            RuntimeError: the function raises anything else.
        """
        call = Call(function, given, max_pixels)
        for _ in range(_TRIES):
            try:
                return self._answer(call, name, seconds)
            except _KilledError:
                log.warning("a process that decodes %s was killed, probably for lack of memory", name)
        raise MemoryLimitError(
            f"each process that decodes {name} is killed, probably for lack of memory; make sure that memory is left "
            "(end other programs, or allow more memory), then run the same command again"
        )

    def _answer(self, call: Call, name: str, seconds: float) -> Made:
        connection = self.start()
        self._wait_until_ready(connection)
        try:
            connection.send(call)
            if not connection.poll(seconds):
                raise too_slow(name, seconds)
            head, _, content = connection.recv_bytes().partition(b"\n")
        except (EOFError, OSError):
            error = _KilledError() if self._was_killed_from_outside() else crashes(name)
            self._restart()
            raise error from None
        except BaseException:  # a later image must not get the answer to this one
            self._restart()
            raise
        return _made(json.loads(head), content)

    def _wait_until_ready(self, connection: Connection) -> None:
        if self._is_ready:
            return
        try:
            self._is_ready = connection.recv_bytes() == READY
        except (EOFError, OSError):  # no image was sent yet, so none is to blame
            self.kill()
            raise MemoryLimitError(
                "a process that decodes images does not start; make sure that memory is left and that the installation "
                "is whole, then run the same command again"
            ) from None

    def _was_killed_from_outside(self) -> bool:
        """Say whether the process, whose socket has closed, was killed, and not by `kill`."""
        if self._running is None:
            return False
        process, _ = self._running
        try:
            return process.wait(_ENDS_SECONDS) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def _restart(self) -> None:
        self.kill()
        self.start()

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self._running is None:
            return
        process, connection = self._running
        self._running, self._is_ready = None, False
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        connection.close()


def _made(head: dict[str, Any], content: bytes) -> Made:
    if "reason" in head:
        raise ImageError(str(head["message"]), reason=str(head["reason"]))
    if "failed" in head:
        raise RuntimeError(f"decoding failed in {head['failed']}")
    return Made(content, head["described"])


class Decoders:
    """Processes that decode; a context that ends them. Safe in as many threads as there are processes.

    Args:
        count: of the processes.
        seconds: that an image may take.
        module: whose functions are called, beside those of this module.
    """

    def __init__(self, count: int, *, seconds: float, module: str = __name__) -> None:
        self.count, self._seconds = count, seconds
        self._processes = [DecodeProcess(module) for _ in range(count)]
        self._idle: SimpleQueue[DecodeProcess] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def start(self) -> None:
        """Start the processes now, so that the first image need not wait for them."""
        for process in self._processes:
            process.start()

    def call(self, function: Callable[..., Made], *given: Any, name: str, max_pixels: int) -> Made:
        """Return what a function makes of `given`, in one of the processes.

        Args:
            function: to call.
            given: its arguments, which are pickled.
            name: of the image in messages.
            max_pixels: that an image may have; more need more memory.

        Raises:
            ImageError: the function raises it, crashes, takes too long or asks for too much memory.
        """
        process = self._idle.get()
        try:
            return process.call(function, *given, name=name, max_pixels=max_pixels, seconds=self._seconds)
        finally:
            self._idle.put(process)

    def rendered(
        self, function: Callable[..., Made], data: bytes, classifier: Classifier, *given: Any, name: str
    ) -> Made:
        """Return what a function makes of an image for `classifier`.

        Args:
            function: takes the image's bytes, `classifier` without its network, and `given`.
            data: the bytes.
            classifier: whose preprocessing and limits apply.
            given: further arguments.
            name: of the image in messages.

        Raises:
            ImageError: see `call`.
        """
        max_pixels = classifier.spec.preprocessing.max_pixels
        return self.call(function, data, classifier.without_network(), *given, name=name, max_pixels=max_pixels)

    def model_input(self, data: bytes, classifier: Classifier, *, name: str) -> ModelInput:
        """Return an image as the model takes it, equal to `cxr.inference.pipeline.model_input`. Raises ImageError."""
        made = self.rendered(prepared_pixels, data, classifier, name, name=name)
        pixels = np.frombuffer(made.content, np.uint8).reshape(made.described["shape"])
        return ModelInput(pixels, made.described["format"], made.described["sha256"])

    def grey(self, data: bytes, classifier: Classifier, *, name: str) -> NDArray[np.uint8]:
        """Return an image (H, W) at its own size. Raises ImageError."""
        made = self.rendered(original_grey, data, classifier, name, name=name)
        return np.frombuffer(made.content, np.uint8).reshape(made.described["shape"])

    def tags(self, dicom: bytes, keywords: Sequence[str], *, name: str) -> list[str]:
        """Return the first value of each tag of a DICOM file as text, empty if it is missing. Raises ImageError."""
        values: list[str] = self.call(tag_values, dicom, keywords, name, name=name, max_pixels=0).described["values"]
        return values

    def __enter__(self) -> Decoders:
        """Return this; the processes start when they are needed, or with `start`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        self.close()

    def close(self) -> None:
        """End the processes at once, whatever they do."""
        for process in self._processes:
            process.kill()


def prepared_pixels(data: bytes, classifier: Classifier, name: str) -> Made:
    """Return what `Decoders.model_input` does, in this process."""
    made = model_input(data, classifier, name=name)
    return Made(made.pixels.tobytes(), {"shape": made.pixels.shape, "format": made.format, "sha256": made.sha256})


def original_grey(data: bytes, classifier: Classifier, name: str) -> Made:
    """Return what `Decoders.grey` does, in this process."""
    check_size(len(data), classifier, name=name)
    grey = classifier.open(data, name=name).grey()
    return Made(grey.tobytes(), {"shape": grey.shape})


def tag_values(dicom: bytes, keywords: Sequence[str], name: str) -> Made:
    """Return what `Decoders.tags` does, in this process."""
    from cxr.dicom.tags import image_errors, read_dicom, text  # pydicom takes 0.4 s to import, few images need it

    with image_errors(name):
        read = read_dicom(dicom, keywords)
        return Made(b"", {"values": [text(read, keyword) for keyword in keywords]})
