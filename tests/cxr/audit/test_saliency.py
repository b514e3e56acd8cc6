"""The sanity check detects maps that ignore the weights; heat is compared with the area it covers."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from cxr.audit.saliency import (
    SIMILAR_FROM,
    Normalisation,
    SanityCheck,
    attention_in_thorax,
    randomisation_check,
    rank_correlations,
    share_inside,
)
from cxr.evaluation.bootstrap import Resampling
from cxr.models.factory import PARTS, build, head_of

SCALE = Normalisation((0.5,) * 3, (0.25,) * 3)


class Smoothed(nn.Module):
    """A network whose maps come from a layer that no part holds, whatever the parts say."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.blur = nn.Conv2d(3, 1, 5, padding=2, bias=False)
        nn.init.constant_(self.blur.weight, 1 / 75)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        brightness: torch.Tensor = self.blur(x - x.amin()).mean(dim=(2, 3))
        return torch.cat([brightness, self.unused(x.mean(dim=(2, 3)))[:, :1] * 0], dim=1)


class Learnt(nn.Module):
    """A network whose maps are those of the one filter, of eight, that its head asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(3, 8, 5, padding=2, bias=False)
        self.head = nn.Linear(8, 2, bias=False)
        with torch.no_grad():
            self.filters.weight.zero_()
            self.filters.weight[0, :, :2], self.filters.weight[0, :, 3:] = 1.0, -1.0
            self.head.weight.zero_()
            self.head.weight[0, 0] = 1.0
            self.head.weight[1, 1] = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.filters(x).relu().mean(dim=(2, 3)))
        return answer


def images(n: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, side, side)).astype(np.uint8)


def draws(n: int) -> Resampling:
    return Resampling(np.arange(n), resamples=200, seed=2)


def check(model: nn.Module, parts: Mapping[str, str]) -> SanityCheck:
    return randomisation_check(
        model.eval(),
        images(12),
        np.zeros(12, np.int64),
        scale=SCALE,
        draws=draws(12),
        parts=lambda copied: {name: copied.get_submodule(child) for name, child in parts.items()},
    )


def test_maps_that_ignore_the_weights_fail_the_check() -> None:
    found = check(Smoothed(), {"stem": "unused", "head": "unused"})
    assert found.depends_on_weights is False
    assert [step.randomised for step in found.steps] == ["head", "stem"]
    assert found.steps[-1].similarity.value == pytest.approx(1.0)


def test_maps_that_depend_on_the_weights_pass_the_check() -> None:
    found = check(Learnt(), {"stem": "filters", "head": "head"})
    assert found.depends_on_weights is True
    assert found.steps[-1].similarity.value < SIMILAR_FROM
    interval = found.steps[-1].similarity.interval
    assert interval is not None
    assert interval.low <= found.steps[-1].similarity.value <= interval.high


def test_the_check_does_not_change_the_model() -> None:
    model = Learnt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check(model, {"stem": "filters", "head": "head"})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_check() -> None:
    parts = {"stem": "filters", "head": "head"}
    assert check(Learnt(), parts) == check(Learnt(), parts)


def test_images_without_a_map_are_left_out() -> None:
    model = Learnt()
    nn.init.zeros_(model.head.weight)
    found = check(model, {"head": "head"})
    assert (found.images, found.steps, found.depends_on_weights) == (0, (), None)


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_built_network_is_randomised_from_head_to_stem(ensemble: bool) -> None:
    torch.manual_seed(0)
    model = build("small_cnn", 3, members=2 if ensemble else 1).eval()
    nn.init.constant_(dict(head_of(model).named_parameters())["weight"], 0.1)  # all maps speak for all classes
    found = randomisation_check(model, images(3, side=64), np.arange(3), scale=SCALE, draws=draws(3))
    assert [step.randomised for step in found.steps] == list(reversed(PARTS))
    assert all(step.similarity.interval is None for step in found.steps)  # 3 patients


def test_rank_correlation_is_spearmans_and_0_for_a_constant_map() -> None:
    first = np.arange(16, dtype=np.float32).reshape(1, 4, 4).repeat(3, axis=0)
    second = np.stack([np.exp(first[0]), -first[1], np.zeros((4, 4), np.float32)])
    assert rank_correlations(first, second).tolist() == pytest.approx([1.0, -1.0, 0.0])
    assert rank_correlations(second[2:], first[2:]).tolist() == [0.0]


def test_the_share_of_heat_is_compared_with_the_share_of_area() -> None:
    heat, inside = np.zeros((12, 4, 4), np.float32), np.zeros((12, 4, 4), bool)
    inside[:, :, :2] = True
    heat[:, 0, 0], heat[:, 0, 3] = 0.75, 0.25
    heat[11] = 0
    found = share_inside(heat, inside, draws(12))
    assert found is not None
    assert (found.images, found.without_heat) == (11, 1)
    assert (found.heat_inside.value, found.area_inside.value, found.excess.value) == (0.75, 0.5, 0.25)
    assert found.keeps_to_the_thorax is True


def test_heat_spread_evenly_does_not_keep_to_the_thorax() -> None:
    inside = np.zeros((12, 4, 4), bool)
    inside[:, 1:3] = True
    found = share_inside(np.ones((12, 4, 4), np.float32), inside, draws(12))
    assert found is not None
    assert found.keeps_to_the_thorax is False


def test_empty_maps_have_no_share_and_few_patients_no_verdict() -> None:
    inside = np.ones((3, 4, 4), bool)
    assert share_inside(np.zeros((3, 4, 4), np.float32), inside, draws(3)) is None
    few = share_inside(np.ones((3, 4, 4), np.float32), inside, draws(3))
    assert few is not None
    assert few.keeps_to_the_thorax is None


def test_heat_in_the_middle_of_an_image_lies_in_the_thorax() -> None:
    heat = np.zeros((12, 64, 64), np.float32)
    heat[:, 30:40, 20:28] = 1
    found = attention_in_thorax(heat, np.full((12, 64, 64), 120, np.uint8), draws(12))  # no lungs to see: a template
    assert found is not None
    assert found.heat_inside.value > 0.9
    assert found.area_inside.value < 0.9
