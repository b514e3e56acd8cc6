"""Answers as DICOM objects: others can read them, they belong to the film's study, and they are never films."""

import io
from collections.abc import Callable
from datetime import datetime

import highdicom
import numpy as np
import pydicom
import pytest

from cxr.dicom_result import NOT_CLINICAL, Answer, secondary_capture, structured_report
from cxr.errors import ImageError
from cxr.images import decode_grey
from tests.dicom_films import dicom_film, picture

ANSWER = Answer({"normal": 0.125, "viral": 0.625, "bacterial": 0.25}, True, "chest-xray-pneumonia", "12")
NOON = datetime(2026, 3, 1, 12, 30)
HEAT = np.zeros((40, 56, 3), np.uint8) + np.array([250, 10, 20], np.uint8)


def report(film: bytes, answer: Answer = ANSWER) -> bytes:
    return structured_report(film, answer, name="film.dcm", made_at=NOON)


def capture(film: bytes, answer: Answer = ANSWER) -> bytes:
    return secondary_capture(film, HEAT, answer, name="film.dcm", made_at=NOON)


def test_a_report_holds_each_probability_by_code_the_finding_and_the_referral() -> None:
    read = highdicom.sr.srread(io.BytesIO(report(dicom_film(picture()))))
    (group,) = read.content.get_image_measurement_groups()
    assert {measurement.name.value: measurement.value for measurement in group.get_measurements()} == {
        "P_NORMAL": 0.125,
        "P_VIRAL": 0.625,
        "P_BACTERIAL": 0.25,
    }
    said = {evaluation.name.meaning: evaluation.value.meaning for evaluation in group.get_qualitative_evaluations()}
    assert said == {"To a reader first": "Yes"}
    assert group.finding_type.meaning == "Viral pneumonia"
    assert NOT_CLINICAL in [item.TextValue for item in read.ContentSequence if item.ValueType == "TEXT"]
    assert [image.referenced_sop_instance_uid for image in group.source_images] == ["1.2.3.4.5"]


@pytest.mark.parametrize("made", [report, capture])
def test_an_answer_belongs_to_the_study_and_patient_of_its_film(made: Callable[..., bytes]) -> None:
    answer = pydicom.dcmread(io.BytesIO(made(dicom_film(picture(), PatientSex="F", StudyDate="20260228"))))
    assert (answer.StudyInstanceUID, answer.PatientID, answer.StudyDate) == ("1.2.3", "MRN-8675309", "20260228")
    assert str(answer.PatientName) == "Sorrowful^Jane"
    assert answer.SoftwareVersions == "12"
    assert NOT_CLINICAL in answer.SeriesDescription
    assert (answer.ContentDate, answer.ContentTime) == ("20260301", "123000")


def test_a_capture_shows_the_heat_and_names_its_film() -> None:
    answer = pydicom.dcmread(io.BytesIO(capture(dicom_film(picture()))))
    assert np.array_equal(answer.pixel_array, HEAT)
    assert answer.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.5"


@pytest.mark.parametrize("made", [report, capture])
def test_an_answer_that_is_made_again_is_the_same_object_and_another_models_is_not(made: Callable[..., bytes]) -> None:
    film = dicom_film(picture())
    newer = Answer(ANSWER.probabilities, True, ANSWER.model_name, "13")
    assert made(film) == made(film)
    uids = {pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID for data in (made(film), made(film, newer))}
    uids |= {pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID for data in (report(film), capture(film))}
    assert len(uids) == 3
    assert all(len(uid) <= 64 and uid.is_valid for uid in uids)


@pytest.mark.parametrize("made", [report, capture])
def test_an_answer_is_never_read_as_a_film(made: Callable[..., bytes]) -> None:
    with pytest.raises(ImageError) as caught:
        decode_grey(made(dicom_film(picture())), name="answer", max_pixels=10**6)
    assert caught.value.reason in {"no pixels", "other modality"}


def test_a_name_in_another_script_stays_that_name() -> None:
    film = dicom_film(picture(), SpecificCharacterSet="ISO_IR 126", PatientName="Διονυσιος")
    assert str(pydicom.dcmread(io.BytesIO(report(film))).PatientName) == "Διονυσιος"


def test_a_film_without_a_study_gets_no_answer_and_no_value_is_quoted() -> None:
    with pytest.raises(ImageError) as caught:
        report(dicom_film(picture(), StudyInstanceUID=None))
    assert str(caught.value) == "film.dcm has no StudyInstanceUID, so no answer can be filed beside it"


def test_a_class_that_has_no_code_elsewhere_gets_one_of_ours() -> None:
    answer = Answer({"fungal": 0.9, "normal": 0.1}, False, "m", "1")
    read = highdicom.sr.srread(io.BytesIO(report(dicom_film(picture()), answer)))
    (group,) = read.content.get_image_measurement_groups()
    assert (group.finding_type.scheme_designator, group.finding_type.meaning) == ("99CXR", "fungal")
