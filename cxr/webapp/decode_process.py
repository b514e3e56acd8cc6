"""One process that decodes images, one after another, and is killed when an image takes too long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cxr
from cxr.common.errors import ImageError
from cxr.webapp.decode_worker import READY, Call, Made

_PROGRAM = "from cxr.webapp.decode_worker import main; main"


class TooSlowError(Exception):
    """An image took longer than it may; its process has been killed."""


class DecodeProcess:
    """A process that is started when it is needed, and again after it was killed. Of one thread at a time."""

    def __init__(self) -> None:
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._is_ready = False

    def start(self) -> Connection:
        """Start the process unless it runs, and return the socket to it."""
        if self._running is not None:
            return self._running[1]
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", f"{_PROGRAM}({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={"PYTHONPATH": str(Path(cxr.__file__).parents[1])},
                start_new_session=True,  # it is killed with its own child, which decodes a DICOM frame
            )
        self._running = process, ours
        return ours

    def call(self, function: Callable[..., Made], *given: Any, max_pixels: int, seconds: float) -> Made:
        """Return what `function` makes of `given` in the process.

        Raises:
            ImageError: the function raises it, or the process crashes.
            TooSlowError: it takes longer than `seconds`.
            RuntimeError: the function raises anything else.
        """
        connection = self.start()
        try:
            if not self._is_ready:
                self._is_ready = connection.recv_bytes() == READY
            connection.send(Call(function, given, max_pixels))
            if not connection.poll(seconds):
                raise TooSlowError
            head, _, content = connection.recv_bytes().partition(b"\n")
        except (EOFError, OSError):
            self._restart()
            raise ImageError("the file crashes its decoder; export it again", reason="not an image") from None
        except BaseException:  # a later image must not get the answer to this one
            self._restart()
            raise
        return _made(json.loads(head), content)

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
