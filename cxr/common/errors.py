"""All errors that a user can cause or fix.

CxrError
 +-- ParamsError           a parameter is unknown or invalid
 +-- SourceError           raw images cannot be fetched or have an unknown layout
 +-- ImageError            a file is not an image that can be read
 |    +-- DecoderError     an image crashes its decoder, or takes more time or memory than an image may
 +-- DataError             a manifest, split or image array is missing or contradicts another input
 |    +-- GateError        the data do not pass a data-quality gate
 +-- WeightsError          weights or a saved model cannot be loaded or fail the hash check
 +-- TrainingError         training cannot continue (non-finite loss)
 +-- RegistryError         the tracking store or registry has no such entry or does not answer
 +-- PromotionRejectedError the challenger is not good enough
 +-- PromotionHeldError    the promotion needs a person's decision
 +-- StorageError          a file cannot be written: the disk is full, or the folder is read-only
 +-- MemoryLimitError      the process gets no more memory
 +-- BusyError             another process does the same at this moment

The command line prints the message as one line and exits with `exit_code`. A message states what was expected, what was
found, and what to do.
"""

import signal
from functools import partial
from typing import Any


class CxrError(Exception):
    """Base of all errors that are printed as one line, without a traceback."""

    exit_code = 1


class ParamsError(CxrError):
    """A parameter is unknown, of the wrong type or out of range."""

    exit_code = 2


class SourceError(CxrError):
    """A source of images cannot be reached, is damaged or has an unknown layout."""

    exit_code = 3


class ImageError(CxrError):
    """A file is not an image that can be read.

    `reason` is "empty", "truncated", "not an image", "larger than the pixel limit" or "too costly to decode"; of a
    DICOM file also "no pixels", "several frames", "colour", "other modality", "other body part", "lateral view", "for
    processing" or "unsupported encoding"; of an image to classify also "colour" or "not a chest X-ray"
    (cxr/inference/input_checks.py).
    """

    exit_code = 4

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the reason too."""
        return partial(type(self), reason=self.reason), self.args


class DecoderError(ImageError):
    """An image crashes its decoder, or takes more time or memory than an image may; only its process is lost."""

    exit_code = 15


class DataError(CxrError):
    """An input of a step is missing or contradicts another input."""

    exit_code = 5


class GateError(DataError):
    """A data-quality gate failed; the table of failures has been logged."""

    exit_code = 6


class WeightsError(CxrError):
    """Weights or a saved model are missing, do not fit or fail their hash check."""

    exit_code = 7


class TrainingError(CxrError):
    """Training cannot go on; the last good checkpoint is kept."""

    exit_code = 8


class RegistryError(CxrError):
    """The tracking store or the registry lacks what was asked for."""

    exit_code = 9


class PromotionRejectedError(CxrError):
    """The version was evaluated and is not good enough; the champion stays."""

    exit_code = 10


class PromotionHeldError(CxrError):
    """Nothing was decided: artifacts are missing or undecided, or another move came first; the champion stays."""

    exit_code = 11


class StorageError(CxrError):
    """A file cannot be written: the disk is full, the quota is used up, or the folder is read-only."""

    exit_code = 12


class MemoryLimitError(CxrError):
    """The process gets no more memory, of this machine or of its GPU."""

    exit_code = 13


class BusyError(CxrError):
    """Another process does the same with the same files at this moment; nothing was changed."""

    exit_code = 14


class Terminated(KeyboardInterrupt):
    """SIGTERM. Whatever an interrupt stops and tidies up, this does too; only message and exit code differ."""

    exit_code = 128 + signal.SIGTERM


def other_format(what: str, found: object, known: object) -> str:
    """Return the message about something stored in a format that this release does not read."""
    return (
        f"{what} has format {found}, written by a later release; this one reads format {known}: use the release that "
        "wrote it, or a later one"
    )
