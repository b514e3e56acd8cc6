"""Answers as DICOM objects: others can read them, they belong to the image's study, and they are never images."""

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


def summary(report_of_a_image: bytes) -> str:
    items = pydicom.dcmread(io.BytesIO(report_of_a_image)).ContentSequence
    concepts = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in items if item.ValueType == "TEXT"}
    said = concepts["Summary"].TextValue
    return str(said)


def dcmtk(command: str, dicom: bytes, folder: Path) -> str:
    """Return what a command of dcmtk says of a file; it fails where the file does not keep to the standard."""
    (folder / "answer.dcm").write_bytes(dicom)
    done = subprocess.run([command, str(folder / "answer.dcm")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_report_holds_each_probability_by_code_the_finding_and_the_referral() -> None:
    read = highdicom.sr.srread(io.BytesIO(report(dicom_image(picture()))))
    (group,) = read.content.get_image_measurement_groups()
    assert {measurement.name.value: measurement.value for measurement in group.get_measurements()} == {
        "P_NORMAL": 0.125,
        "P_VIRAL": 0.625,
        "P_BACTERIAL": 0.25,
    }
    said = {evaluation.name.meaning: evaluation.value.meaning for evaluation in group.get_qualitative_evaluations()}
    assert said == {"Refer to a reader first": "Yes", "Image out of distribution": "No"}
    assert group.finding_type.meaning == "Viral pneumonia"
    assert [image.referenced_sop_instance_uid for image in group.source_images] == ["1.2.3.4.5"]


@pytest.mark.parametrize("made", [report, capture])
def test_an_answer_belongs_to_the_study_and_patient_of_its_image(made: Callable[..., bytes]) -> None:
    answer = pydicom.dcmread(io.BytesIO(made(dicom_image(picture(), PatientSex="F", StudyDate="20260228"))))
    assert (answer.StudyInstanceUID, answer.PatientID, answer.StudyDate) == ("1.2.3", "MRN-8675309", "20260228")
    assert str(answer.PatientName) == "Sorrowful^Jane"
    assert answer.SoftwareVersions == "12"
    assert NOT_CLINICAL in answer.SeriesDescription
    assert (answer.ContentDate, answer.ContentTime) == ("20260301", "123000")


def test_a_capture_shows_the_heat_and_names_its_image() -> None:
    answer = pydicom.dcmread(io.BytesIO(capture(dicom_image(picture()))))
    assert np.array_equal(answer.pixel_array, HEAT)
    assert answer.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.5"


@pytest.mark.parametrize("made", [report, capture])
def test_an_answer_that_is_made_again_is_the_same_object_and_another_models_is_not(made: Callable[..., bytes]) -> None:
    image = dicom_image(picture())
    newer, elsewhere = replace(AUTHOR, version="13"), replace(AUTHOR, weights_sha256="b" * 64)
    assert made(image) == made(image)
    answers = [made(image), made(image, author=newer), made(image, author=elsewhere)]
    uids = {pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID for data in answers}
    uids |= {pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID for data in (report(image), capture(image))}
    assert len(uids) == 4
    assert len({pydicom.dcmread(io.BytesIO(data)).SeriesInstanceUID for data in answers}) == 1
    assert all(len(uid) <= 64 and uid.is_valid for uid in uids)


@pytest.mark.parametrize("made", [report, capture])
def test_an_answer_is_never_read_as_a_image(made: Callable[..., bytes]) -> None:
    with pytest.raises(ImageError) as caught:
        decode_grey(made(dicom_image(picture())), name="answer", max_pixels=10**6)
    assert caught.value.reason in {"no pixels", "other modality"}


def test_a_name_in_another_script_stays_that_name() -> None:
    image = dicom_image(picture(), SpecificCharacterSet="ISO_IR 126", PatientName="Διονυσιος")
    assert str(pydicom.dcmread(io.BytesIO(report(image))).PatientName) == "Διονυσιος"


def test_a_image_without_a_study_gets_no_answer_and_no_value_is_quoted() -> None:
    with pytest.raises(ImageError) as caught:
        report(dicom_image(picture(), StudyInstanceUID=None))
    assert str(caught.value) == "image.dcm has no StudyInstanceUID, so no answer can be filed beside it"


def test_a_class_that_has_no_code_elsewhere_gets_one_of_ours() -> None:
    answer = Answer({"fungal": 0.9, "normal": 0.1}, refer=False)
    read = highdicom.sr.srread(io.BytesIO(report(dicom_image(picture()), answer)))
    (group,) = read.content.get_image_measurement_groups()
    assert (group.finding_type.scheme_designator, group.finding_type.meaning) == ("99CXR", "fungal")


def test_a_person_reads_the_probabilities_the_referral_and_every_caution_in_one_paragraph() -> None:
    image = dicom_image(picture())
    assert summary(report(image)) == (
        "Model's probabilities: Viral pneumonia 62.5%, Bacterial pneumonia 25.0%, Normal 12.5%. "
        f"The model is uncertain: a reader should see this image first. {NOT_CLINICAL}"
    )
    odd = replace(ANSWER, warning="Unlike the images that the model was judged on")
    said = summary(report(image, odd, replace(AUTHOR, synthetic=True)))
    assert said.endswith(f"Unlike the images that the model was judged on. {notice(synthetic=True)}")
    drawn = pydicom.dcmread(io.BytesIO(capture(image, odd))).DerivationDescription
    assert drawn.startswith(f"Grad-CAM for Viral pneumonia, {MODEL} version 12. Unlike the images")


def test_a_model_without_a_threshold_says_nothing_of_a_referral() -> None:
    read = highdicom.sr.srread(io.BytesIO(report(dicom_image(picture()), replace(ANSWER, refer=None))))
    (group,) = read.content.get_image_measurement_groups()
    assert [evaluation.name.value for evaluation in group.get_qualitative_evaluations()] == ["UNLIKE"]


def test_another_readers_tool_takes_a_report_without_a_complaint(tmp_path: Path) -> None:
    shown = dcmtk("dsrdump", report(dicom_image(picture())), tmp_path)
    assert "Comprehensive SR Document" in shown
    assert '<contains NUM:(,,"Probability: Viral pneumonia")="0.625"' in shown
    assert "viral" not in dcmtk("dsr2xml", report(dicom_image(picture())), tmp_path).split("<content>")[0].lower()


def test_the_reports_model_is_the_registrys() -> None:
    assert MODEL == versions.MODEL
