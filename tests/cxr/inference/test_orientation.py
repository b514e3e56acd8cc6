"""Images that are upside down, on their side, mirrored or inverted get a warning; upright ones do not."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cxr.common.errors import WeightsError
from cxr.dataset.synthetic_image import KERMANY_LOOK
from cxr.inference import orientation
from cxr.inference.orientation import INVERTED, MIRRORED, ON_ITS_SIDE, UPSIDE_DOWN, orientation_check
from tests.support.images.real_data import TEST_DATA, needs_real_images
from tests.support.images.reference_images import synthetic_images

Images = NDArray[np.uint8]


def warned(images: Images, *wanted: str) -> float:
    """Return the share of images with one of the warnings, or with any."""
    warnings = orientation_check().warnings(images)
    return float(np.mean([one in wanted if wanted else one is not None for one in warnings]))


def turned(images: Images, quarters: int) -> Images:
    return np.rot90(images, quarters, axes=(1, 2))


@pytest.mark.parametrize("version", range(orientation.VERSIONS))
def test_the_features_of_a_version_are_those_of_the_image_in_another_order(version: int) -> None:
    image = synthetic_images(KERMANY_LOOK, 1, seed=5)[:1]
    changed = np.rot90(image[:, :, ::-1] if version % 8 >= 4 else image, version % 4, axes=(1, 2))
    changed = 255 - changed if version >= 8 else changed
    reordered = orientation.edge_features(image)[:, orientation.version_orders()[version]]
    assert np.allclose(orientation.edge_features(changed), reordered, atol=1e-4)


def test_synthetic_images_are_told_from_their_turned_and_inverted_versions() -> None:
    images = synthetic_images(KERMANY_LOOK, 50, seed=6)
    assert warned(images) <= 0.02
    assert warned(turned(images, 2), UPSIDE_DOWN) >= 0.95
    assert warned(turned(images, 1), ON_ITS_SIDE) >= 0.95
    assert warned(turned(images, 3), ON_ITS_SIDE) >= 0.95
    assert warned(255 - images, INVERTED) >= 0.95


@needs_real_images
@pytest.mark.parametrize("folder", ["chest_xray/train/NORMAL", "Covid19-dataset/train/Normal"])
def test_real_images_of_both_sets_are_told_from_their_versions(folder: str) -> None:
    paths = sorted((TEST_DATA / "raw" / folder).iterdir())[::10][:60]
    images = np.stack([cv2.resize(np.asarray(cv2.imread(str(path), 0)), (112, 112)) for path in paths])
    assert warned(np.asarray(images, np.uint8)) <= 0.04
    assert warned(turned(images, 2)) >= 0.95
    assert warned(turned(images, 1)) >= 0.9
    assert warned(images[:, :, ::-1], MIRRORED) >= 0.5
    bordered = np.pad(images[:, 8:-8, 8:-8], ((0, 0), (8, 8), (8, 8)), constant_values=245)
    assert warned(bordered, INVERTED) == 0


def test_images_of_any_number_and_size_are_checked() -> None:
    check = orientation_check()
    assert check.warnings(np.zeros((0, 48, 48), np.uint8)) == []
    one, two = synthetic_images(KERMANY_LOOK, 1, seed=7)
    small = np.stack([cv2.resize(one, (32, 32)), cv2.resize(two, (32, 32))])
    of_both, of_one = (check.probabilities(orientation.edge_features(images)) for images in (small, small[:1]))
    assert np.allclose(of_one, of_both[:1], atol=1e-5)


def test_a_damaged_file_of_the_check_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "orientation.safetensors"
    damaged.write_bytes(orientation.WEIGHTS.read_bytes()[:-9])
    monkeypatch.setattr(orientation, "WEIGHTS", damaged)
    with pytest.raises(WeightsError, match=r"orientation\.safetensors is missing or damaged"):
        orientation_check.__wrapped__()
