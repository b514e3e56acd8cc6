"""Out-of-distribution images get a warning, by limits that depend on the reference."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cxr.inference.ood import OF_ANOTHER_KIND, OTHER_GREY_LEVELS, ood_detector
from cxr.models.reference import MEASURES, Reference, image_measures, make_reference, read_reference, write_reference

Images = NDArray[np.uint8]
Features = NDArray[np.float32]
IMAGES = 400


def images(count: int, seed: int) -> Images:
    """A bright middle on a dark background, of varying brightness and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1:1:32j, -1:1:32j]
    middle = np.exp(-(rows**2 + columns**2) * 3)
    levels = 40 + 120 * middle * rng.uniform(0.8, 1.2, (count, 1, 1)) + rng.normal(0, 12, (count, 32, 32))
    return np.asarray(levels.clip(0, 255), np.uint8)


def features(count: int, seed: int, *, along: bool = True) -> Features:
    """Features: of images along four of 120 directions; of other pictures along the rest, and weaker."""
    rng = np.random.default_rng(seed)
    seen = np.abs(rng.normal(0, 0.05, (count, 120)))
    if along:
        seen[:, :4] += np.abs(rng.normal(1, 0.2, (count, 4)))
    else:
        seen[:, 4:] += np.abs(rng.normal(0.1, 0.05, (count, 116)))
    return seen.astype(np.float32)


def reference(count: int = IMAGES) -> Reference:
    measured = image_measures(images(count, 1))
    return make_reference(
        classes=("normal", "ill"),
        images=np.column_stack([measured[name] for name in MEASURES if name in measured]),
        features=features(count, 1),
        probabilities=np.full((count, 2), 0.5),
        patients=np.array([f"p{number // 2}" for number in range(count)], object),
    )


def warnings(images: Images, seen: Features, of: Reference | None = None) -> list[str | None]:
    detector = ood_detector(of or reference())
    assert detector is not None
    return detector.warnings(images, seen)


def test_few_images_like_those_of_the_reference_get_a_warning() -> None:
    results = warnings(images(1000, 2), features(1000, 2))
    assert sum(warning is not None for warning in results) <= 30  # the two limits allow 1 in 200 each


def test_a_picture_with_other_features_gets_a_warning_even_when_they_are_weaker() -> None:
    assert warnings(images(50, 3), features(50, 3, along=False)) == [OF_ANOTHER_KIND] * 50
    assert features(50, 3, along=False).std() < features(50, 3).std()


def test_inverted_grey_levels_get_a_warning() -> None:
    results = warnings(255 - images(50, 4), features(50, 4))
    assert None not in results
    assert results.count(OTHER_GREY_LEVELS) >= 48


def test_other_grey_levels_get_a_warning() -> None:
    bright = (images(50, 5) // 4 + 190).astype(np.uint8)
    results = warnings(bright, features(50, 5))
    assert None not in results
    assert results.count(OTHER_GREY_LEVELS) >= 48


def test_the_limits_depend_on_the_reference() -> None:
    pixels, seen = images(50, 6), features(50, 6)
    assert warnings(pixels, seen).count(None) >= 48
    darker = images(IMAGES, 1) // 2
    measured = image_measures(darker)
    of_darker = make_reference(
        classes=("normal", "ill"),
        images=np.column_stack([measured[name] for name in MEASURES if name in measured]),
        features=features(IMAGES, 1),
        probabilities=np.full((IMAGES, 2), 0.5),
        patients=np.arange(IMAGES).astype(str).astype(object),
    )
    assert all(warnings(pixels, seen, of_darker))
    assert warnings(darker[:50], seen, of_darker).count(None) >= 48


def test_a_warning_does_not_depend_on_the_other_images_of_a_batch() -> None:
    pixels = np.concatenate([images(5, 7), 255 - images(5, 7)])
    seen = np.concatenate([features(5, 7), features(5, 8, along=False)])
    together = warnings(pixels, seen)
    assert together == [warnings(pixels[[row]], seen[[row]])[0] for row in range(10)]


def test_a_reference_of_few_images_has_no_limits() -> None:
    assert ood_detector(reference(40)) is None


def test_a_reference_without_feature_shares_warns_of_grey_levels_only() -> None:
    old = replace(reference(), outside=None)
    assert warnings(images(5, 9), features(5, 9, along=False), old) == [None] * 5
    assert warnings(255 - images(5, 9), features(5, 9), old) == [OTHER_GREY_LEVELS] * 5


@pytest.mark.parametrize("old", [False, True])
def test_a_stored_reference_gives_the_same_limits(old: bool, tmp_path: Path) -> None:
    made = replace(reference(), outside=None) if old else reference()
    write_reference(tmp_path / "reference.safetensors", made)
    read = read_reference(tmp_path / "reference.safetensors")
    ours, theirs = ood_detector(made), ood_detector(read)
    assert ours is not None
    assert theirs is not None
    assert ours.max_outside == theirs.max_outside
    assert ours.max_grey == theirs.max_grey
    assert (ours.max_outside is None) == old
