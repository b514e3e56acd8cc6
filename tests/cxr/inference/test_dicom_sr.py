"""Answers as DICOM objects: other tools can read them, they belong to the study, and are never classified."""

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from cxr.common.errors import ImageError
from cxr.common.notices import NOT_CLINICAL, notice
from cxr.imaging.decode import decode_grey
from cxr.inference.answer import Answer
from cxr.inference.dicom_objects.heat_map import parametric_map
from cxr.inference.dicom_objects.overlay import secondary_capture
from cxr.inference.dicom_objects.report import structured_report
from cxr.inference.dicom_objects.shared import MODEL, Author, earlier_series_uid, is_report_of
from cxr.registry import versions
from tests.support.images.dicom_answers import checked
from tests.support.images.dicom_images import COMPLETE, dicom_image, picture

ANSWER = Answer({"normal": 0.125, "viral": 0.625, "bacterial": 0.25}, refer=False)
REFERRED, WARNED = replace(ANSWER, refer=True), replace(ANSWER, warning="Looks upside down")
AUTHOR = Author("12", "a" * 64, False, ("network=resnet50 x 5", "temperature=1.2"))
NOON = datetime(2026, 3, 1, 12, 30)
LEVELS = np.linspace(0, 1, 20 * 28, dtype=np.float32).reshape(20, 28)  # half the size of `picture`
HEAT = np.zeros((40, 56, 3), np.uint8) + np.array([250, 10, 20], np.uint8)


def report(image: bytes, answer: Answer = ANSWER, author: Author = AUTHOR) -> bytes:
    return structured_report(
        image, answer, author=author, name="image.dcm", made_at=NOON, explained_by=("overlay", "heat")
    )


def capture(image: bytes, answer: Answer = ANSWER, author: Author = AUTHOR) -> bytes:
    return secondary_capture(image, HEAT, answer, author=author, name="image.dcm", made_at=NOON)


def heat_map(image: bytes, answer: Answer = ANSWER, author: Author = AUTHOR) -> bytes:
    return parametric_map(image, LEVELS, answer, author=author, name="image.dcm", made_at=NOON)


def groups(dicom: bytes) -> dict[str, list[str]]:
    """Return the findings by the class of their measurement group."""
    read = highdicom.sr.srread(io.BytesIO(dicom)).content.get_image_measurement_groups()
    return {one.tracking_identifier: [one.finding_type.meaning] if one.finding_type else [] for one in read}


def root_items(dicom: bytes) -> list[tuple[str, str]]:
    """Return name and value of the items below the root that are text or a code."""
    items = pydicom.dcmread(io.BytesIO(dicom)).ContentSequence
    values = {"TEXT": lambda item: item.TextValue, "CODE": lambda item: item.ConceptCodeSequence[0].CodeMeaning}
    return [
        (item.ConceptNameCodeSequence[0].CodeMeaning, str(values[item.ValueType](item)))
        for item in items
        if item.ValueType in values and item.RelationshipType == "CONTAINS"
    ]


def test_a_report_codes_the_certainty_of_each_class_and_the_algorithm() -> None:
    read = highdicom.sr.srread(io.BytesIO(report(dicom_image(picture()))))
    measured = {}
    for group in read.content.get_image_measurement_groups():
        (certainty,) = group.get_measurements(name=codes.DCM.CertaintyOfFinding)
        (of_class,) = certainty[0].ContentSequence
        measured[of_class.value.value] = (certainty.value, certainty.unit.value)
        assert [image.referenced_sop_instance_uid for image in group.source_images] == ["1.2.3.4.5"]
    assert measured == {"827032003": (12.5, "%"), "75570004": (62.5, "%"), "53084003": (25.0, "%")}


@pytest.mark.parametrize(
    ("answer", "finding", "status"),
    [
        (ANSWER, ["Viral pneumonia"], "All algorithms succeeded; with findings"),
        (replace(ANSWER, refer=None), ["Viral pneumonia"], "All algorithms succeeded; with findings"),
        (REFERRED, [], "No algorithms succeeded; without findings"),
        (WARNED, [], "No algorithms succeeded; without findings"),
    ],
)
def test_a_finding_is_asserted_only_where_no_reader_has_to_look_first(
    answer: Answer, finding: list[str], status: str
) -> None:
    made = report(dicom_image(picture()), answer)
    assert groups(made) == {"Normal lung": [], "Viral pneumonia": finding, "Bacterial pneumonia": []}
    items = dict(root_items(made))
    assert items["CAD Processing and Findings Summary"] == status
    assert ("Recommendation" in items, "Quality Finding" in items) == (not finding, answer is WARNED)


def test_a_normal_image_has_a_finding_and_an_analysis_without_findings() -> None:
    made = report(dicom_image(picture()), Answer({"normal": 0.9, "covid": 0.1}, refer=False))
    assert groups(made) == {"Normal lung": ["Normal lung"], "Pneumonia caused by SARS-CoV-2": []}
    assert root_items(made)[0][1] == "All algorithms succeeded; without findings"


@pytest.mark.parametrize("create", [report, capture, heat_map])
def test_an_object_belongs_to_the_study_and_patient_of_its_image(create: Callable[..., bytes]) -> None:
    answer = pydicom.dcmread(io.BytesIO(create(dicom_image(picture(), PatientSex="F", StudyDate="20260228"))))
    assert (answer.StudyInstanceUID, answer.PatientID, answer.StudyDate) == ("1.2.3", "MRN-8675309", "20260228")
    assert str(answer.PatientName) == "Sorrowful^Jane"
    assert answer.SoftwareVersions == "12"
    assert NOT_CLINICAL in answer.SeriesDescription
    assert (answer.ContentDate, answer.ContentTime) == ("20260301", "123000")


def test_a_capture_shows_the_heat_and_names_its_image() -> None:
    answer = pydicom.dcmread(io.BytesIO(capture(dicom_image(picture()))))
    assert np.array_equal(answer.pixel_array, HEAT)
    assert answer.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.5"


@pytest.mark.parametrize(
    ("tags", "spacing", "position", "directions"),
    [
        # A pixel of the map covers two by two of the image, so its centre lies half a pixel further.
        ({"ImagerPixelSpacing": [0.2, 0.1]}, [0.4, 0.2], [0.05, 0, -0.1], [1, 0, 0, 0, 0, -1]),
        (
            {"PixelSpacing": [0.2, 0.2], "PatientOrientation": ["R", "F"]},
            [0.4] * 2,
            [-0.1, 0, -0.1],
            [-1, 0, 0, 0, 0, -1],
        ),
        ({"PatientOrientation": ["L", "R"]}, None, [0, 0, 0], [1, 0, 0, 0, 0, -1]),  # the tag is wrong
    ],
)
def test_a_heat_map_says_what_its_values_are_and_where_they_lie(
    tags: dict[str, Any], spacing: list[float] | None, position: list[float], directions: list[float], tmp_path: Path
) -> None:
    made = heat_map(dicom_image(picture(), **COMPLETE, **tags))
    checked("dciodvfy", made, tmp_path)
    read = highdicom.imread(io.BytesIO(made))
    assert np.array_equal(read.pixel_array, LEVELS)
    shared, frame = read.SharedFunctionalGroupsSequence[0], read.PerFrameFunctionalGroupsSequence[0]
    quantity = shared.RealWorldValueMappingSequence[0].QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("130403", "DCM")
    assert shared.PixelMeasuresSequence[0].get("PixelSpacing") == spacing
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == directions
    assert frame.PlanePositionSequence[0].ImagePositionPatient == position
    (source,) = frame.DerivationImageSequence[0].SourceImageSequence
    assert source.ReferencedSOPInstanceUID == "1.2.3.4.5"


@pytest.mark.parametrize("create", [report, capture, heat_map])
def test_the_same_answer_is_the_same_object_and_that_of_another_model_is_not(create: Callable[..., bytes]) -> None:
    image = dicom_image(picture())
    newer, elsewhere = replace(AUTHOR, version="13"), replace(AUTHOR, weights_sha256="b" * 64)
    assert create(image) == create(image)
    answers = [create(image), create(image, author=newer), create(image, author=elsewhere)]
    uids = {pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID for data in answers}
    uids |= {
        pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID for data in (report(image), capture(image), heat_map(image))
    }
    assert len(uids) == 5
    assert all(len(uid) <= 64 and uid.is_valid for uid in uids)


@pytest.mark.parametrize("create", [report, capture, heat_map])
def test_an_object_is_never_read_as_an_image(create: Callable[..., bytes]) -> None:
    with pytest.raises(ImageError) as caught:
        decode_grey(create(dicom_image(picture())), name="answer", max_pixels=10**6)
    assert caught.value.reason in {"no pixels", "other modality"}


def test_a_name_in_another_script_is_preserved() -> None:
    image = dicom_image(picture(), SpecificCharacterSet="ISO_IR 126", PatientName="Διονυσιος")
    assert str(pydicom.dcmread(io.BytesIO(report(image))).PatientName) == "Διονυσιος"


def test_an_image_without_a_study_is_an_error_that_quotes_no_tag() -> None:
    with pytest.raises(ImageError) as caught:
        report(dicom_image(picture(), StudyInstanceUID=None))
    assert caught.value.reason == "not an image"
    assert "StudyInstanceUID" in str(caught.value)


def test_warning_and_referral_come_before_the_probabilities() -> None:
    image = dicom_image(picture())
    numbers = "Model's probabilities: Viral pneumonia 62.5%, Bacterial pneumonia 25.0%, Normal lung 12.5%."
    assert dict(root_items(report(image)))["Summary"] == f"{NOT_CLINICAL} {numbers}"
    referred = "The model is uncertain: a reader should see this image first."
    assert dict(root_items(report(image, REFERRED)))["Summary"] == f"{referred} {NOT_CLINICAL} {numbers}"
    warned = report(image, WARNED, replace(AUTHOR, synthetic=True))
    said = f"NO ANSWER: Looks upside down. {notice(synthetic=True)}"
    assert dict(root_items(warned))["Summary"] == f"{said} {numbers}"
    drawn = pydicom.dcmread(io.BytesIO(capture(image, WARNED))).DerivationDescription
    assert drawn == f"NO ANSWER: Looks upside down. {NOT_CLINICAL} Grad-CAM for Viral pneumonia, {MODEL} version 12."


def test_report_overlay_and_heat_map_refer_to_each_other() -> None:
    image = dicom_image(picture())
    made, drawn, values = (pydicom.dcmread(io.BytesIO(create(image))) for create in (report, capture, heat_map))
    for one in (drawn, values):
        assert [item.ReferencedSOPInstanceUID for item in one.ReferencedInstanceSequence] == [made.SOPInstanceUID]
    shown = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in made.ContentSequence
        if item.ValueType == "IMAGE"
    }
    assert shown == {"Illustration of ROI": drawn.SOPInstanceUID, "Visual explanation": values.SOPInstanceUID}
    assert (drawn.BurnedInAnnotation, values.BurnedInAnnotation) == ("YES", "NO")
    alone = structured_report(image, ANSWER, author=AUTHOR, name="image.dcm", made_at=NOON)
    assert str(drawn.SOPInstanceUID).encode() not in alone


def test_a_series_holds_the_reports_of_a_study_by_one_version() -> None:
    images = [dicom_image(picture(), SOPInstanceUID=f"1.2.3.4.{one}", InstanceNumber=one) for one in (5, 6)]
    newer = replace(AUTHOR, version="13")
    made = [
        pydicom.dcmread(io.BytesIO(create(image, author=author)))
        for create in (report, capture)
        for author in (AUTHOR, newer)
        for image in images
    ]
    series = {(one.Modality, one.SoftwareVersions): (one.SeriesInstanceUID, one.SeriesNumber) for one in made}
    assert len(set(series.values())) == len({number for _, number in series.values()}) == 4
    assert [(one.Modality, one.SoftwareVersions, one.InstanceNumber) for one in made] == [
        (modality, version, number) for modality in ("SR", "OT") for version in ("12", "13") for number in (5, 6)
    ]


def test_a_report_is_known_by_its_uid_whichever_version_made_it() -> None:
    uid = pydicom.dcmread(io.BytesIO(report(dicom_image(picture())))).SOPInstanceUID
    assert is_report_of(uid, "1.2.3.4.5")
    assert not is_report_of(uid, "1.2.3.4.6")
    assert not is_report_of("1.2.840.1", "1.2.3.4.5")
    # As release 0.6.0 wrote it.
    assert earlier_series_uid("1.2.3.4.5") == "2.25.62657651849750762980389606186241767704"


@pytest.mark.parametrize("answer", [ANSWER, REFERRED, WARNED], ids=["answered", "referred", "warned"])
def test_validators_have_no_complaint(answer: Answer, tmp_path: Path) -> None:
    image = dicom_image(picture(), **COMPLETE)
    for create in (report, capture, heat_map):
        checked("dciodvfy", create(image, answer), tmp_path)
    shown = checked("dsrdump", report(image, answer), tmp_path)
    assert "Comprehensive 3D SR Document" in shown
    assert '<contains NUM:(,,"Certainty of Finding")="62.5" (%,UCUM,"Percent")>' in shown
    assert "99CXR" not in shown


def test_reports_name_the_model_as_the_registry_does() -> None:
    assert MODEL == versions.MODEL
