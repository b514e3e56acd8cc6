"""The gallery shows typical correct predictions and the worst errors."""

import base64
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.evaluation.predictions import Predictions
from cxr.imaging.encode import jpeg_data_url
from cxr.reporting.gallery import Pick, contact_sheet, pick_images, pick_most_confident_errors
from cxr.reporting.report import GalleryItem


def predictions(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], patients: Sequence[str] = ()
) -> Predictions:
    rows = len(labels)
    return Predictions(
        classes=("normal", "viral", "bacterial")[: probabilities.shape[1]],
        image_ids=np.array([f"image-{row}" for row in range(rows)], object),
        sources=np.full(rows, "one", object),
        patients=np.array(patients or [f"patient-{row}" for row in range(rows)], object),
        blocks=np.zeros(rows, np.int64),
        labels=labels,
        uncalibrated=probabilities,
        calibrated=probabilities,
    )


def test_right_images_are_drawn_by_seed_and_errors_are_the_most_confident() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(3), 300)
    labels = np.arange(300) % 3
    picks = pick_images(predictions(labels, probabilities), per_class=2, seed=4)
    assert picks == pick_images(predictions(labels, probabilities), per_class=2, seed=4)
    assert picks != pick_images(predictions(labels, probabilities), per_class=2, seed=5)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    assert [labels[pick.row] for pick in picks] == [0] * 4 + [1] * 4 + [2] * 4
    for pick in picks:
        assert pick.correct == (labels[pick.row] == predicted[pick.row])
    errors = [pick.row for pick in picks[:4] if not pick.correct]
    wrong = (labels == 0) & (predicted != 0)
    assert sorted(confidence[errors], reverse=True) == sorted(confidence[wrong], reverse=True)[:2]


def test_a_class_without_errors_or_without_images_shows_what_there_is() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]])
    assert pick_images(predictions(np.array([0, 1]), probabilities), per_class=3, seed=0) == [
        Pick(0, True),
        Pick(1, False),
    ]


def test_the_most_confident_errors_come_from_all_classes_the_most_confident_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]])
    labels = np.array([0, 0, 1, 0, 1])
    assert pick_most_confident_errors(predictions(labels, probabilities), at_most=3) == [
        Pick(1, False),
        Pick(3, False),
        Pick(2, False),
    ]
    assert pick_most_confident_errors(predictions(labels[:1], probabilities[:1]), at_most=3) == []


def test_a_patient_is_among_the_errors_once() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    found = predictions(np.array([1, 1, 1]), probabilities, patients=("ann", "ann", "bob"))
    assert pick_most_confident_errors(found, at_most=3) == [Pick(0, False), Pick(2, False)]
    assert pick_images(found, per_class=2, seed=0) == [Pick(0, False), Pick(2, False)]


def test_a_picture_comes_back_from_its_address_in_its_colours() -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[..., 0] = 200  # red in RGB
    data = base64.b64decode(jpeg_data_url(picture).removeprefix("data:image/jpeg;base64,"))
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(read.astype(int) - picture).max() < 8


def test_a_sheet_shows_each_image_beside_its_heat_three_in_a_row() -> None:
    def item(grey: int) -> GalleryItem:
        image, heat = np.full((320, 320), grey, np.uint8), np.full((640, 480, 3), (grey, 0, 0), np.uint8)
        return GalleryItem("an-image", jpeg_data_url(image), jpeg_data_url(heat), "viral", "normal", 0.75, False, "one")

    greys = (50, 100, 150, 200)
    sheet = cv2.imdecode(np.frombuffer(contact_sheet([item(grey) for grey in greys]), np.uint8), cv2.IMREAD_COLOR)
    assert sheet is not None
    height = sheet.shape[0] // 2
    assert sheet.shape[1] == 3 * 2 * 320
    for number, grey in enumerate(greys):
        top, left = height * (number // 3), 640 * (number % 3)
        np.testing.assert_allclose(sheet[top + 160, left + 160], [grey] * 3, atol=4)
        np.testing.assert_allclose(sheet[top + 160, left + 480], [0, 0, grey], atol=12)
        np.testing.assert_allclose(sheet[top + 160, left + 330], [0, 0, 0], atol=12)  # the aspect is kept
    assert sheet[height + 160, 900].min() > 250  # no fifth image
