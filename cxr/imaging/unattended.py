"""Decode many images where nobody waits: one that its decoder does not survive is an error of its own, with its name.

The words and limits are those of every process that decodes, here and in cxr/inference/decoding/.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import cv2

from cxr.common.errors import DecoderError
from cxr.common.in_child import Fault, Job, map_in_child
from cxr.dicom.cost import COSTLY

UNATTENDED_SECONDS = 30.0
"""That an image may take where nobody waits for it."""

TOO_SLOW = "too slow"
"""The reason of the error of an image that took longer than it may; its process has been killed."""

_NAMED = 10

_MEMORY_BYTES, _MEMORY_BYTES_A_PIXEL = 1 << 30, 24

Item = TypeVar("Item")
Given = TypeVar("Given")
Result = TypeVar("Result")


def decode_each(
    read: Callable[[Item], Given],
    decode: Callable[[Item, Given], Result],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    refused: Callable[[Item, DecoderError], Result],
    max_pixels: int,
    workers: int,
) -> Iterator[Result]:
    """Yield the result of each item, in their order; see `cxr.common.in_child.map_in_child`.

    Args:
        read: returns what `decode` takes; called in threads of a child process, as `decode` is.
        decode: returns the result, which must pickle.
        items: the items.
        name: of an item, in messages.
        refused: returns the result of an item that crashes its decoder or takes too much time or memory.
        max_pixels: that an image may have; more need more memory.
        workers: threads; 0 means one per core.
    """

    def faulty(item: Item, fault: Fault) -> Result:
        return refused(item, _decoder_error(fault, name(item)))

    cv2.setNumThreads(1)  # the child has one thread per core; OpenCV's own threads would compete with them
    job = Job(read, decode, faulty, name, UNATTENDED_SECONDS, most_memory_bytes(max_pixels))
    return map_in_child(job, items, workers=workers)


def decode_kept(
    read: Callable[[str], Given],
    decode: Callable[[str, Given], Result],
    paths: Sequence[str],
    *,
    max_pixels: int,
    workers: int,
) -> Iterator[Result]:
    """Yield the results of images that ingest kept, in their order; arguments as of `decode_each`.

    Raises:
        DecoderError: images crash their decoder or take too much time or memory (names the first ones); at the end.
    """

    def refused(_: str, error: DecoderError) -> Result | DecoderError:
        return error

    errors: list[DecoderError] = []
    for result in decode_each(read, decode, paths, name=str, refused=refused, max_pixels=max_pixels, workers=workers):
        if isinstance(result, DecoderError):
            errors.append(result)
        else:
            yield result
    if errors:
        raise kept_by_ingest(errors)


def kept_by_ingest(errors: Sequence[DecoderError]) -> DecoderError:
    """Return one error about images that ingest kept, and what to do; the first few are named."""
    more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
    return DecoderError(
        f"{'; '.join(map(str, errors[:_NAMED]))}{more}. Replace or remove what is named in its source, run "
        "`./run dvc repro ingest`, then this command again",
        reason=errors[0].reason,
    )


def most_memory_bytes(max_pixels: int) -> int:
    """Return the address space that a process may take, above what the program itself has, to decode one image.

    The costliest accepted image of 50 million pixels, 16-bit grey, needed 0.9 GB.
    """
    return _MEMORY_BYTES + _MEMORY_BYTES_A_PIXEL * max_pixels


def crashes(name: str) -> DecoderError:
    """Return the error of an image whose process has died."""
    return DecoderError(f"{name} crashes its decoder; export it again", reason="not an image")


def too_slow(name: str, seconds: float) -> DecoderError:
    """Return the error of an image that took more than `seconds`."""
    return DecoderError(f"{name} took more than {seconds:g} s to decode; export it uncompressed", reason=TOO_SLOW)


def _decoder_error(fault: Fault, name: str) -> DecoderError:
    match fault:
        case Fault.CRASH:
            return crashes(name)
        case Fault.TOO_SLOW:
            return too_slow(name, UNATTENDED_SECONDS)
        case Fault.TOO_MUCH_MEMORY:
            return DecoderError(f"{name} needs more memory than an image of its size; export it again", reason=COSTLY)
