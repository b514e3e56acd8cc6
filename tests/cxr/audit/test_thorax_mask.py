import numpy as np
import pytest
from numpy.typing import NDArray

from cxr.audit.thorax_mask import outline, thorax_mask
from cxr.common.classes import LABELS, Label
from cxr.dataset.synthetic_image import KERMANY_LOOK, draw_anatomy, draw_finding, draw_image

SIDE = 112


def drawn(*, opaque_side: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return an image of a bright body in dark air with two dark ellipses, and where these are."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    lungs = [np.square((x - side * 0.4) / 0.25) + np.square((y + 0.1) / 0.6) < 1 for side in (-1, 1)]
    image = np.where(np.abs(x) < 0.85, 170, 5).astype(np.uint8)
    image[np.abs(x) < 0.1] = 220
    for number, lung in enumerate(lungs):
        image[lung] = 180 if number == opaque_side else 90
    return image, np.asarray(lungs[0] | lungs[1], np.bool_)


def overlap(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return intersection over union."""
    return float((found & truth).sum() / (found | truth).sum())


def test_lungs_are_found_where_they_were_drawn() -> None:
    image, lungs = drawn()
    found = outline(image[None])
    assert not found.from_template[0]
    assert overlap(found.lungs[0], lungs) > 0.75


@pytest.mark.parametrize("side", [0, 1])
def test_an_opaque_lung_is_outlined_as_the_mirror_of_the_other(side: int) -> None:
    image, lungs = drawn(opaque_side=side)
    found = outline(image[None])
    assert not found.from_template[0]
    assert overlap(found.lungs[0], lungs) > 0.7


def test_air_beside_the_body_is_not_lung() -> None:
    image, _ = drawn()
    assert not outline(image[None]).lungs[0][:, :6].any()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_image_without_lungs_gets_the_template(level: int) -> None:
    blank = np.full((1, SIDE, SIDE), level, np.uint8)
    found = outline(blank)
    assert found.from_template.tolist() == [True]
    assert 0.15 < found.lungs.mean() < 0.45
    np.testing.assert_array_equal(found.lungs[0], found.lungs[0][:, ::-1])


@pytest.mark.parametrize("label", LABELS)
def test_outlines_of_synthetic_images_are_dark_and_central(label: Label) -> None:
    rng = np.random.default_rng(3)
    for _ in range(3):
        image = draw_image(draw_anatomy(rng), draw_finding(label, rng), KERMANY_LOOK, rng)
        found = outline(image[None])
        lungs, thorax = found.lungs[0], found.thorax[0]
        assert lungs.shape == image.shape
        assert not found.from_template[0]
        assert 0.1 < lungs.mean() < 0.5
        assert 0.3 < lungs[:, : image.shape[1] // 2].sum() / lungs.sum() < 0.7
        assert image[lungs].mean() < image[thorax & ~lungs].mean()


def test_the_thorax_includes_the_lungs_and_the_area_between() -> None:
    image, lungs = drawn()
    thorax = thorax_mask(image[None])[0]
    assert not (outline(image[None]).lungs[0] & ~thorax).any()
    assert (thorax & ~lungs)[SIDE // 2, SIDE // 2]
    assert thorax.mean() < 0.8


def test_no_images_give_no_outlines() -> None:
    assert outline(np.zeros((0, 32, 32), np.uint8)).lungs.shape == (0, 32, 32)
