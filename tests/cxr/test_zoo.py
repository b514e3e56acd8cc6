"""Weights load as far as they go, and what they leave random is said."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cxr.errors import WeightsError
from cxr.zoo import PARTS, build, load_weights, parts_of


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build("resnet50", 1000).state_dict()


def test_parts_cover_every_parameter_once() -> None:
    model = build("resnet50", 3)
    counted = [id(value) for modules in parts_of(model).values() for value in modules.parameters()]
    assert sorted(counted) == sorted(id(value) for value in model.parameters())
    assert tuple(parts_of(model)) == PARTS


def test_whole_state_fills_all_but_the_head(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "whole.pth")
    model = build("resnet50", 3)
    report = load_weights(model, str(tmp_path / "whole.pth"))
    assert (report.loaded, report.partial, report.random) == (PARTS[:-1], (), ("head",))
    assert torch.equal(model.state_dict()["layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])


def test_partial_state_says_what_starts_from_random(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    kept = ("conv1", "bn1", "layer1", "layer2.0")
    save_file(
        {name: value.contiguous() for name, value in state.items() if name.startswith(kept)},
        tmp_path / "part.safetensors",
    )
    report = load_weights(build("resnet50", 3), str(tmp_path / "part.safetensors"))
    assert report.loaded == ("stem", "layer1")
    assert report.partial == ("layer2",)
    assert report.random == ("layer3", "layer4", "head")
    assert len(report.sha256) == 64


def test_none_leaves_everything_random() -> None:
    assert load_weights(build("resnet50", 3), "none").random == PARTS


def test_head_of_the_right_size_is_not_taken_over(tmp_path: Path) -> None:
    torch.manual_seed(2)
    torch.save(build("resnet50", 3).state_dict(), tmp_path / "other.pth")
    torch.manual_seed(3)
    model = build("resnet50", 3)
    before = model.state_dict()["fc.weight"].clone()
    load_weights(model, str(tmp_path / "other.pth"))
    assert torch.equal(model.state_dict()["fc.weight"], before)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_weights(build("resnet50", 3), str(tmp_path / "gone.pth"))
    assert str(caught.value) == f"weights {tmp_path / 'gone.pth'} do not exist; give a file, `imagenet` or `none`"


def test_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(WeightsError, match=r"text\.pth is not a state dict of tensors"):
        load_weights(build("resnet50", 3), str(tmp_path / "text.pth"))
    torch.save({"epoch": 3}, tmp_path / "mixed.pth")
    with pytest.raises(WeightsError, match=r"mixed\.pth is not a state dict: expected a mapping of names to tensors"):
        load_weights(build("resnet50", 3), str(tmp_path / "mixed.pth"))


def test_pickle_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))  # pragma: no cover

    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError):
        load_weights(build("resnet50", 3), str(tmp_path / "trap.pth"))
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "vgg.pth")
    with pytest.raises(WeightsError, match="none of its 1 tensors fits the network"):
        load_weights(build("resnet50", 3), str(tmp_path / "vgg.pth"))


def test_imagenet_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(WeightsError, match=r"make run WEIGHTS=<file>"):
        load_weights(build("resnet50", 3), "imagenet")


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(WeightsError, match="there is no backbone 'vgg'"):
        build("vgg", 3)
