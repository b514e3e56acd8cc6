"""The networks, their parts by depth, and the weights they start from."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxr.common.errors import ParamsError, WeightsError
from cxr.models.backbones import ARCHITECTURES, Architecture, to_half_range
from cxr.models.modules import Ensemble, SvmHead

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
"""The parts of a network, from the image to the answer."""

_MARK = "backbone"  # the attribute of a built network that says which it is


@dataclass(frozen=True)
class WeightsReport:
    """What a network started from: parts wholly loaded, partly loaded, and left random.

    `sha256` is that of the tensors' file, "" where there was none.
    """

    source: str
    sha256: str
    loaded: tuple[str, ...]
    partial: tuple[str, ...]
    random: tuple[str, ...]


def build(
    backbone: str, n_classes: int, *, head: str = "linear", members: int = 1, views: tuple[float, ...] = (1.0,)
) -> nn.Module:
    """Return `backbone` with random weights, images (N, 3, H, W) in, logits (N, C) out.

    Args:
        backbone: one of ARCHITECTURES.
        n_classes: C.
        head: "linear", or "svm" for an SvmHead that waits for its state.
        members: networks that answer as one; more than one, or other views, make a Ensemble.
        views: magnifications of the image that are averaged; the last must be 1.

    Raises:
        WeightsError: there is no such backbone or head, or the last view is not 1.
    """
    if not is_ensemble(members=members, views=views):
        return _network(backbone, n_classes, head)
    if members < 1 or not views or views[-1] != 1 or min(views) <= 0:
        raise WeightsError(
            f"{members} members and views {list(views)} cannot be built: expected 1 member or more and positive "
            "magnifications that end with 1.0, the image as it is"
        )
    return Ensemble((_network(backbone, n_classes, head) for _ in range(members)), views)


def is_ensemble(*, members: int, views: Sequence[float]) -> bool:
    """Say whether `build` makes a Ensemble, whose state is a `ensemble_state`."""
    return members != 1 or tuple(views) != (1.0,)


def ensemble_state(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Merge the states of single networks into that of their Ensemble."""
    return {f"members.{number}.{name}": value for number, state in enumerate(states) for name, value in state.items()}


def smallest_image_px(backbone: str) -> int:
    """Return the smallest side of an image that comes through `backbone`."""
    return _architecture(backbone).smallest_px


def check_image_size(backbone: str, side_px: int) -> None:
    """Refuse images that shrink to nothing inside the network. Raises ParamsError."""
    smallest = smallest_image_px(backbone)
    if side_px < smallest:
        raise ParamsError(
            f"{backbone} needs images of {smallest} px or more, and they are {side_px} px; "
            "set preprocess.image_size_px higher or train.backbone to another network"
        )


def parts_of(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the modules of each part (see PARTS) of a network from `build`; a Ensemble has none of its own."""
    stages = _architecture(getattr(model, _MARK)).stages
    modules = [nn.ModuleList([model.get_submodule(name) for name in names]) for names in stages]
    return dict(zip(PARTS, [*modules, nn.ModuleList([head_of(model)])], strict=True))


def head_of(model: nn.Module) -> nn.Linear | SvmHead:
    """Return the last layer of a network, of its last member if it is a Ensemble.

    Raises:
        WeightsError: the network ends in something else.
    """
    heads = [module for module in model.modules() if isinstance(module, nn.Linear | SvmHead)]
    if not heads:
        raise WeightsError(
            f"{type(model).__name__} has no linear layer to end in; build it with cxr.models.factory.build"
        )
    return heads[-1]


def set_head(model: nn.Module, head: nn.Module) -> None:
    """Put `head` in the place of a single network's last layer."""
    parent, _, child = _head_name(model).rpartition(".")
    model.get_submodule(parent).add_module(child, head)


def saliency_stage(model: nn.Module) -> nn.Module | None:
    """Return the module whose feature maps are a network's last; None for a network that is not from `build`."""
    network = model.members[-1] if isinstance(model, Ensemble) else model
    backbone = getattr(network, _MARK, None)
    return None if backbone is None else network.get_submodule(_architecture(backbone).saliency_layer)


def features(model: nn.Module, x: Tensor) -> Tensor:
    """Return what the head sees (N, D) of images (N, 3, H, W): pooled features, of a Ensemble's last member."""
    return logits_and_features(model.members[-1] if isinstance(model, Ensemble) else model, x)[1]


def logits_and_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the answers (N, C) to images (N, 3, H, W) and, of the same pass, what the last head saw (N, D).

    Of a Ensemble that is its last member on the image as it is.
    """
    kept: list[Tensor] = []

    def keep(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(arguments[0])
        return arguments

    handle = head_of(model).register_forward_pre_hook(keep)
    try:
        logits: Tensor = model(x)
    finally:
        handle.remove()
    return logits, kept[-1]


def load_weights(model: nn.Module, source: str) -> WeightsReport:
    """Load starting weights into `model` as far as they go; the head always starts from random.

    Args:
        model: a single network from `build`.
        source: "none", "imagenet" (published, cached or downloaded) or the path of a state dict
            (.pth of tensors only, or .safetensors), which may be partial.

    Raises:
        WeightsError: not to be had, not a state dict, or nothing in it fits.
    """
    if source == "none":
        return WeightsReport("none", "", (), (), PARTS)
    state, digest = _imagenet(getattr(model, _MARK)) if source == "imagenet" else _read_state(Path(source))
    wanted = model.state_dict()
    head_name = _head_name(model)
    fitting = {
        name: value
        for name, value in ((_renamed(name), value) for name, value in state.items())
        if name in wanted and wanted[name].shape == value.shape and not name.startswith(f"{head_name}.")
    }
    if not fitting:
        raise WeightsError(f"{source}: none of its {len(state)} tensors fits the network; is it a torchvision one?")
    model.load_state_dict(fitting, strict=False)
    return _report(model, source, digest, set(fitting))


def _network(backbone: str, n_classes: int, head: str) -> nn.Module:
    architecture = _architecture(backbone)
    if head not in ("linear", "svm"):
        raise WeightsError(f"there is no head {head!r}; choose linear or svm")
    model = architecture.make(n_classes)
    setattr(model, _MARK, backbone)
    if head == "svm":
        set_head(model, SvmHead(n_classes))
    if architecture.half_range:
        model.register_forward_pre_hook(to_half_range)
    return model.to(memory_format=torch.channels_last)


def _head_name(model: nn.Module) -> str:
    head = head_of(model)
    found: str = next(name for name, module in model.named_modules() if module is head)
    return found


def _architecture(backbone: str) -> Architecture:
    if backbone not in ARCHITECTURES:
        raise WeightsError(f"there is no backbone {backbone!r}; choose {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[backbone]


def _renamed(name: str) -> str:
    """Return today's name of a tensor; torchvision's DenseNet file still says norm.1 for norm1."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


def _report(model: nn.Module, source: str, digest: str, loaded_names: set[str]) -> WeightsReport:
    name_of = {id(value): name for name, value in _tensors(model)}
    found: dict[str, list[bool]] = {
        part: [name_of[id(value)] in loaded_names for _, value in _tensors(modules)]
        for part, modules in parts_of(model).items()
    }
    return WeightsReport(
        source,
        digest,
        loaded=tuple(part for part, hits in found.items() if all(hits)),
        partial=tuple(part for part, hits in found.items() if any(hits) and not all(hits)),
        random=tuple(part for part, hits in found.items() if not any(hits)),
    )


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Yield parameters and running statistics; the batch counter carries no knowledge."""
    yield from module.named_parameters()
    yield from (pair for pair in module.named_buffers() if not pair[0].endswith("num_batches_tracked"))


def _imagenet(backbone: str) -> tuple[dict[str, Tensor], str]:
    published = _architecture(backbone).published
    if published is None:
        raise WeightsError(f"nobody has published ImageNet weights of {backbone}; set train.weights to none or a file")
    try:
        state = torch.hub.load_state_dict_from_url(
            published.url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights cannot be fetched from {published.url} ({error}); "
            "without a network set train.weights to a file (make run WEIGHTS=<file>) or to none"
        ) from error
    return dict(state), published.digest


def _read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    if not path.is_file():
        raise WeightsError(f"weights {path} do not exist; give a file, `imagenet` or `none`")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the two readers share no base class of errors
        raise WeightsError(
            f"{path} is not a state dict of tensors ({type(error).__name__}); nothing was run"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} is not a state dict: expected a mapping of names to tensors")
    return state, hashlib.sha256(path.read_bytes()).hexdigest()
