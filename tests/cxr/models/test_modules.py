"""Several networks answer as one: the mean of their probabilities over all views."""

import pytest
import torch

from cxr.models.factory import build, ensemble_state, features, is_ensemble
from cxr.models.modules import Ensemble, magnified


def test_a_ensemble_answers_the_mean_probability_of_members_and_views() -> None:
    torch.manual_seed(0)
    ensemble = build("small_cnn", 3, members=2, views=(1.2, 0.9, 1.0)).eval()
    images = torch.rand(4, 3, 48, 48)
    with torch.inference_mode():
        shares = [
            member(magnified(images, view)).softmax(dim=1) for member in ensemble.members for view in (1.2, 0.9, 1.0)
        ]
        assert torch.allclose(ensemble(images).exp(), torch.stack(shares).mean(dim=0), atol=1e-6)
        assert torch.allclose(features(ensemble, images), features(ensemble.members[1], images))


def test_states_of_single_networks_make_the_ensembles_state() -> None:
    torch.manual_seed(0)
    singles = [build("small_cnn", 3).eval() for _ in range(2)]
    ensemble = build("small_cnn", 3, members=2).eval()
    ensemble.load_state_dict(ensemble_state([single.state_dict() for single in singles]))
    images = torch.rand(2, 3, 48, 48)
    with torch.inference_mode():
        expected = torch.stack([single(images).softmax(dim=1) for single in singles]).mean(dim=0)
        assert torch.allclose(ensemble(images).exp(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("members", "views", "expected"), [(1, (1.0,), False), (2, (1.0,), True), (1, (1.1, 1.0), True)]
)
def test_one_network_on_the_image_as_it_is_is_no_ensemble(
    members: int, views: tuple[float, ...], expected: bool
) -> None:
    assert is_ensemble(members=members, views=views) is expected
    assert isinstance(build("small_cnn", 3, members=members, views=views), Ensemble) is expected


def test_magnifying_by_two_shows_the_middle_half() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[:, :, 12:20, 12:20] = 1  # a square of 8 about the middle becomes one of 16
    twice = magnified(image, 2.0)
    assert float(twice.sum()) == pytest.approx(4 * 64, rel=0.02)
    assert float(twice[0, 0, 9:23, 9:23].min()) == 1
    assert magnified(image, 1.0) is image


def test_shrinking_repeats_the_border() -> None:
    assert torch.allclose(magnified(torch.ones(1, 3, 16, 16), 0.5), torch.ones(1, 3, 16, 16))
