"""What is let in: so many requests at once, so many bytes, for so long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

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

    upload_bytes     of one image
    waiting          requests that are let in at once, those in work included
    waiting_bytes    of all images that are in at once
    batch_images      that the model looks at together, at most
    read_workers     threads that decode images
    upload_seconds   for an image to arrive
    read_seconds     for an image to be decoded
    answer_seconds   for an image to be answered, once it is decoded
    """

    upload_bytes: int
    waiting: int
    waiting_bytes: int
    batch_images: int
    read_workers: int
    upload_seconds: float
    read_seconds: float
    answer_seconds: float


class RefusedError(Exception):
    """A request that is not answered: `status` of HTTP, a short `reason` for programs, a `message` for people."""

    def __init__(self, status: int, reason: str, message: str, *, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.retry_seconds = status, reason, message, retry_seconds


class Admission:
    """Counts what is in; of one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0
        self.bytes = 0

    @contextmanager
    def enter(self, request: Request) -> Iterator[None]:
        """Let a request in until the block ends.

        Raises:
            RefusedError: its image is announced as too large, or the service is full.
        """
        size = announced_bytes(request, self.limits)
        if self.requests >= self.limits.waiting or self.bytes + size > self.limits.waiting_bytes:
            raise RefusedError(
                429, "busy", "the service has as many images as it can hold; send this one again", retry_seconds=1
            )
        self.requests += 1
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= size


def announced_bytes(request: Request, limits: Limits) -> int:
    """Return how many bytes a request's body may have: as it says, else the limit. Raises RefusedError beyond."""
    said = request.headers.get("content-length", "")
    size = int(said) if said.isascii() and said.isdigit() else limits.upload_bytes
    if size > limits.upload_bytes:
        raise _too_large(limits)
    return size


def check_media_type(request: Request) -> None:
    """Refuse a body that says it is something else than an image. Raises RefusedError."""
    said = request.headers.get("content-type", MEDIA_TYPES[0]).partition(";")[0].strip().lower()
    if said not in MEDIA_TYPES:
        raise RefusedError(
            415,
            "unsupported media type",
            f"the image itself is the body of the request, of type {', '.join(MEDIA_TYPES)}; not a form, not text",
        )


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return a request's body.

    Raises:
        RefusedError: it is larger than the limit, arrives too slowly, or breaks off.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.upload_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise RefusedError(
            408, "upload too slow", f"the image did not arrive within {limits.upload_seconds:g} s; send it again"
        ) from None
    except ClientDisconnect:
        raise RefusedError(400, "upload broken off", "the connection ended before the image had arrived") from None
    return bytes(body)


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(
        413,
        "upload too large",
        f"an image may have {limits.upload_bytes / MEGABYTE:g} MB at most; export it with fewer pixels or compressed",
    )
