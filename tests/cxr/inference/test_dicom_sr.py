"""Answers as DICOM objects: other tools can read them, they belong to the study, and are never classified."""

import io
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from cxr.common.errors import ImageError
from cxr.common.notices import NOT_CLINICAL, notice
from cxr.imaging.decode import decode_grey
from cxr.inference.answer import Answer
from cxr.inference.dicom_sr import MODEL, Author, secondary_capture, structured_report
from cxr.registry import versions
from tests.support.dicom_images import dicom_image, picture

ANSWER = Answer({"normal": 0.125, "viral": 0.625, "bacterial": 0.25}, refer=True)
AUTHOR = Author("12", "a" * 64, synthetic=False)
NOON = datetime(2026, 3, 1, 12, 30)
HEAT = np.zeros((40, 56, 3), np.uint8) + np.array([250, 10, 20], np.uint8)


def report(image: bytes, answer: Answer = ANSWER, author: Author = AUTHOR) -> bytes:
    return structured_report(image, answer, author=author, name="image.dcm", made_at=NOON)


def capture(image: bytes, answer: Answer = ANSWER, author: Author = AUTHOR) -> bytes:
    return secondary_capture(image, HEAT, answer, author=author, name="image.dcm", made_at=NOON)


def summary(dicom: bytes) -> str:
    items = pydicom.dcmread(io.BytesIO(dicom)).ContentSequence
    concepts = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in items if item.ValueType == "TEXT"}
    return str(concepts["Summary"].TextValue)


def dcmtk(command: str, dicom: bytes, folder: Path) -> str:
    """Return the output of a dcmtk command, which fails on a file that violates the standard."""
    (folder / "answer.dcm").write_bytes(dicom)
    done = subprocess.run([command, str(folder / "answer.dcm")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_report_codes_each_probability_the_finding_and_the_referral() -> None:
    read = highdicom.sr.srread(io.BytesIO(report(dicom_image(picture()))))
    (group,) = read.content.get_image_measurement_groups()
    assert {measurement.name.value: measurement.value for measurement in group.get_measurements()} == {
        "P_NORMAL": 0.125,
        "P_VIRAL": 0.625,
        "P_BACTERIAL": 0.25,
    }
    qualities = {one.name.meaning: one.value.meaning for one in group.get_qualitative_evaluations()}
    assert qualities == {"Refer to a reader first": "Yes", "Image out of distribution": "No"}
    assert group.finding_type.meaning == "Viral pneumonia"
    assert [image.referenced_sop_instance_uid for image in group.source_images] == ["1.2.3.4.5"]


@pytest.mark.parametrize("create", [report, capture])
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


@pytest.mark.parametrize("create", [report, capture])
def test_the_same_answer_is_the_same_object_and_that_of_another_model_is_not(create: Callable[..., bytes]) -> None:
    image = dicom_image(picture())
    newer, elsewhere = replace(AUTHOR, version="13"), replace(AUTHOR, weights_sha256="b" * 64)
    assert create(image) == create(image)
    answers = [create(image), create(image, author=newer), create(image, author=elsewhere)]
    uids = {pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID for data in answers}
    uids |= {pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID for data in (report(image), capture(image))}
    assert len(uids) == 4
    assert len({pydicom.dcmread(io.BytesIO(data)).SeriesInstanceUID for data in answers}) == 1
    assert all(len(uid) <= 64 and uid.is_valid for uid in uids)


@pytest.mark.parametrize("create", [report, capture])
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


def test_a_class_without_a_standard_code_gets_a_private_code() -> None:
    answer = Answer({"fungal": 0.9, "normal": 0.1}, refer=False)
    read = highdicom.sr.srread(io.BytesIO(report(dicom_image(picture()), answer)))
    (group,) = read.content.get_image_measurement_groups()
    assert (group.finding_type.scheme_designator, group.finding_type.meaning) == ("99CXR", "fungal")


def test_the_summary_holds_probabilities_referral_warning_and_disclaimers() -> None:
    image = dicom_image(picture())
    assert summary(report(image)) == (
        "Model's probabilities: Viral pneumonia 62.5%, Bacterial pneumonia 25.0%, Normal 12.5%. "
        f"The model is uncertain: a reader should see this image first. {NOT_CLINICAL}"
    )
    odd = replace(ANSWER, warning="Out of distribution")
    warned = summary(report(image, odd, replace(AUTHOR, synthetic=True)))
    assert warned.endswith(f"Out of distribution. {notice(synthetic=True)}")
    drawn = pydicom.dcmread(io.BytesIO(capture(image, odd))).DerivationDescription
    assert drawn.startswith(f"Grad-CAM for Viral pneumonia, {MODEL} version 12. Out of")


def test_a_report_has_no_referral_without_a_threshold() -> None:
    read = highdicom.sr.srread(io.BytesIO(report(dicom_image(picture()), replace(ANSWER, refer=None))))
    (group,) = read.content.get_image_measurement_groups()
    assert [evaluation.name.value for evaluation in group.get_qualitative_evaluations()] == ["OOD"]


def test_dcmtk_reads_a_report_without_a_complaint(tmp_path: Path) -> None:
    shown = dcmtk("dsrdump", report(dicom_image(picture())), tmp_path)
    assert "Comprehensive SR Document" in shown
    assert '<contains NUM:(,,"Probability: Viral pneumonia")="0.625"' in shown
    assert "viral" not in dcmtk("dsr2xml", report(dicom_image(picture())), tmp_path).split("<content>")[0].lower()


def test_reports_name_the_model_as_the_registry_does() -> None:
    assert MODEL == versions.MODEL
