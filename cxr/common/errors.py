"""Every error that a user can cause or mend.

CxrError
 +-- ParamsError           params.yaml or an override is not what a step takes
 +-- SourceError           raw images cannot be fetched or laid out
 +-- ImageError            one file is not an image that can be read
 +-- DataError             a manifest, split or packed array is missing or contradicts another
 |    +-- GateError        the data are readable and not good enough to go on
 +-- WeightsError          weights or a saved model cannot be loaded or fail their hash
 +-- TrainingError         training cannot go on (non-finite loss)
 +-- RegistryError         the tracking store or registry lacks what was asked for
 +-- PromotionRefusedError the evidence speaks against the promotion
 +-- PromotionHeldError    the evidence does not decide the promotion; a person has to look

The command line prints the message as one line and exits with `exit_code`, so a message says
what was expected, what came, and what to do now.
"""


class CxrError(Exception):
    """Base of all errors that are reported as one line, without a traceback."""

    exit_code = 1


class ParamsError(CxrError):
    """A parameter is unknown, of the wrong type or out of range."""

    exit_code = 2


class SourceError(CxrError):
    """A source of images cannot be reached, is corrupt or has an unknown layout."""

    exit_code = 3


class ImageError(CxrError):
    """A file is not an image that can be read.

    `reason` is one of "empty", "truncated", "not an image", "larger than the pixel limit"; of a DICOM file also
    "no pixels", "several frames", "colour", "other modality", "other body part", "lateral view", "for processing",
    "unsupported encoding"; of an image that is asked about also "colour" and "not a chest X-ray" (cxr/inference/input_checks.py).
    """

    exit_code = 4

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


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


class PromotionRefusedError(CxrError):
    """The version was measured and is not good enough; the champion stays."""

    exit_code = 10


class PromotionHeldError(CxrError):
    """Nothing was decided: evidence is missing or undecided, or another promotion came first; the champion stays."""

    exit_code = 11
