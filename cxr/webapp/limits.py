"""What the service accepts: the number of requests at once, their bytes, and the time each may take."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from cxr.webapp.fair_turns import CLIENT, client_of

MEGABYTE = 1 << 20
MEDIA_TYPES = (
    "application/octet-stream",
    "application/dicom",
    "image/png",
    "image/jpeg",
    "image/bmp",
    "image/tiff",
)


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    max_upload_bytes         of one image
    max_queued_images        requests accepted at once, those in progress included; as many of feedback
    max_queued_bytes         of all accepted images together
    max_batch_images         that the model classifies together
    max_images_per_minute    that one client may send
    max_feedback_per_minute  that one client may send
    decode_workers           processes that decode images
    upload_timeout_s         for an image to arrive
    queue_timeout_s          for one of these processes to be free
    decode_timeout_s         for an image to be decoded; then its process is killed
    inference_timeout_s      for a decoded image to be classified
    """

    max_upload_bytes: int
    max_queued_images: int
    max_queued_bytes: int
    max_batch_images: int
    max_images_per_minute: int
    max_feedback_per_minute: int
    decode_workers: int
    upload_timeout_s: float
    queue_timeout_s: float
    decode_timeout_s: float
    inference_timeout_s: float


class RejectedError(Exception):
    """A rejected request: the HTTP `status`, a short `reason` for programs, a `message` for people."""

    def __init__(self, status: int, reason: str, message: str, *, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.retry_seconds = status, reason, message, retry_seconds


class Admission:
    """Counts the accepted requests and their bytes, by client; for one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    @contextmanager
    def admit(self, request: Request) -> Iterator[None]:
        """Accept a request until the block ends.

        Raises:
            RejectedError: the announced image is too large, or the service is full.
        """
        size, client = announced_bytes(request, self.limits), client_of(request)
        if not self._has_room(client, size):
            raise RejectedError(
                429, "busy", "the service holds as many requests as it can; send this one again", retry_seconds=1
            )
        self.requests[client] += 1
        self.bytes[client] += size
        token = CLIENT.set(client)
        try:
            yield
        finally:
            CLIENT.reset(token)
            self.requests[client] -= 1
            self.bytes[client] -= size
            if not self.requests[client]:
                del self.requests[client], self.bytes[client]

    def _has_room(self, client: str, size: int) -> bool:
        """Return whether an image fits; the last quarter of the room is for clients that have no image here yet."""
        images, room = self.limits.max_queued_images, self.limits.max_queued_bytes
        if self.requests[client]:
            images, room = images - images // 4, room - room // 4
        return self.requests.total() < images and self.bytes.total() + size <= room


def announced_bytes(request: Request, limits: Limits) -> int:
    """Return the Content-Length of a request, or the limit if it has none. Raises RejectedError above the limit."""
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isascii() and announced.isdigit() else limits.max_upload_bytes
    if size > limits.max_upload_bytes:
        raise _too_large(limits)
    return size


def check_media_type(request: Request) -> None:
    """Check that the body is declared as an image. Raises RejectedError."""
    declared = request.headers.get("content-type", MEDIA_TYPES[0]).partition(";")[0].strip().lower()
    if declared not in MEDIA_TYPES:
        raise RejectedError(
            415,
            "unsupported media type",
            f"send the image itself as the body of the request, with type {', '.join(MEDIA_TYPES)}; no form, no text",
        )


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
        RejectedError: it is larger than the limit, arrives too slowly, or is cut off.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(limits.upload_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_upload_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        seconds = limits.upload_timeout_s
        raise RejectedError(
            408, "upload too slow", f"the body did not arrive within {seconds:g} s; send it again"
        ) from None
    except ClientDisconnect:
        raise RejectedError(400, "upload broken off", "the connection ended before the image had arrived") from None
    return bytes(body)


def not_ready() -> RejectedError:
    """Return the error of a service whose model is not loaded yet."""
    return RejectedError(503, "not ready", "the model is loading; try again in a few seconds", retry_seconds=2)


def _too_large(limits: Limits) -> RejectedError:
    most = limits.max_upload_bytes
    if most < MEGABYTE:  # of a text
        return RejectedError(413, "upload too large", f"the body may have {most:,} bytes at most; shorten it")
    return RejectedError(
        413,
        "upload too large",
        f"an image may have {most / MEGABYTE:g} MB at most; export fewer pixels or compress it",
    )
