"""An ensemble returns the mean of its members' probabilities."""

import pytest
import torch

from cxr.models.factory import build, features, merge_states
from cxr.models.modules import Ensemble

IMAGES = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def test_ensemble_averages_the_probabilities_of_its_members() -> None:
    torch.manual_seed(0)
    ensemble = build("small_cnn", 3, members=2).eval()
    with torch.inference_mode():
        expected = torch.stack([member(IMAGES).softmax(dim=1) for member in ensemble.members]).mean(dim=0)
        assert torch.allclose(ensemble(IMAGES).exp(), expected, atol=1e-6)
        assert torch.allclose(features(ensemble, IMAGES), features(ensemble.members[1], IMAGES))


@pytest.mark.parametrize("members", [1, 2])
def test_merged_states_load_into_the_model_of_as_many_members(members: int) -> None:
    torch.manual_seed(0)
    singles = [build("small_cnn", 3).eval() for _ in range(members)]
    model = build("small_cnn", 3, members=members).eval()
    assert isinstance(model, Ensemble) is (members > 1)
    model.load_state_dict(merge_states([single.state_dict() for single in singles]))
    with torch.inference_mode():
        expected = torch.stack([single(IMAGES).softmax(dim=1) for single in singles]).mean(dim=0)
        assert torch.allclose(model(IMAGES).softmax(dim=1), expected, atol=1e-6)
