"""A model's answer as DICOM objects of the film's own study: a Structured Report, and a picture of where it looked.

The report follows TID 1500, which viewers show as a list and programs read by code: one measurement a class. Its
objects carry the patient's tags of their film, for they belong to the same study; nothing else of ours does.

UIDs are derived from the film's and the model's, so that an answer that is sent twice is one object to a PACS. Their
modalities are SR and OT: what reads films (cxr/dicom.py) refuses both, and never scores an answer.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cxr.dicom_tags import UnfitError, read_dicom, refusing, text

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, MeasurementReport
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

NOT_CLINICAL = "Research use only. Not for diagnosis."
MANUFACTURER = "chest-xray-pneumonia"

_REPORT_SERIES, _OVERLAY_SERIES = 9901, 9902
_OUR_CODES = "99CXR"  # designators that begin with 99 are private (PS3.16, 8)
_LINKS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# SNOMED CT: what a class says of a film, and what is said of a film without it.
_FINDINGS: Mapping[str, tuple[str, str]] = {
    "normal": ("17621005", "Normal"),
    "viral": ("75570004", "Viral pneumonia"),
    "bacterial": ("53084003", "Bacterial pneumonia"),
    "covid": ("882784691000119100", "Pneumonia caused by severe acute respiratory syndrome coronavirus 2"),
}


@dataclass(frozen=True)
class Answer:
    """What a model says of one film.

    probabilities  by class, each 0 to 1, calibrated
    refer          too unsure: a reader should see the film first
    """

    probabilities: Mapping[str, float]
    refer: bool
    model_name: str
    model_version: str

    @property
    def predicted_class(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


def structured_report(source: bytes, answer: Answer, *, name: str, made_at: datetime) -> bytes:
    """Return the answer as a Comprehensive SR of the film's study.

    Args:
        source: the DICOM film's bytes; its pixels are not read.
        answer: what the model says.
        name: what errors call the film.
        made_at: the report's date and time, as the hospital's clock shows it.

    Raises:
        ImageError: the film's header cannot be read, or lacks what links a report to it.
    """
    from highdicom.sr import ComprehensiveSR

    film = _film(source, name)
    report = ComprehensiveSR(
        evidence=[film],
        content=_content(film, answer)[0],
        series_instance_uid=_uid(film.StudyInstanceUID, answer, "report series"),
        series_number=_REPORT_SERIES,
        sop_instance_uid=answer_uid(film.SOPInstanceUID, answer, "report"),
        instance_number=_instance_number(film),
        manufacturer=MANUFACTURER,
        is_complete=True,
    )
    report.SeriesDescription = f"AI result. {NOT_CLINICAL}"
    return _written(report, answer, made_at)


def secondary_capture(
    source: bytes, overlay: NDArray[np.uint8], answer: Answer, *, name: str, made_at: datetime
) -> bytes:
    """Return the film with the model's heat over it as a Secondary Capture of the film's study.

    Args:
        source: the DICOM film's bytes; its pixels are not read.
        overlay: (height, width, 3), red, green, blue.
        answer: whose heat it is.
        name: what errors call the film.
        made_at: the picture's date and time, as the hospital's clock shows it.

    Raises:
        ImageError: the film's header cannot be read, or lacks what links a picture to it.
    """
    from highdicom.sc import SCImage

    film = _film(source, name)
    capture = SCImage.from_ref_dataset(
        film,
        pixel_array=np.ascontiguousarray(overlay),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=_uid(film.StudyInstanceUID, answer, "overlay series"),
        series_number=_OVERLAY_SERIES,
        sop_instance_uid=answer_uid(film.SOPInstanceUID, answer, "overlay"),
        instance_number=_instance_number(film),
        manufacturer=MANUFACTURER,
        patient_orientation=("L", "F"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )
    capture.SeriesDescription = f"AI heat map. {NOT_CLINICAL}"
    capture.DerivationDescription = f"Grad-CAM of {answer.model_name} {answer.model_version}. {NOT_CLINICAL}"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.SourceImageSequence = [_reference(film)]
    return _written(capture, answer, made_at)


def answer_uid(sop_uid: str, answer: Answer, kind: str) -> str:
    """Return the UID of the answer to the film `sop_uid`: the same film, model and kind have the same."""
    return _uid(sop_uid, answer, kind)


def _uid(of: str, answer: Answer, kind: str) -> str:
    named = "\0".join((of, answer.model_name, answer.model_version, kind))
    return f"2.25.{int.from_bytes(hashlib.sha256(named.encode()).digest()[:16], 'big')}"  # PS3.5 B.2


def _film(source: bytes, name: str) -> "Dataset":
    with refusing(name):
        film = read_dicom(source, (*_LINKS, *_COPIED, "InstanceNumber"))
        missing = [keyword for keyword in _LINKS if not text(film, keyword)]
        if missing:
            raise UnfitError("not an image", f"has no {', '.join(missing)}, so no answer can be filed beside it")
        film.decode()  # names in the film's character set: highdicom writes UTF-8
        for keyword in _COPIED:
            if keyword not in film:
                setattr(film, keyword, None)  # of type 2 in every object: there, and empty where nobody knows
        return film


def _instance_number(film: "Dataset") -> int:
    number = text(film, "InstanceNumber")
    return max(1, int(number)) if number.isascii() and number.isdigit() and len(number) <= 9 else 1


def _content(film: "Dataset", answer: Answer) -> "MeasurementReport":
    from highdicom import sr
    from pydicom.sr.codedict import codes

    measurements = [
        sr.Measurement(_probability_of(label), round(probability, 6), unit=codes.UCUM.NoUnits)
        for label, probability in answer.probabilities.items()
    ]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=answer_uid(film.SOPInstanceUID, answer, "tracking"), identifier=answer.model_name
        ),
        finding_sites=[sr.FindingSite(anatomic_location=codes.SCT.Lung)],
        algorithm_id=sr.AlgorithmIdentification(name=answer.model_name, version=answer.model_version),
        finding_type=_finding(answer.predicted_class),
        measurements=measurements,
        qualitative_evaluations=[
            sr.QualitativeEvaluation(_ours("REFER", "To a reader first"), _yes_or_no(answer.refer)),
        ],
        source_images=[sr.SourceImageForMeasurementGroup(film.SOPClassUID, film.SOPInstanceUID)],
    )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=_uid("device", answer, "device"),
        name=f"{answer.model_name} {answer.model_version}",
        manufacturer_name=MANUFACTURER,
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=sr.CodedConcept("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    contains = sr.RelationshipTypeValues.CONTAINS
    comment = sr.TextContentItem(name=codes.DCM.Comment, value=NOT_CLINICAL, relationship_type=contains)
    report[0].ContentSequence.append(comment)
    return report


def _ours(value: str, meaning: str) -> "CodedConcept":
    from highdicom.sr import CodedConcept

    return CodedConcept(value, _OUR_CODES, meaning)


def _probability_of(label: str) -> "CodedConcept":
    meaning = _FINDINGS[label][1] if label in _FINDINGS else label
    return _ours(f"P_{label.upper()}"[:16], f"Probability: {meaning}"[:64])


def _finding(label: str) -> "CodedConcept":
    from highdicom.sr import CodedConcept

    if label not in _FINDINGS:
        return _ours(label.upper()[:16], label)
    return CodedConcept(_FINDINGS[label][0], "SCT", _FINDINGS[label][1][:64])


def _yes_or_no(yes: bool) -> "Code":
    from pydicom.sr.codedict import codes

    answer: Code = codes.SCT.Yes if yes else codes.SCT.No
    return answer


def _reference(film: "Dataset") -> "Dataset":
    from pydicom.dataset import Dataset

    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = film.SOPClassUID, film.SOPInstanceUID
    return reference


def _written(dataset: "Dataset", answer: Answer, made_at: datetime) -> bytes:
    day, clock = made_at.strftime("%Y%m%d"), made_at.strftime("%H%M%S")
    dataset.ContentDate = dataset.InstanceCreationDate = day
    dataset.ContentTime = dataset.InstanceCreationTime = clock
    if "DateOfSecondaryCapture" in dataset:
        dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = day, clock
    for equipment in dataset.ContributingEquipmentSequence:
        equipment.ContributionDateTime = day + clock  # or the same answer would not give the same bytes
    dataset.ManufacturerModelName = answer.model_name[:64]
    dataset.SoftwareVersions = answer.model_version[:64]
    written = io.BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    return written.getvalue()
