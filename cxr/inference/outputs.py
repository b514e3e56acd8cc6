"""Answers as files: where the model looked as a PNG, and for a DICOM image a Structured Report of its own study.

    <overlays>/<image>.overlay.png    the prepared image, enlarged, with the heat of the predicted class
    <reports>/<image>.sr.dcm          the Structured Report (cxr/inference/dicom_sr.py); for DICOM images only
    <reports>/<image>.overlay.dcm     the overlay as a Secondary Capture, where overlays are asked for, too

`<image>` is the image's name with its suffix; an image in a folder keeps its path below it. Files are written
atomically. Reports hold the patient's tags of their image, as they belong to its study; the PNG holds none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ParamsError
from cxr.common.files import atomic_file
from cxr.inference.answer import Answer
from cxr.inference.classifier import Classifier

_OVERLAY_SIDE_PX = 448  # at least: prepared images are too small to look at


@dataclass(frozen=True)
class AnswerFiles:
    """The folders for overlays and reports; None: not asked for."""

    overlays: Path | None
    reports: Path | None

    def write(
        self, name: str, image: NDArray[np.uint8], answer: Answer, classifier: Classifier, *, dicom: bytes | None
    ) -> None:
        """Write the files of one image that are asked for.

        Args:
            name: of the files, below their folders.
            image: (H, W), prepared.
            answer: of the model.
            classifier: the model.
            dicom: the bytes of the file where it is a DICOM image.

        Raises:
            ImageError: the DICOM image lacks the tags that link a report to it.
            ParamsError: a folder cannot be written.
        """
        picture = None if self.overlays is None else _overlay(image, answer, classifier)
        if self.overlays is not None and picture is not None:
            _write(self.overlays / f"{name}.overlay.png", _png(picture))
        if self.reports is not None and dicom is not None:
            self._report(self.reports / name, dicom, answer, classifier, picture)

    def _report(
        self, path: Path, dicom: bytes, answer: Answer, classifier: Classifier, picture: NDArray[np.uint8] | None
    ) -> None:
        # highdicom takes a second to import, and most runs write no report
        from cxr.inference.dicom_sr import Author, secondary_capture, structured_report

        author, now = Author.of(classifier.number, classifier.spec), datetime.now().astimezone()
        report = structured_report(dicom, answer, author=author, name=str(path), made_at=now)
        _write(path.with_name(f"{path.name}.sr.dcm"), report)
        if picture is not None:
            capture = secondary_capture(dicom, picture, answer, author=author, name=str(path), made_at=now)
            _write(path.with_name(f"{path.name}.overlay.dcm"), capture)


def _overlay(image: NDArray[np.uint8], answer: Answer, classifier: Classifier) -> NDArray[np.uint8]:
    from cxr.models.grad_cam import overlay  # imports torch, which OpenVINO's answers do without

    picture = overlay(image, classifier.heat(image[None], [answer.predicted_class])[0])
    scale = -(-_OVERLAY_SIDE_PX // min(image.shape))
    size = (picture.shape[1] * scale, picture.shape[0] * scale)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _png(picture: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def _write(path: Path, data: bytes) -> None:
    try:
        with atomic_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise ParamsError(f"{path} cannot be written: {error.strerror or error}; name another folder") from error
