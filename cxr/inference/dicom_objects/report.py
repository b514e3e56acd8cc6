"""A model's answer as a Structured Report in the study of its image, in the form of IHE's AI Results profile.

A Comprehensive 3D SR after TID 1500, which viewers show as a list and programs read by code:

- what to know first: the status of the analysis, a recommendation if a reader should look first, a warning
- one measurement group a class: the certainty of the class in percent, and the algorithm behind it (TID 4019)
- a finding in the group of the predicted class alone, and in none where a reader should look first

The modality is SR, which the image reader (cxr/dicom/pixels.py) rejects: an answer is never classified. No private code
is used.

Sources of the codes: DCM, UCUM and SNOMED CT 39607008, 246090004 are in PS3.16 (pydicom's tables); SNOMED CT 53084003
in SNOMED's own guide, 75570004 in OMOP's vocabulary, 399208008 in public FHIR resources, 827032003 in SNOMED CT's core
module, 882784691000119100 in HL7's value set covid-19-snomed-diagnosis-vs.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ParametricMapStorage, SecondaryCaptureImageStorage

from cxr.common.classes import LABELS
from cxr.common.notices import NOT_CLINICAL
from cxr.dicom.tags import image_errors
from cxr.inference.answer import Answer
from cxr.inference.dicom_objects.shared import (
    MODEL,
    Author,
    cautions,
    derived_uid,
    instance_number,
    object_uid,
    read_image,
    series_number,
    series_uid,
    written,
)

Explains = Literal["overlay", "heat"]

# What shows where the model looked: its SOP class, and what the report calls it.
_EXPLANATIONS: Mapping[Explains, tuple[UID, Code]] = {
    "overlay": (SecondaryCaptureImageStorage, codes.DCM.IllustrationOfROI),
    "heat": (ParametricMapStorage, codes.DCM.VisualExplanation),
}

# SNOMED CT code and meaning of each class.
_FINDINGS: Mapping[str, tuple[str, str]] = {
    "normal": ("827032003", "Normal lung"),
    "viral": ("75570004", "Viral pneumonia"),
    "bacterial": ("53084003", "Bacterial pneumonia"),
    "covid": ("882784691000119100", "Pneumonia caused by SARS-CoV-2"),
}


def structured_report(
    source: bytes,
    answer: Answer,
    *,
    author: Author,
    name: str,
    made_at: datetime,
    explained_by: Sequence[Explains] = (),
) -> bytes:
    """Return the answer as a Comprehensive 3D SR in the study of the image.

    Args:
        source: bytes of the DICOM image; its pixels are not read.
        answer: of the model.
        author: the model.
        name: of the image in errors.
        made_at: date and time of the report, in local time.
        explained_by: the objects that are stored, too, and to which the report refers: "overlay", the picture of
            `cxr.inference.dicom_objects.overlay`, and "heat", the map of `cxr.inference.dicom_objects.heat_map`.

    Raises:
        ImageError: the header cannot be read, or lacks the UIDs that link a report to the image.
    """
    with image_errors(name):  # highdicom's errors may quote a patient's tag
        return _report(read_image(source), answer, author, made_at, explained_by)


def meaning(label: str) -> str:
    """Return a class in words."""
    return _FINDINGS[label][1]


def finding(label: str) -> Code:
    """Return the code of a class."""
    return Code(_FINDINGS[label][0], "SCT", _FINDINGS[label][1])


def algorithm(author: Author) -> sr.AlgorithmIdentification:
    """Return what identifies the model (TID 4019)."""
    return sr.AlgorithmIdentification(
        name=MODEL,
        version=author.version,
        parameters=author.parameters or None,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MODEL,
    )


def _report(
    image: Dataset, answer: Answer, author: Author, made_at: datetime, explained_by: Sequence[Explains]
) -> bytes:
    explanations = {kind: _explanation(image, author, kind) for kind in explained_by}
    report = sr.Comprehensive3DSR(
        evidence=[image, *explanations.values()],
        content=_content(image, answer, author, explanations)[0],
        series_instance_uid=series_uid(image.StudyInstanceUID, author, "report"),
        series_number=series_number(author, "report"),
        sop_instance_uid=object_uid(image.SOPInstanceUID, author, "report"),
        instance_number=instance_number(image),
        manufacturer=MODEL,
        is_complete=True,
    )
    report.SeriesDescription = f"AI result. {NOT_CLINICAL}"
    return written(report, author, made_at)


def _explanation(image: Dataset, author: Author, kind: Explains) -> Dataset:
    """Return as much of an object as a reference to it needs; its UIDs are known before it is made."""
    made = Dataset()
    made.StudyInstanceUID, made.SOPClassUID = image.StudyInstanceUID, _EXPLANATIONS[kind][0]
    made.SeriesInstanceUID = series_uid(image.StudyInstanceUID, author, kind)
    made.SOPInstanceUID = object_uid(image.SOPInstanceUID, author, kind)
    return made


def _content(
    image: Dataset, answer: Answer, author: Author, explanations: Mapping[Explains, Dataset]
) -> sr.MeasurementReport:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", author, "device"),
        name=f"{MODEL} version {author.version}",
        manufacturer_name=MODEL,
        model_name=MODEL,
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=sr.CodedConcept("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[_group(image, label, answer, author) for label in _in_order(answer)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    items = report[0].ContentSequence
    first = next(index for index, item in enumerate(items) if item.ValueType == "CONTAINER")
    for item in reversed(_conclusions(answer, author)):  # before the numbers
        items.insert(first, item)
    for kind, made in explanations.items():
        items.append(
            sr.ImageContentItem(
                _EXPLANATIONS[kind][1],
                made.SOPClassUID,
                made.SOPInstanceUID,
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
    return report


def _in_order(answer: Answer) -> list[str]:
    return [label for label in LABELS if label in answer.probabilities]


def _conclusions(answer: Answer, author: Author) -> list[sr.ContentItem]:
    """Return the items that come before all numbers."""
    contains = sr.RelationshipTypeValues.CONTAINS
    texts = [(codes.DCM.Summary, _summary(answer, author))]
    if answer.warning:
        texts.append((codes.DCM.QualityFinding, answer.warning))
    if not answer.asserted:
        texts.append((codes.DCM.Recommendation, "A reader should see this image first."))
    status = sr.CodeContentItem(codes.DCM.CADProcessingAndFindingsSummary, _status(answer), relationship_type=contains)
    return [status, *(sr.TextContentItem(name, value, relationship_type=contains) for name, value in texts)]


def _status(answer: Answer) -> Code:
    """Return the status of the analysis (CID 6047)."""
    if not answer.asserted:
        status: Code = codes.DCM.NoAlgorithmsSucceededWithoutFindings
    elif answer.predicted_class == "normal":
        status = codes.DCM.AllAlgorithmsSucceededWithoutFindings
    else:
        status = codes.DCM.AllAlgorithmsSucceededWithFindings
    return status


def _group(image: Dataset, label: str, answer: Answer, author: Author) -> sr.MeasurementsAndQualitativeEvaluations:
    """Return the measurement group of a class (TID 1501)."""
    percent = round(100 * answer.probabilities[label], 4)
    certainty = sr.Measurement(codes.DCM.CertaintyOfFinding, percent, unit=codes.UCUM.Percent)
    certainty[0].ContentSequence = [  # without it the numbers of a report would differ by their groups alone
        sr.CodeContentItem(
            sr.CodedConcept("246090004", "SCT", "Associated finding"),
            finding(label),
            relationship_type=sr.RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
    ]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derived_uid(image.SOPInstanceUID, author, f"tracking {label}"), identifier=meaning(label)
        ),
        finding_sites=[sr.FindingSite(anatomic_location=codes.SCT.Lung)],
        algorithm_id=algorithm(author),
        finding_type=finding(label) if answer.asserted and label == answer.predicted_class else None,
        measurements=[certainty],
        source_images=[sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)],
    )


def _summary(answer: Answer, author: Author) -> str:
    """Return the text for people: what to know first, then all probabilities."""
    ranked = sorted(answer.probabilities.items(), key=lambda each: -each[1])
    shares = ", ".join(f"{meaning(label)} {probability:.1%}" for label, probability in ranked)
    return " ".join([*cautions(answer, author), f"Model's probabilities: {shares}."])
