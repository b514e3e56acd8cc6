"""Reference statistics on synthetic images: measures, distances and the file."""

from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr.common.errors import WeightsError
from cxr.models.reference import (
    MEASURES,
    fit_space,
    image_measures,
    measure,
    read_reference,
    write_reference,
)
from tests.support.images.reference_images import features, later_images, model_reference


def test_measures_of_an_image_do_not_depend_on_its_batch() -> None:
    later, reference = later_images(), model_reference()
    together = measure(later, features(later), reference)
    assert tuple(together) == MEASURES
    assert all(values.shape == (len(later),) and values.dtype == np.float32 for values in together.values())
    alone = measure(later[150:151], features(later[150:151]), reference)
    assert all(np.isclose(alone[name][0], together[name][150], rtol=1e-5) for name in MEASURES)
    assert all(len(values) == 0 for values in measure(later[:0], features(later[:0]), reference).values())


def test_image_measures_match_their_definitions() -> None:
    image = np.full((1, 32, 32), 51, np.uint8)
    image[:, 2:-2, 2:-2] = 255
    image[:, 2:-2, 2:16] = 0
    found = {name: float(values[0]) for name, values in image_measures(image).items()}
    black, white = 28 * 14 / 1024, 28 * 14 / 1024
    assert found["dark_share"] == pytest.approx(black)
    assert found["bright_share"] == pytest.approx(white)
    assert found["border"] == pytest.approx(0.2)
    assert found["brightness"] == pytest.approx((image / 255).mean(), abs=1e-6)
    assert found["contrast"] == pytest.approx((image / 255).std(), abs=1e-6)
    assert found["left_right"] == pytest.approx(28 * 14 / 512, abs=1e-6)
    blurred = np.asarray(cv2.GaussianBlur(image[0], (0, 0), 2), np.uint8)[None]
    assert image_measures(blurred)["sharpness"][0] < found["sharpness"]


def test_reference_is_read_as_written_and_its_file_is_reproducible(tmp_path: Path) -> None:
    path, reference = tmp_path / "reference.safetensors", model_reference()
    digest = write_reference(path, reference)
    assert write_reference(path, reference) == digest
    back = read_reference(path)
    assert back.classes == reference.classes
    for name in ("measures", "confidence", "predicted", "patients"):
        np.testing.assert_array_equal(getattr(back, name), getattr(reference, name))
    for field in fields(reference.space):
        np.testing.assert_array_equal(getattr(back.space, field.name), getattr(reference.space, field.name))
    assert b"patient-" not in path.read_bytes()


@pytest.mark.parametrize("content", [None, b"no tensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_missing_or_damaged_reference_names_the_command_to_run(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"dvc repro -f -s evaluate"):
        read_reference(path)


def test_images_of_the_reference_have_the_distances_of_new_images() -> None:
    later, reference = later_images(), model_reference()
    new = measure(later, features(later), reference)["feature_distance"]
    own = reference.measures[:, MEASURES.index("feature_distance")]
    assert np.median(own) == pytest.approx(np.median(new), rel=0.1)
    fitted_on = fit_space(features(later)).distance(features(later))
    assert np.median(fitted_on) < np.median(reference.space.distance(features(later)))


def test_constant_features_have_a_finite_distance() -> None:
    distance = fit_space(np.ones((20, 8), np.float32)).distance(np.ones((3, 8), np.float32))
    assert np.isfinite(distance).all()
