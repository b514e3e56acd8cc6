"""Answers as files: where the model looked as a PNG, and for a DICOM film a Structured Report of its own study.

    <overlays>/<film>.overlay.png    the film as the model takes it, enlarged, with the heat of the predicted class
    <reports>/<film>.sr.dcm          the Structured Report (cxr/inference/dicom_sr.py); for DICOM films alone
    <reports>/<film>.overlay.dcm     the overlay as a Secondary Capture, where overlays are asked for too

`<film>` is the film's name with its ending; a film of a folder keeps its way below it. Files come whole or not at all.
Reports hold the patient's tags of their film, for they belong to its study; the PNG holds none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ParamsError
from cxr.common.files import whole_file
from cxr.inference.classifier import Answer, Classifier

_OVERLAY_SIDE_PX = 448  # at least: the model's own pixels are too few to look at


@dataclass(frozen=True)
class AnswerFiles:
    """Folders for overlays and reports; None: not asked for."""

    overlays: Path | None
    reports: Path | None

    def write(
        self, name: str, film: NDArray[np.uint8], answer: Answer, classifier: Classifier, *, dicom: bytes | None
    ) -> None:
        """Write what is asked for of one film.

        Args:
            name: of the files, below their folders.
            film: (H, W), as the model took it.
            answer: of the model.
            classifier: the model.
            dicom: the film's file where it is one of DICOM.

        Raises:
            ImageError: the DICOM film lacks what links a report to it.
            ParamsError: a folder cannot be written.
        """
        picture = None if self.overlays is None else _overlay(film, answer, classifier)
        if self.overlays is not None and picture is not None:
            _write(self.overlays / f"{name}.overlay.png", _png(picture))
        if self.reports is not None and dicom is not None:
            self._report(self.reports / name, dicom, answer, classifier, picture)

    def _report(
        self, path: Path, dicom: bytes, answer: Answer, classifier: Classifier, picture: NDArray[np.uint8] | None
    ) -> None:
        from cxr.inference.dicom_sr import Author, secondary_capture, structured_report

        author, now = Author.of(classifier.number, classifier.spec), datetime.now().astimezone()
        report = structured_report(dicom, answer, author=author, name=str(path), made_at=now)
        _write(path.with_name(f"{path.name}.sr.dcm"), report)
        if picture is not None:
            capture = secondary_capture(dicom, picture, answer, author=author, name=str(path), made_at=now)
            _write(path.with_name(f"{path.name}.overlay.dcm"), capture)


def _overlay(film: NDArray[np.uint8], answer: Answer, classifier: Classifier) -> NDArray[np.uint8]:
    from cxr.models.grad_cam import overlay

    picture = overlay(film, classifier.heat(film[None], [answer.predicted_class])[0])
    scale = -(-_OVERLAY_SIDE_PX // min(film.shape))
    size = (picture.shape[1] * scale, picture.shape[0] * scale)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _png(picture: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def _write(path: Path, data: bytes) -> None:
    try:
        with whole_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise ParamsError(f"{path} cannot be written: {error.strerror or error}; name another folder") from error
