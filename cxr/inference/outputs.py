"""Answers as files: where the model looked as a PNG, and for a DICOM image a Structured Report of its own study.

    <overlays>/<image>.overlay.png    the image with the heat of the predicted class (cxr/imaging/overlay.py)
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
from cxr.imaging.decode import EncodedImage
from cxr.imaging.overlay import Caption, draw_overlay
from cxr.inference.answer import Answer
from cxr.inference.classifier import Classifier
from cxr.models.bundle import ModelSpec


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
            ImageError: the DICOM image lacks the tags that link a report to it.
            ParamsError: a folder cannot be written.
        """
        picture = None if self.overlays is None else overlay_of(image, pixels, answer, classifier)
        if self.overlays is not None and picture is not None:
            _write(self.overlays / f"{name}.overlay.png", _png(picture))
        if self.reports is not None and image.header.format == "DICOM":
            self._report(self.reports / name, image.data, answer, classifier, picture)

    def _report(
        self, path: Path, dicom: bytes, answer: Answer, classifier: Classifier, picture: NDArray[np.uint8] | None
    ) -> None:
        # highdicom takes a second to import, and most runs write no report
        from cxr.inference.dicom_objects import Author
        from cxr.inference.dicom_overlay import secondary_capture
        from cxr.inference.dicom_sr import structured_report

        author, now = Author.of(classifier.number, classifier.spec), datetime.now().astimezone()
        report = structured_report(
            dicom, answer, author=author, name=str(path), made_at=now, overlay=picture is not None
        )
        _write(path.with_name(f"{path.name}.sr.dcm"), report)
        if picture is not None:
            capture = secondary_capture(dicom, picture, answer, author=author, name=str(path), made_at=now)
            _write(path.with_name(f"{path.name}.overlay.dcm"), capture)


def overlay_of(
    image: EncodedImage, pixels: NDArray[np.uint8], answer: Answer, classifier: Classifier
) -> NDArray[np.uint8]:
    """Return an opened image with the heat of its predicted class; `pixels` (H, W) are the same, prepared."""
    (heat,) = classifier.heat(pixels[None], [answer.predicted_class])
    return captioned_overlay(image, heat, answer, answer.predicted_class, classifier.spec, version=classifier.number)


def captioned_overlay(
    image: EncodedImage, heat: NDArray[np.float32], answer: Answer, of_class: str, spec: ModelSpec, *, version: str
) -> NDArray[np.uint8]:
    """Return an opened image with the heat of a class; see cxr.imaging.overlay.

    Args:
        image: the opened file.
        heat: (H, W) of that class, from `Classifier.heat`.
        answer: of the model.
        of_class: one of its classes.
        spec: of the model.
        version: of the model.
    """
    caption = Caption(of_class, answer.probabilities[of_class], f"version {version}", spec.synthetic, answer.warning)
    return draw_overlay(image.grey(), heat, spec.preprocessing, caption)


def _png(picture: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def _write(path: Path, data: bytes) -> None:
    try:
        with atomic_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise ParamsError(f"{path} cannot be written: {error.strerror or error}; name another folder") from error
