"""The program that decodes images for a service; cxr/inference/decoding/decoders.py runs it as a process.

An image is a stranger's. Its decoder may take seconds, crash, or ask for all memory there is; here that ends one image
and one process. The process has an empty environment, so no secret either.

It reads calls from a socket: a function and its arguments, pickled by the service. It returns a line of JSON and bytes,
never a pickle, which would let a decoder that was taken over run code in the service.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2

from cxr.common.errors import ImageError
from cxr.dicom.cost import COSTLY
from cxr.imaging.unattended import most_memory_bytes

READY = b"ready"
"""The first message: the program is loaded, and the time of an image begins with the image."""


@dataclass(frozen=True)
class Made:
    """What a function makes of an image: `content`, and what `described` says of it, as JSON."""

    content: bytes
    described: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A function to call, and the largest number of pixels that an image may have."""

    function: Callable[..., Made]
    given: tuple[Any, ...]
    max_pixels: int


def main(socket: int, module: str) -> None:
    """Answer calls until the service closes the socket, of which the file descriptor is given.

    The `module` that holds the functions is imported before the first image comes.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold an image
    _quieten_decoders()
    importlib.import_module(module)
    cv2.setNumThreads(1)  # there may be a process for each core, and the stack of each thread counts as memory

    with contextlib.suppress(BrokenPipeError, EOFError):
        _answer_calls(Connection(socket))


def _answer_calls(connection: Connection) -> None:
    program = _address_space_bytes()
    connection.send_bytes(READY)
    while True:
        call: Call = connection.recv()
        _limit_memory(program + most_memory_bytes(call.max_pixels))
        head, content = _answer(call)
        connection.send_bytes(json.dumps(head).encode() + b"\n" + content)


def _answer(call: Call) -> tuple[dict[str, Any], bytes]:
    try:
        made = call.function(*call.given)
    except ImageError as error:
        return {"reason": error.reason, "message": str(error)}, b""
    except MemoryError:
        message = "the file needs more memory than an image of its size; export it uncompressed"
        return {"reason": COSTLY, "message": message}, b""
    except Exception as error:  # its message may quote a patient's tag
        return {"failed": f"{call.function.__name__}: {type(error).__name__}"}, b""
    return {"described": made.described}, made.content


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _limit_memory(limit: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)  # finite after `ulimit -v`; it cannot be raised
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _quieten_decoders() -> None:
    """Keep the service's log for this program: a decoder may write thousands of lines about one image."""
    logging.basicConfig(stream=os.fdopen(os.dup(sys.stderr.fileno()), "w"), format="%(message)s")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
