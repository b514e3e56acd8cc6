"""Every image is transformed by its own parameters within the configured ranges, reproducibly by seed."""

from dataclasses import replace

import pytest
import torch

from cxr.training import augmentation as subject
from cxr.training.augmentation import Augmentation, draw, draw_mixture, mix

STILL = Augmentation(rotation_deg=0, zoom=(1, 1), shift=0, contrast_jitter=0, brightness_jitter=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augment(images: torch.Tensor, ranges: Augmentation, generator: torch.Generator) -> torch.Tensor:
    return subject.augment(images, ranges, draw(len(images), ranges, generator))


def dot(row: int, column: int, size: int = 65) -> torch.Tensor:
    image = torch.zeros(size, size)
    image[row - 1 : row + 2, column - 1 : column + 2] = 1
    return image


def centre_of(image: torch.Tensor) -> torch.Tensor:
    weights = image / image.sum()
    axis = torch.arange(len(image), dtype=torch.float32)
    return torch.stack((weights.sum(1) @ axis, weights.sum(0) @ axis))


def test_zero_ranges_leave_images_unchanged() -> None:
    images = torch.rand(3, 16, 16)
    assert torch.allclose(augment(images, STILL, seeded())[:, 0], images, atol=1e-5)


def test_images_of_a_batch_get_different_parameters() -> None:
    ranges = Augmentation(rotation_deg=20, zoom=(0.9, 1.1), shift=0.1, contrast_jitter=0, brightness_jitter=0)
    moved = augment(dot(20, 40).expand(8, -1, -1), ranges, seeded())
    centres = torch.stack([centre_of(image[0]) for image in moved])
    assert len(torch.unique(centres.round(decimals=2), dim=0)) == 8


def test_same_seed_gives_the_same_images() -> None:
    ranges = Augmentation(rotation_deg=20, zoom=(0.9, 1.1), shift=0.1, contrast_jitter=0.1, brightness_jitter=0.1)
    images = torch.rand(4, 16, 16)
    assert torch.equal(augment(images, ranges, seeded(3)), augment(images, ranges, seeded(3)))
    assert not torch.equal(augment(images, ranges, seeded(3)), augment(images, ranges, seeded(4)))


def test_rotation_stays_within_its_range_and_keeps_the_distance_to_the_centre() -> None:
    ranges = Augmentation(rotation_deg=20, zoom=(1, 1), shift=0, contrast_jitter=0, brightness_jitter=0)
    moved = augment(dot(32, 52).expand(64, -1, -1), ranges, seeded())
    offsets = torch.stack([centre_of(image[0]) for image in moved]) - 32
    angles = torch.rad2deg(torch.atan2(offsets[:, 0], offsets[:, 1])).abs()
    assert 15 < angles.max() <= 20.5
    assert torch.allclose(offsets.norm(dim=1), torch.tensor(20.0), atol=0.3)


def test_shift_is_a_share_of_the_side() -> None:
    ranges = Augmentation(rotation_deg=0, zoom=(1, 1), shift=0.1, contrast_jitter=0, brightness_jitter=0)
    moved = augment(dot(32, 32).expand(64, -1, -1), ranges, seeded())
    offsets = (torch.stack([centre_of(image[0]) for image in moved]) - 32).abs()
    assert 5 < offsets.max() <= 6.6  # a tenth of 65 px


def test_zoom_above_one_magnifies() -> None:
    ranges = Augmentation(rotation_deg=0, zoom=(1.1, 1.1), shift=0, contrast_jitter=0, brightness_jitter=0)
    moved = augment(dot(32, 52).unsqueeze(0), ranges, seeded())
    assert torch.allclose(centre_of(moved[0, 0]), torch.tensor([32.0, 54.0]), atol=0.2)


def test_jitter_never_leaves_the_grey_scale() -> None:
    ranges = Augmentation(rotation_deg=0, zoom=(1, 1), shift=0, contrast_jitter=0.5, brightness_jitter=0.5)
    moved = augment(torch.rand(16, 8, 8), ranges, seeded())
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_mirror_flips_that_share_of_the_images() -> None:
    ranges = Augmentation(rotation_deg=0, zoom=(1, 1), shift=0, contrast_jitter=0, brightness_jitter=0, mirror=0.5)
    image = torch.rand(16, 16)
    moved = augment(image.expand(200, -1, -1), ranges, seeded())[:, 0]
    mirrored = sum(torch.allclose(one, image.flip(-1), atol=1e-5) for one in moved)
    assert mirrored + sum(torch.allclose(one, image, atol=1e-5) for one in moved) == 200
    assert 70 < mirrored < 130


def test_augmentation_of_an_image_does_not_depend_on_its_batch() -> None:
    ranges = Augmentation(20, zoom=(0.9, 1.1), shift=0.1, contrast_jitter=0.1, brightness_jitter=0.1, mirror=0.5)
    images = torch.rand(6, 16, 16)
    draws = draw(6, ranges, seeded())
    positions = torch.tensor([4, 1])
    alone = subject.augment(images[positions], ranges, draws.of(positions))
    assert torch.allclose(alone, subject.augment(images, ranges, draws)[positions], atol=1e-6)


def test_mixup_blends_each_image_with_its_partner() -> None:
    images = torch.rand(8, 1, 4, 4)
    partners, share = draw_mixture(8, 0.4, seeded(1))
    assert 0 < share < 1
    assert sorted(partners.tolist()) == list(range(8))
    assert torch.allclose(mix(images, images[partners], share), share * images + (1 - share) * images[partners])
    assert draw_mixture(8, 0.4, seeded(1))[1] == share
    assert draw_mixture(8, 0.4, seeded(2))[1] != share


def test_mixup_of_zero_changes_neither_images_nor_generator() -> None:
    generator = seeded(1)
    before = generator.get_state()
    partners, share = draw_mixture(3, 0.0, generator)
    assert (partners.tolist(), share) == ([0, 1, 2], 1)
    assert torch.equal(generator.get_state(), before)


STYLE = {"gamma_jitter": 0.4, "sharpness_jitter": 0.8, "shading": 0.3, "noise": 0.05, "border_wipe": 0.2}


@pytest.mark.parametrize("name", STYLE)
def test_each_change_of_style_changes_every_image_reproducibly_within_the_grey_scale(name: str) -> None:
    ranges = replace(STILL, **{name: STYLE[name]})
    images = torch.rand(1, 24, 24).expand(8, -1, -1)
    changed = augment(images, ranges, seeded(2))
    assert torch.equal(changed, augment(images, ranges, seeded(2)))
    assert len({image.numpy().tobytes() for image in changed}) == 8
    assert 0 <= changed.min() <= changed.max() <= 1


def test_without_changes_of_style_the_movements_are_drawn_as_before() -> None:
    moved = replace(STILL, rotation_deg=20)
    assert torch.equal(draw(4, moved, seeded()).uniform, draw(4, replace(moved, noise=0.1), seeded()).uniform)


def test_sharpness_ranges_from_blurred_to_sharper() -> None:
    ranges = replace(STILL, sharpness_jitter=1.0)
    image = torch.rand(1, 112, 112)
    detail = augment(image.expand(64, -1, -1), ranges, seeded()).std(dim=(1, 2, 3))
    unchanged = image.std()
    assert detail.min() < 0.7 * unchanged
    assert detail.max() > 1.2 * unchanged


def test_wiped_borders_leave_the_middle_unchanged() -> None:
    image = torch.rand(32, 32)
    changed = augment(image.expand(64, -1, -1), replace(STILL, border_wipe=0.2), seeded())[:, 0]
    assert torch.allclose(changed[:, 8:24, 8:24], image[8:24, 8:24].expand(64, -1, -1), atol=1e-5)
    assert not torch.allclose(changed[:, 2], image[2].expand(64, -1), atol=1e-2)
