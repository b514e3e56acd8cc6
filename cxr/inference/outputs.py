"""Answers as files: where the model looked as a PNG, and for a DICOM image a Structured Report of its own study.

    <overlays>/<image>.overlay.png    the image with the heat of the predicted class (cxr/imaging/overlay.py)
    <reports>/<image>.sr.dcm          the Structured Report (cxr/inference/dicom_objects/report.py), for DICOM alone
    <reports>/<image>.overlay.dcm     the overlay as a Secondary Capture, where overlays are asked for, too
    <reports>/<image>.heat.dcm        the heat as a Parametric Map, likewise

`<image>` is the image's name with its suffix; an image in a folder keeps its path below it. Files are written
atomically. Reports hold the patient's tags of their image, as they belong to its study; the PNG holds none.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ImageError, ParamsError
from cxr.common.files import atomic_file
from cxr.imaging.decode import EncodedImage
from cxr.inference.answer import Answer
from cxr.inference.classifier import Classifier
from cxr.inference.explanation import Explanation, explain
from cxr.inference.pipeline import NOT_OPENED

_ENDINGS = {"report": "sr", "overlay": "overlay", "heat": "heat"}


@dataclass(frozen=True)
class AnswerFiles:
    """The folders for overlays and reports; None: not asked for."""

    overlays: Path | None
    reports: Path | None

    def write(
        self, name: str, image: EncodedImage, pixels: NDArray[np.uint8], answer: Answer, classifier: Classifier
    ) -> None:
        """Write the files of one image that are asked for.

        Args:
            name: of the files, below their folders.
            image: the opened file.
            pixels: (H, W), prepared.
            answer: of the model.
            classifier: the model.

        Raises:
            ImageError: the DICOM image lacks the tags that link a report to it, or its name is too long.
            ParamsError: a folder cannot be written.
        """
        looked = None if self.overlays is None else explain(image.grey(), pixels, answer, classifier)
        if self.overlays is not None and looked is not None:
            _write(self.overlays / f"{name}.overlay.png", _png(looked.picture))
        if self.reports is not None and image.header.format == "DICOM":
            self._objects(self.reports / name, image.data, answer, classifier, looked)

    def _objects(
        self, path: Path, dicom: bytes, answer: Answer, classifier: Classifier, looked: Explanation | None
    ) -> None:
        # highdicom takes a second to import, and most runs write no report
        from cxr.inference.dicom_objects.answer import answer_objects
        from cxr.inference.dicom_objects.shared import Author

        author, now = Author.of(classifier.number, classifier.spec), datetime.now().astimezone()
        for kind, made in answer_objects(
            dicom, answer, looked, explained_by=("overlay", "heat"), author=author, name=str(path), made_at=now
        ):
            _write(path.with_name(f"{path.name}.{_ENDINGS[kind]}.dcm"), made)


def _png(picture: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def _write(path: Path, data: bytes) -> None:
    try:
        with atomic_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # of this image alone
            raise ImageError(f"{path} cannot be written: its name is too long", reason=NOT_OPENED) from error
        raise ParamsError(f"{path} cannot be written: {error.strerror or error}; name another folder") from error
