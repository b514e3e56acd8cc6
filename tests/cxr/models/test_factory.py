"""Networks are built by name, and every starting weight that fits is loaded and reported."""

import copy
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

from cxr.common.errors import ParamsError, WeightsError
from cxr.common.param_types import Backbone
from cxr.models.backbones import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD
from cxr.models.factory import (
    PARTS,
    build,
    check_image_size,
    features,
    head_of,
    load_weights,
    parts_of,
    smallest_image_px,
)
from cxr.models.forward import to_input
from cxr.models.modules import SvmHead


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build("resnet50", 1000).state_dict()


@pytest.mark.parametrize("backbone", sorted(ARCHITECTURES))
def test_parts_cover_every_parameter_once(backbone: str) -> None:
    model = build(backbone, 3)
    counted = [id(value) for modules in parts_of(model).values() for value in modules.parameters()]
    assert sorted(counted) == sorted(id(value) for value in model.parameters())
    assert tuple(parts_of(model)) == PARTS
    assert all(next(modules.parameters(), None) is not None for modules in parts_of(model).values())


@pytest.mark.parametrize("backbone", sorted(set(ARCHITECTURES) - {"alexnet", "vgg16", "vgg19"}))  # files too large
def test_own_state_dict_fills_everything_but_the_head(backbone: str, tmp_path: Path) -> None:
    model = build(backbone, 3)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "own.safetensors")
    report = load_weights(model, str(tmp_path / "own.safetensors"))
    assert (report.loaded, report.partial, report.random) == (PARTS[:-1], (), ("head",))


@pytest.mark.parametrize("backbone", sorted(ARCHITECTURES))
def test_smallest_image_is_accepted(backbone: str) -> None:
    model, side = build(backbone, 3).eval(), smallest_image_px(backbone)
    with torch.inference_mode():
        images = torch.rand(2, 3, side, side)
        assert model(images).shape == (2, 3)
        seen = features(model, images)
        assert seen.shape == (2, head_of(model).in_features)
        assert torch.allclose(head_of(model)(seen), model(images), atol=1e-5)
    check_image_size(backbone, side)


def test_too_small_images_are_rejected() -> None:
    with pytest.raises(ParamsError, match=r"inception_v3 .* 75 px.*image_size_px"):
        check_image_size("inception_v3", 64)


@pytest.mark.parametrize("backbone", ["inception_v3", "xception"])
def test_networks_published_for_grey_levels_from_minus_1_to_1_receive_them(backbone: str) -> None:
    grey = torch.rand(2, 3, 80, 80)
    seen: list[torch.Tensor] = []
    model = copy.deepcopy(build(backbone, 3)).eval()  # as the running average copies it
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    with torch.inference_mode():
        model(to_input(grey, IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(seen[0], 2 * grey - 1, atol=1e-5)


def test_old_tensor_names_of_torchvisions_densenet_file_are_loaded(tmp_path: Path) -> None:
    model = build("densenet121", 3)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k): v for k, v in model.state_dict().items()}
    assert old.keys() != model.state_dict().keys()
    torch.save(old, tmp_path / "old.pth")
    assert load_weights(model, str(tmp_path / "old.pth")).loaded == PARTS[:-1]


def test_all_linear_layers_of_a_vgg_but_the_last_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(4)
    hidden = torch.randn(4096, 4096)
    save_file({"classifier.3.weight": hidden, "classifier.6.bias": torch.ones(3)}, tmp_path / "part.safetensors")
    model = build("vgg16", 3)
    report = load_weights(model, str(tmp_path / "part.safetensors"))
    assert report.partial == ("layer4",)
    assert report.random == ("stem", "layer1", "layer2", "layer3", "head")
    assert torch.equal(model.state_dict()["classifier.3.weight"], hidden)
    assert not torch.equal(model.state_dict()["classifier.6.bias"], torch.ones(3))


def test_svm_head_has_no_trainable_weights() -> None:
    model = build("resnet50", 3, head="svm")
    assert isinstance(head_of(model), SvmHead)
    assert not list(parts_of(model)["head"].parameters())


def test_params_list_all_backbones() -> None:
    assert set(get_args(Backbone)) == set(ARCHITECTURES)


def test_complete_state_dict_fills_everything_but_the_head(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "whole.pth")
    model = build("resnet50", 3)
    report = load_weights(model, str(tmp_path / "whole.pth"))
    assert (report.loaded, report.partial, report.random) == (PARTS[:-1], (), ("head",))
    assert torch.equal(model.state_dict()["layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])


def test_partial_state_dict_is_reported_by_part(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
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


def test_without_weights_all_parts_are_random() -> None:
    assert load_weights(build("resnet50", 3), "none").random == PARTS


def test_head_stays_random_even_if_it_fits(tmp_path: Path) -> None:
    torch.manual_seed(2)
    torch.save(build("resnet50", 3).state_dict(), tmp_path / "other.pth")
    torch.manual_seed(3)
    model = build("resnet50", 3)
    before = model.state_dict()["fc.weight"].clone()
    load_weights(model, str(tmp_path / "other.pth"))
    assert torch.equal(model.state_dict()["fc.weight"], before)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pth do not exist"):
        load_weights(build("resnet50", 3), str(tmp_path / "gone.pth"))


def test_file_without_a_state_dict_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(WeightsError, match=r"text\.pth is not a state dict of tensors"):
        load_weights(build("resnet50", 3), str(tmp_path / "text.pth"))
    torch.save({"epoch": 3}, tmp_path / "mixed.pth")
    with pytest.raises(WeightsError, match=r"mixed\.pth is not a state dict"):
        load_weights(build("resnet50", 3), str(tmp_path / "mixed.pth"))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))  # pragma: no cover

    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError):
        load_weights(build("resnet50", 3), str(tmp_path / "trap.pth"))
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_are_rejected(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "vgg.pth")
    with pytest.raises(WeightsError, match="none of its 1 tensors fits"):
        load_weights(build("resnet50", 3), str(tmp_path / "vgg.pth"))


def test_offline_imagenet_weights_name_the_alternative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(WeightsError, match=r"make run WEIGHTS=<file>"):
        load_weights(build("resnet50", 3), "imagenet")


@pytest.mark.parametrize("backbone", sorted(set(ARCHITECTURES) - {"small_cnn"}))
def test_source_of_imagenet_weights_is_named(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    published = ARCHITECTURES[backbone].published
    assert published is not None
    assert re.fullmatch(r"[0-9a-f]{8,}", published.digest)
    assert re.search(rf"/{backbone.split('_', maxsplit=1)[0]}[^/]*\.pth$", published.url)
    with pytest.raises(WeightsError, match=re.escape(f"cannot be fetched from {published.url}")):
        load_weights(build(backbone, 3), "imagenet")


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02}q\x00."])
def test_a_damaged_copy_of_imagenet_weights_is_named(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = ARCHITECTURES["mobilenet_v2"].published
    assert published is not None
    copy = tmp_path / "hub" / "checkpoints" / published.url.rpartition("/")[2]
    copy.parent.mkdir(parents=True)
    copy.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{re.escape(str(copy))} is not the file of .*; delete it"):
        load_weights(build("mobilenet_v2", 3), "imagenet")


def test_small_cnn_has_no_imagenet_weights() -> None:
    with pytest.raises(WeightsError, match="no published ImageNet weights of small_cnn"):
        load_weights(build("small_cnn", 3), "imagenet")


def test_unknown_backbone_and_head_are_rejected() -> None:
    with pytest.raises(WeightsError, match=r"backbone 'vgg'.*alexnet"):
        build("vgg", 3)
    with pytest.raises(WeightsError, match=r"head 'tree'.*svm"):
        build("small_cnn", 3, head="tree")


def test_model_without_members_is_rejected() -> None:
    with pytest.raises(WeightsError, match="at least 1 member"):
        build("small_cnn", 3, members=0)
