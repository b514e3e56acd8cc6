"""A model's answer as DICOM objects in the study of its image: a Structured Report, and a picture with the heat map.

The report follows TID 1500, which viewers show as a list and programs read by code: one measurement a class. Both
objects carry the patient tags of their image, because they belong to the same study; no other output does.

UIDs are derived from those of the image and from the model, so a PACS sees an answer that is sent twice as one object.
The modalities are SR and OT, which the image reader (cxr/dicom/pixels.py) rejects: an answer is never classified.

Sources of the codes: DCM, UCUM and SNOMED CT 17621005, 39607008, 373066001, 373067005 are in PS3.16 (pydicom's tables);
SNOMED CT 53084003 in SNOMED's own guide, 75570004 in OMOP's vocabulary, 399208008 in public FHIR resources,
882784691000119100 in HL7's value set covid-19-snomed-diagnosis-vs.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from highdicom import sr
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from cxr.common.notices import NOT_CLINICAL, notice
from cxr.dicom.tags import DicomError, image_errors, read_dicom, text
from cxr.inference.answer import Answer
from cxr.models.bundle import ModelSpec

MODEL = "chest-xray-pneumonia"
"""Equal to `cxr.registry.versions.MODEL`, as a test checks; this package may not import the registry."""

_REPORT_SERIES, _OVERLAY_SERIES = 9901, 9902
_TRACKED = "Predicted class"
_OUR_CODES = "99CXR"  # designators that begin with 99 are private (PS3.16, 8)
_LINKS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# SNOMED CT code and meaning of each class.
_FINDINGS: Mapping[str, tuple[str, str]] = {
    "normal": ("17621005", "Normal"),
    "viral": ("75570004", "Viral pneumonia"),
    "bacterial": ("53084003", "Bacterial pneumonia"),
    "covid": ("882784691000119100", "Pneumonia caused by severe acute respiratory syndrome coronavirus 2"),
}


@dataclass(frozen=True)
class Author:
    """The model behind an answer: its version, and the digest that distinguishes it from other registries' versions."""

    version: str
    weights_sha256: str
    synthetic: bool

    @classmethod
    def of(cls, version: str, spec: ModelSpec) -> "Author":
        """Return the author for the `number` and `spec` of a `cxr.inference.classifier.Classifier`."""
        return cls(version, spec.weights_sha256, spec.synthetic)


def structured_report(source: bytes, answer: Answer, *, author: Author, name: str, made_at: datetime) -> bytes:
    """Return the answer as a Comprehensive SR in the study of the image.

    Args:
        source: bytes of the DICOM image; its pixels are not read.
        answer: of the model.
        author: the model.
        name: of the image in errors.
        made_at: date and time of the report, in local time.

    Raises:
        ImageError: the header cannot be read, or lacks the UIDs that link a report to the image.
    """
    with image_errors(name):  # highdicom's errors may quote a patient's tag
        return _report(_image(source), answer, author, made_at)


def secondary_capture(
    source: bytes, overlay: NDArray[np.uint8], answer: Answer, *, author: Author, name: str, made_at: datetime
) -> bytes:
    """Return the image with its heat map as a Secondary Capture in the study of the image.

    Args:
        source: bytes of the DICOM image; its pixels are not read.
        overlay: (height, width, 3), red, green, blue.
        answer: of the model; the heat map is that of its predicted class.
        author: the model.
        name: of the image in errors.
        made_at: date and time of the picture, in local time.

    Raises:
        ImageError: the header cannot be read, or lacks the UIDs that link a picture to the image.
    """
    with image_errors(name):
        return _capture(_image(source), overlay, answer, author, made_at)


def object_uid(sop_uid: str, author: Author, kind: Literal["report", "overlay"]) -> str:
    """Return the UID of an object for the image `sop_uid`; it depends on image, model and kind alone."""
    return _uid(sop_uid, author, kind)


def series_uid(sop_uid: str, kind: Literal["report", "overlay"]) -> str:
    """Return the UID of the series with all objects of a kind for the image `sop_uid`, of whichever version."""
    return _derived(sop_uid, MODEL, f"{kind} series")


def _uid(of: str, author: Author, kind: str) -> str:
    return _derived(of, MODEL, author.version, author.weights_sha256, kind)


def _derived(*parts: str) -> str:
    named = "\0".join(parts)
    return f"2.25.{int.from_bytes(hashlib.sha256(named.encode()).digest()[:16], 'big')}"  # PS3.5 B.2


def _report(image: Dataset, answer: Answer, author: Author, made_at: datetime) -> bytes:
    report = sr.ComprehensiveSR(
        evidence=[image],
        content=_content(image, answer, author)[0],
        series_instance_uid=series_uid(image.SOPInstanceUID, "report"),
        series_number=_REPORT_SERIES,
        sop_instance_uid=object_uid(image.SOPInstanceUID, author, "report"),
        instance_number=_instance_number(image),
        manufacturer=MODEL,
        is_complete=True,
    )
    report.SeriesDescription = f"AI result. {NOT_CLINICAL}"
    return _written(report, author, made_at)


def _capture(image: Dataset, overlay: NDArray[np.uint8], answer: Answer, author: Author, made_at: datetime) -> bytes:
    capture = SCImage.from_ref_dataset(
        image,
        pixel_array=np.ascontiguousarray(overlay),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=series_uid(image.SOPInstanceUID, "overlay"),
        series_number=_OVERLAY_SERIES,
        sop_instance_uid=object_uid(image.SOPInstanceUID, author, "overlay"),
        instance_number=_instance_number(image),
        manufacturer=MODEL,
        patient_orientation=("L", "F"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )
    capture.SeriesDescription = f"AI heat map. {NOT_CLINICAL}"
    shown = f"Grad-CAM for {_meaning(answer.predicted_class)}, {MODEL} version {author.version}."
    capture.DerivationDescription = " ".join([shown, *_cautions(answer, author)])[:1024]
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.SourceImageSequence = [_reference(image)]
    return _written(capture, author, made_at)


def _image(source: bytes) -> Dataset:
    image = read_dicom(source, (*_LINKS, *_COPIED, "InstanceNumber"))
    missing = [keyword for keyword in _LINKS if not text(image, keyword)]
    if missing:
        raise DicomError("not an image", f"has no {', '.join(missing)}, so no report can be linked to it")
    image.decode()  # names in the image's character set: highdicom writes UTF-8
    for keyword in _COPIED:
        if keyword not in image:
            setattr(image, keyword, None)  # type 2 in every object: present, and empty if unknown
    return image


def _instance_number(image: Dataset) -> int:
    number = text(image, "InstanceNumber")
    return max(1, int(number)) if number.isascii() and number.isdigit() and len(number) <= 9 else 1


def _content(image: Dataset, answer: Answer, author: Author) -> sr.MeasurementReport:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=_uid("device", author, "device"), name=f"{MODEL} version {author.version}", manufacturer_name=MODEL
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=sr.CodedConcept("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[_group(image, answer, author)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    summary = sr.TextContentItem(
        name=codes.DCM.Summary,
        value=_summary(answer, author),
        relationship_type=sr.RelationshipTypeValues.CONTAINS,
    )
    items = report[0].ContentSequence
    first = next(index for index, item in enumerate(items) if item.ValueType == "CONTAINER")
    items.insert(first, summary)  # before the numbers
    return report


def _group(image: Dataset, answer: Answer, author: Author) -> sr.MeasurementsAndQualitativeEvaluations:
    measurements = [
        sr.Measurement(_probability_of(label), round(probability, 6), unit=codes.UCUM.NoUnits)
        for label, probability in answer.probabilities.items()
    ]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid(image.SOPInstanceUID, author, "tracking"), identifier=_TRACKED
        ),
        finding_sites=[sr.FindingSite(anatomic_location=codes.SCT.Lung)],
        algorithm_id=sr.AlgorithmIdentification(name=MODEL, version=author.version),
        finding_type=_finding(answer.predicted_class),
        measurements=measurements,
        qualitative_evaluations=[
            sr.QualitativeEvaluation(_private_code(*code), _yes_or_no(value)) for code, value in answer.report_items()
        ],
        source_images=[sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)],
    )


def _summary(answer: Answer, author: Author) -> str:
    """Return the text for people: all probabilities, the referral, and the disclaimers."""
    ranked = sorted(answer.probabilities.items(), key=lambda each: -each[1])
    shares = ", ".join(f"{_meaning(label)} {probability:.1%}" for label, probability in ranked)
    referral = ["The model is uncertain: a reader should see this image first."] if answer.refer else []
    return " ".join([f"Model's probabilities: {shares}.", *referral, *_cautions(answer, author)])


def _cautions(answer: Answer, author: Author) -> list[str]:
    warning = [answer.warning if answer.warning.endswith(".") else f"{answer.warning}."] if answer.warning else []
    return [*warning, notice(synthetic=author.synthetic)]


def _meaning(label: str) -> str:
    return _FINDINGS[label][1] if label in _FINDINGS else label


def _private_code(value: str, meaning: str) -> sr.CodedConcept:
    return sr.CodedConcept(value, _OUR_CODES, meaning)


def _probability_of(label: str) -> sr.CodedConcept:
    return _private_code(f"P_{label.upper()}"[:16], f"Probability: {_meaning(label)}"[:64])


def _finding(label: str) -> sr.CodedConcept:
    if label not in _FINDINGS:
        return _private_code(label.upper()[:16], label)
    return sr.CodedConcept(_FINDINGS[label][0], "SCT", _meaning(label)[:64])


def _yes_or_no(yes: bool) -> Code:
    answer: Code = codes.SCT.Yes if yes else codes.SCT.No
    return answer


def _reference(image: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return reference


def _written(dataset: Dataset, author: Author, made_at: datetime) -> bytes:
    day, clock = made_at.strftime("%Y%m%d"), made_at.strftime("%H%M%S")
    dataset.ContentDate = dataset.InstanceCreationDate = day
    dataset.ContentTime = dataset.InstanceCreationTime = clock
    if "DateOfSecondaryCapture" in dataset:
        dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = day, clock
    for equipment in dataset.ContributingEquipmentSequence:
        equipment.ContributionDateTime = day + clock  # otherwise the same answer would not give the same bytes
    dataset.ManufacturerModelName = MODEL
    dataset.SoftwareVersions = author.version[:64]
    written = io.BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    return written.getvalue()
