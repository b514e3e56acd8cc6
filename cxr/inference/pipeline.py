"""From files to answers, the one path that `predict`, `score`, the web app, the PACS worker and MLflow's model share.

`prepare` turns the bytes of a file into what the model takes, or into the error that says why it cannot.
`answer_prepared` answers a batch of those. `answered_batches` does both for any number of files in bounded memory:
threads read the next files, and decode them or have them decoded, while the network computes.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ImageError
from cxr.imaging.decode import max_file_bytes
from cxr.models.forward import BATCH_SIZE

if TYPE_CHECKING:
    from cxr.inference.answer import Answer
    from cxr.inference.classifier import Classifier

NOT_OPENED = "not opened"
"""The reason of an ImageError of a file that could not be opened; all other reasons are about its contents."""

_BATCHES_AHEAD = 2

Key = TypeVar("Key")
Kept = TypeVar("Kept")
Given = TypeVar("Given")
Made = TypeVar("Made")

log = logging.getLogger("cxr.inference")


@dataclass(frozen=True)
class ModelInput:
    """An image as the model takes it.

    pixels   (H, W)
    format   of the file; see cxr.imaging.decode.FORMATS
    sha256   of the file
    """

    pixels: NDArray[np.uint8]
    format: str
    sha256: str


class Decode(Protocol):
    """Makes the model's input of a file's bytes."""

    def __call__(self, data: bytes, classifier: Classifier, *, name: str) -> ModelInput:
        """Raise ImageError where the file, called `name` in it, is no image that the model takes."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PreparedImage(Generic[Key, Kept]):
    """A file as it was read: `pixels`, or the `error` why there are none; neither where `is_known` left it out.

    key      what the caller knows the file by
    pixels   (H, W), as the model takes them
    sha256   of the bytes; None where they were not read
    kept     what the caller's `keep` returned
    """

    key: Key
    pixels: NDArray[np.uint8] | None = None
    error: ImageError | None = None
    sha256: str | None = None
    kept: Kept | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredImage(Generic[Key, Kept]):
    """A prepared image and its `answer`; None where it has an error or was left out."""

    image: PreparedImage[Key, Kept]
    answer: Answer | None


def model_input(data: bytes, classifier: Classifier, *, name: str) -> ModelInput:
    """Decode and prepare one image in this process, which a decoder that crashes ends.

    Args:
        data: the file's bytes.
        classifier: the model that will answer.
        name: what errors call the file.

    Raises:
        ImageError: the file is not an image that the model takes.
    """
    try:
        check_size(len(data), classifier, name=name)
        image = classifier.open(data, name=name)
        pixels = classifier.prepare(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders fail on damaged files in ways of their own; their messages may quote a tag
        log.warning("an image could not be read: its decoder failed with %s", type(error).__name__)
        raise ImageError(f"{name} cannot be read: its contents are damaged", reason="not an image") from None
    return ModelInput(pixels, image.header.format, hashlib.sha256(data).hexdigest())


def prepare(
    data: bytes,
    classifier: Classifier,
    *,
    decode: Decode,
    key: Key,
    name: str,
    keep: Callable[[bytes, ModelInput], Kept] | None = None,
    is_known: Callable[[str], bool] | None = None,
) -> PreparedImage[Key, Kept]:
    """Decode and prepare one image; what is wrong with it becomes the `error` of the result.

    Args:
        data: the file's bytes.
        classifier: the model that will answer.
        decode: `model_input`, or that of `cxr.inference.decoding.decoders.Decoders`.
        key: what the caller knows the file by.
        name: what errors call the file.
        keep: takes the bytes and what was decoded, and returns what to keep; its ImageError is that of the image.
        is_known: called with the SHA-256 of the bytes; where it returns True, the image is left out.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    if is_known is not None and is_known(sha256):
        return PreparedImage(key, sha256=sha256)
    try:
        decoded = decode(data, classifier, name=name)
        return PreparedImage(key, decoded.pixels, sha256=sha256, kept=keep(data, decoded) if keep else None)
    except ImageError as error:
        return PreparedImage(key, error=error, sha256=sha256)


def prepare_file(
    read: Callable[[], bytes],
    classifier: Classifier,
    *,
    decode: Decode,
    key: Key,
    name: str,
    keep: Callable[[bytes, ModelInput], Kept] | None = None,
    is_known: Callable[[str], bool] | None = None,
) -> PreparedImage[Key, Kept]:
    """Read a file and prepare it as `prepare` does; an OSError of `read` becomes an `error` with reason NOT_OPENED."""
    try:
        data = read()
    except FileNotFoundError:
        error = ImageError(f"{name} does not exist; check whether it was moved", reason=NOT_OPENED)
        return PreparedImage(key, error=error)
    except OSError as failure:
        error = ImageError(f"{name} cannot be opened: {failure.strerror or failure}", reason=NOT_OPENED)
        return PreparedImage(key, error=error)
    return prepare(data, classifier, decode=decode, key=key, name=name, keep=keep, is_known=is_known)


def check_size(size_bytes: int, classifier: Classifier, *, name: str) -> None:
    """Check that a file is not longer than any image within the model's pixel limit.

    Raises:
        ImageError: it is, with reason "larger than the pixel limit".
    """
    max_pixels = classifier.spec.preprocessing.max_pixels
    limit = max_file_bytes(max_pixels)
    if size_bytes > limit:
        raise ImageError(
            f"{name} has more than {limit} bytes, the most that an image of {max_pixels} pixels can have; export it "
            "smaller",
            reason="larger than the pixel limit",
        )


def answer_prepared(
    classifier: Classifier, images: Sequence[PreparedImage[Key, Kept]]
) -> list[AnsweredImage[Key, Kept]]:
    """Answer those of `images` that have pixels, and return all in their order."""
    pixels = [image.pixels for image in images if image.pixels is not None]
    answers = iter(classifier.answer(np.stack(pixels)) if pixels else ())
    return [AnsweredImage(image, None if image.pixels is None else next(answers)) for image in images]


def answered_batches(
    classifier: Classifier, files: Sequence[Given], read: Callable[[Given], PreparedImage[Key, Kept]], *, workers: int
) -> Generator[list[AnsweredImage[Key, Kept]], None, None]:
    """Yield the answers to `files`, a batch at a time and in their order.

    A few batches of prepared images are in memory at any moment, and the bytes of one file for each thread.

    Args:
        classifier: the model.
        files: what `read` takes, one by one.
        read: reads and prepares one file, with `prepare` or `prepare_file`; called in several threads.
        workers: threads that call it.

    Raises:
        Exception: what `read` raises.
    """
    for batch in prepared_batches(files, read, batch_size=BATCH_SIZE, workers=workers):
        yield answer_prepared(classifier, batch)


def prepared_batches(
    files: Sequence[Given], read: Callable[[Given], Made], *, batch_size: int, workers: int
) -> Generator[list[Made], None, None]:
    """Yield what `read` makes of `files`, in order, in lists of `batch_size`; the last may be shorter.

    OpenCV decodes, and hashlib hashes, beside other threads. What `read` raises is raised here.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="image")
    waiting: deque[list[Future[Made]]] = deque()
    try:
        for start in range(0, len(files), batch_size):
            waiting.append([pool.submit(read, one) for one in files[start : start + batch_size]])
            if len(waiting) > _BATCHES_AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)
