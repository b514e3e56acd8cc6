"""What the DICOM objects of an answer share: their author, their UIDs and numbers, and the tags of their image.

All objects carry the patient tags of their image, because they belong to the same study; no other output does.

A UID is derived from image and model, so a PACS sees an answer that is sent twice as one object. Its upper half names
the image: that an image has a report, of whichever version, can be seen in the UIDs of its study's reports alone.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from cxr.common.notices import notice
from cxr.dicom.tags import DicomError, read_dicom, text
from cxr.inference.answer import Answer
from cxr.models.bundle import ModelSpec

MODEL = "chest-xray-pneumonia"
"""Equal to `cxr.registry.versions.MODEL`, as a test checks; this package may not import the registry."""

Kind = Literal["report", "overlay", "heat"]

_LINKS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_FIRST_SERIES: dict[Kind, int] = {"report": 9_910_000, "overlay": 9_920_000, "heat": 9_930_000}
_HALF = 64  # bits of a UID that name the image


@dataclass(frozen=True)
class Author:
    """The model behind an answer.

    version          its number, or what it is called
    weights_sha256   distinguishes it from other registries' versions
    synthetic        whether it was trained on synthetic images
    parameters       how it computes, one in words each
    """

    version: str
    weights_sha256: str
    synthetic: bool
    parameters: tuple[str, ...] = ()

    @classmethod
    def of(cls, version: str, spec: ModelSpec) -> Author:
        """Return the author for the `number` and `spec` of a `cxr.inference.classifier.Classifier`."""
        parameters = (
            f"network={spec.backbone} x {spec.members}",
            f"weights_sha256={spec.weights_sha256}",
            f"image_size_px={spec.preprocessing.image_size_px}",
            f"contrast={spec.preprocessing.contrast}",
            f"temperature={spec.temperature:.6g}",
            f"refer_below={'none' if spec.refer_below is None else format(spec.refer_below, '.6g')}",
        )
        return cls(version, spec.weights_sha256, spec.synthetic, parameters)


def object_uid(sop_uid: str, author: Author, kind: Kind) -> str:
    """Return the UID of an object for the image `sop_uid`; it depends on image, model and kind alone."""
    return derived_uid(sop_uid, author, kind)


def series_uid(study_uid: str, author: Author, kind: Kind) -> str:
    """Return the UID of a study's series with all objects of one kind by one version."""
    return derived_uid(study_uid, author, f"{kind} series")


def is_report_of(uid: str, sop_uid: str) -> bool:
    """Return whether the UID of a report is that of one on the image `sop_uid`, by any version."""
    number = uid.removeprefix("2.25.")
    return number.isascii() and number.isdigit() and int(number) >> _HALF == _digest(sop_uid, MODEL) >> _HALF


def earlier_series_uid(sop_uid: str) -> str:
    """Return the UID of the series that held all reports on an image up to release 0.6.0."""
    return f"2.25.{_digest(sop_uid, MODEL, 'report series')}"


def derived_uid(of: str, author: Author, kind: str) -> str:
    """Return a UID that depends on another UID, the model and a word; its upper half on the other UID alone."""
    low = _digest(of, MODEL, author.version, author.weights_sha256, kind) % (1 << _HALF)
    return f"2.25.{(_digest(of, MODEL) >> _HALF << _HALF) + low}"  # PS3.5 B.2


def series_number(author: Author, kind: Kind) -> int:
    """Return the number of a series, which no scanner uses: it rises with the version."""
    version = author.version
    known = version.isascii() and version.isdigit() and len(version) <= 4
    return _FIRST_SERIES[kind] + (int(version) if known else _digest(version) % 10_000)


def instance_number(image: Dataset) -> int:
    """Return the number of the objects for an image: it differs between the images of one study."""
    series, number = _number(image, "SeriesNumber"), _number(image, "InstanceNumber")
    if series < 100_000 and number < 10_000:
        return max(1, series * 10_000 + number)
    return max(1, _digest(str(image.SOPInstanceUID)) % (1 << 31))


def read_image(source: bytes, *more: str) -> Dataset:
    """Return the tags of an image that its objects need, and those named in `more`.

    Raises:
        DicomError: it lacks the UIDs that link a report to it.
    """
    image = read_dicom(source, (*_LINKS, *_COPIED, "SeriesNumber", "InstanceNumber", *more))
    missing = [keyword for keyword in _LINKS if not text(image, keyword)]
    if missing:
        raise DicomError("not an image", f"has no {', '.join(missing)}, so no report can be linked to it")
    image.decode()  # names in the image's character set: highdicom writes UTF-8
    for keyword in _COPIED:
        if keyword not in image:
            setattr(image, keyword, None)  # type 2 in every object: present, and empty if unknown
    return image


def reference(sop_class_uid: str, sop_uid: str) -> Dataset:
    """Return an item that refers to an object."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_uid
    return item


def report_reference(image: Dataset, author: Author) -> Dataset:
    """Return an item that refers to the report of an image."""
    report = reference(Comprehensive3DSRStorage, object_uid(image.SOPInstanceUID, author, "report"))
    report.PurposeOfReferenceCodeSequence = [coded(codes.DCM.AnalysisOrMeasurementsForCurrentProcedure)]
    return report


def coded(code: Code) -> Dataset:
    """Return an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def cautions(answer: Answer, author: Author) -> list[str]:
    """Return what to know before the numbers of an answer: why it is none, and what the model is not made for."""
    reasons = []
    if answer.warning:
        reasons.append(f"NO ANSWER: {answer.warning.removesuffix('.')}.")
    elif answer.refer:
        reasons.append("The model is uncertain: a reader should see this image first.")
    return [*reasons, notice(synthetic=author.synthetic)]


def written(dataset: Dataset, author: Author, made_at: datetime) -> bytes:
    """Return the bytes of an object, with the time and the version that made it."""
    day, clock = made_at.strftime("%Y%m%d"), made_at.strftime("%H%M%S")
    dataset.ContentDate = dataset.InstanceCreationDate = day
    dataset.ContentTime = dataset.InstanceCreationTime = clock
    if "DateOfSecondaryCapture" in dataset:
        dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = day, clock
    for equipment in dataset.get("ContributingEquipmentSequence") or ():
        equipment.ContributionDateTime = day + clock  # otherwise the same answer would not give the same bytes
    dataset.ManufacturerModelName = MODEL
    dataset.SoftwareVersions = author.version[:64]
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _digest(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:16], "big")


def _number(image: Dataset, keyword: str) -> int:
    number = text(image, keyword)
    return int(number) if number.isascii() and number.isdigit() and len(number) <= 9 else 0
