"""What decoding processes run in tests: decoders that crash or hang on images that say so, and looks at the process."""

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cxr.inference.classifier import Classifier
from cxr.inference.decoding import decoders
from cxr.inference.decoding.worker import Made

CRASHES, HANGS, CRASHES_WHEN_SHOWN = b"crashes", b"hangs", b"crashes when shown"


def planted_pixels(data: bytes, classifier: Classifier, name: str) -> Made:
    """Stand in for `cxr.inference.decoding.decoders.prepared_pixels`, which reads the other images."""
    if data.endswith(CRASHES):
        os.abort()
    if data.endswith(HANGS):
        time.sleep(3600)
    return decoders.prepared_pixels(data, classifier, name)


def planted_grey(data: bytes, classifier: Classifier, name: str) -> Made:
    """Stand in for `cxr.inference.decoding.decoders.original_grey`."""
    if data.endswith(CRASHES_WHEN_SHOWN):
        os.abort()
    return decoders.original_grey(data, classifier, name)


def process_number() -> Made:
    """Return the number of the process that decodes."""
    return Made(b"", {"process": os.getpid()})


def limits_of_process() -> Made:
    """Return the soft and hard limits of the process that decodes: of its memory, and of a core file."""
    return Made(b"", {name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_AS", "RLIMIT_CORE")})


def killed_once(mark: Path) -> Made:
    """Kill the process, as the system does where memory runs out, unless the file `mark` is there; make that first."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Made(b"decoded")


def planted(decode: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does the same for a decoder of a stage, `decode`, which takes the bytes first.

    One that hangs lets no other thread of its process go on, as native code may.
    """

    def decode_unless_planted(data: bytes, *given: Any, **named: Any) -> Any:
        if data.endswith(CRASHES):
            os.abort()
        if data.endswith(HANGS):
            ctypes.PyDLL(None).pause()
        return decode(data, *given, **named)

    return decode_unless_planted
