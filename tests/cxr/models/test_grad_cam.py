"""Grad-CAM highlights what the network uses."""

import numpy as np
import pytest
import torch
from torch import nn

from cxr.common.errors import WeightsError
from cxr.models.backbones import ARCHITECTURES
from cxr.models.factory import build
from cxr.models.grad_cam import grad_cam, grad_cam_of_images, last_convolution_stage
from cxr.models.modules import Ensemble


class SquareFinder(nn.Module):
    """A network that predicts class 1 for images with a bright square, by construction."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.ReLU(inplace=True), nn.MaxPool2d(4))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.features[0].weight[0] = 1 / 27
            self.features[0].weight[1] = -1 / 27
            self.fc.weight[:] = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return scores


@pytest.fixture
def square_finder() -> nn.Module:
    return SquareFinder().eval()


def image_with_square(top: int, left: int) -> np.ndarray:
    image = np.full((32, 32), 20, np.uint8)
    image[top : top + 8, left : left + 8] = 250
    return image


def heat_of(model: nn.Module, images: np.ndarray, class_index: int) -> np.ndarray:
    classes = np.full(len(images), class_index, np.int64)
    return grad_cam_of_images(model, images, classes, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_heat_is_on_the_square_that_the_network_detects(square_finder: nn.Module) -> None:
    corners = [(2, 4), (20, 20), (4, 22)]
    heat = heat_of(square_finder, np.stack([image_with_square(*corner) for corner in corners]), class_index=1)
    assert heat.shape == (3, 32, 32)
    assert heat.dtype == np.float32
    for one, (top, left) in zip(heat, corners, strict=True):
        hottest = np.unravel_index(one.argmax(), one.shape)
        assert top - 2 <= hottest[0] < top + 10
        assert left - 2 <= hottest[1] < left + 10
        inside = one[top : top + 8, left : left + 8].mean()
        assert inside > 3 * (one.sum() - inside * 64) / (32 * 32 - 64)


def test_maps_are_between_0_and_1_and_peak_at_1(square_finder: nn.Module) -> None:
    heat = heat_of(square_finder, image_with_square(8, 8)[None], class_index=1)
    assert heat.min() >= 0
    assert heat.max() == pytest.approx(1)


def test_map_is_zero_if_nothing_contributes_to_the_class(square_finder: nn.Module) -> None:
    assert not heat_of(square_finder, np.zeros((1, 32, 32), np.uint8), class_index=1).any()


def test_batches_do_not_change_the_maps(square_finder: nn.Module) -> None:
    inputs = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    classes = np.array([0, 1, 0, 1, 1])
    whole, parts = (grad_cam(square_finder, inputs, classes, batch_size=size) for size in (5, 2))
    np.testing.assert_allclose(whole, parts, atol=1e-6)


def test_frozen_weights_give_the_same_map_and_get_no_gradient(square_finder: nn.Module) -> None:
    image = image_with_square(8, 8)[None]
    free = heat_of(square_finder, image, class_index=1)
    square_finder.requires_grad_(False)
    assert np.array_equal(heat_of(square_finder, image, class_index=1), free)
    assert all(parameter.grad is None for parameter in square_finder.parameters())


def test_no_hook_remains(square_finder: nn.Module) -> None:
    heat_of(square_finder, image_with_square(8, 8)[None], class_index=1)
    assert not any(module._forward_hooks for module in square_finder.modules())


def test_no_images_give_no_maps(square_finder: nn.Module) -> None:
    assert heat_of(square_finder, np.zeros((0, 32, 32), np.uint8), class_index=1).shape == (0, 32, 32)


def test_last_stage_of_a_resnet_is_layer4() -> None:
    model = build("resnet50", 3)
    assert last_convolution_stage(model) is model.layer4


@pytest.mark.parametrize("backbone", sorted(ARCHITECTURES))
def test_every_backbone_gives_maps(backbone: str) -> None:
    torch.manual_seed(3)
    model = build(backbone, 3).eval()
    images = np.random.default_rng(0).integers(0, 255, (2, 128, 128), np.uint8)
    heat = np.stack([heat_of(model, images, class_index=c) for c in range(3)])  # random weights may give an empty map
    assert heat.shape == (3, 2, 128, 128)
    assert heat.min() >= 0
    assert heat.max() == pytest.approx(1)
    assert heat.std() > 0


def test_map_of_an_ensemble_is_the_mean_of_its_members() -> None:
    finders = [SquareFinder(), SquareFinder()]
    finders[0].features[2] = nn.MaxPool2d(8)  # so that the members' maps have cells of different sizes
    image = image_with_square(4, 22)[None]
    alone = [heat_of(finder.eval(), image, class_index=1) for finder in finders]
    assert np.abs(alone[0] - alone[1]).max() > 0.05
    mean = (alone[0] + alone[1]) / 2
    heat = heat_of(Ensemble(finders).eval(), image, class_index=1)
    np.testing.assert_allclose(heat, mean / mean.max(), atol=1e-5)


def test_stage_next_to_a_classifier_in_one_sequence_is_found() -> None:
    inner = nn.Conv2d(3, 4, 3)
    assert last_convolution_stage(nn.Sequential(nn.Sequential(inner, nn.Flatten(), nn.Linear(4, 2)))) is inner


def test_network_without_convolution_is_rejected() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(WeightsError, match="Sequential"):
        grad_cam(model, torch.zeros(1, 3, 2, 2), np.array([0]))
