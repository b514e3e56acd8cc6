"""Build networks, find their parts by depth, and load the weights they start from."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxr.common.errors import ParamsError, WeightsError
from cxr.common.files import sha256_of
from cxr.models.backbones import ARCHITECTURES, Architecture, to_half_range
from cxr.models.modules import Ensemble, MergedLinear, SvmHead
from cxr.models.populations import Population

PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
"""The parts of a network, from input to output."""

_BACKBONE = "backbone"  # attribute of a built network that holds its backbone's name


@dataclass(frozen=True)
class WeightsReport:
    """The weights a network started from.

    source                   train.weights
    sha256                   digest of the weights file; "" without a file
    loaded, partial, random  parts that were loaded completely, in part, and not at all
    """

    source: str
    sha256: str
    loaded: tuple[str, ...]
    partial: tuple[str, ...]
    random: tuple[str, ...]


def build(backbone: str, n_classes: int, *, head: str = "linear", members: int = 1) -> nn.Module:
    """Build `backbone` with random weights: images (N, 3, H, W) in, logits (N, C) out.

    Args:
        backbone: one of ARCHITECTURES.
        n_classes: C.
        head: "linear", or "svm" for an SvmHead that is empty until its state is loaded.
        members: number of networks; more than one make an Ensemble.

    Raises:
        WeightsError: the backbone or head is unknown, or there are fewer members than one.
    """
    if members < 1:
        raise WeightsError(f"a model needs at least 1 member, got {members}")
    if members == 1:
        return _network(backbone, n_classes, head)
    return Ensemble(_network(backbone, n_classes, head) for _ in range(members))


def merge_populations(model: nn.Module, classes: Sequence[str], populations: Sequence[Population]) -> None:
    """Make every member of `model`, which has outputs for classes and populations, return logits of the classes."""
    for network in model.members if isinstance(model, Ensemble) else (model,):
        n_features = next(head_of(network).parameters()).shape[1]
        set_head(network, MergedLinear(n_features, classes, populations))


def merge_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Merge the states of single networks into the state of what `build` makes with as many members."""
    if len(states) == 1:
        return dict(states[0])
    return {f"members.{number}.{name}": value for number, state in enumerate(states) for name, value in state.items()}


def smallest_image_px(backbone: str) -> int:
    """Return the smallest side of an image, in pixels, that `backbone` accepts."""
    return _architecture(backbone).smallest_px


def check_image_size(backbone: str, side_px: int) -> None:
    """Raise ParamsError when images of `side_px` are too small for `backbone`."""
    smallest = smallest_image_px(backbone)
    if side_px < smallest:
        raise ParamsError(
            f"{backbone} needs images of at least {smallest} px, got {side_px} px; "
            "raise preprocess.image_size_px or choose another train.backbone"
        )


def parts_of(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the modules of each part (see PARTS) of a single network from `build`."""
    stages = _architecture(getattr(model, _BACKBONE)).stages
    modules = [nn.ModuleList([model.get_submodule(name) for name in names]) for names in stages]
    return dict(zip(PARTS, [*modules, nn.ModuleList([head_of(model)])], strict=True))


def head_of(model: nn.Module) -> nn.Linear | SvmHead:
    """Return the last layer of a network, or of the last member of an Ensemble.

    Raises:
        WeightsError: the model has neither a linear layer nor an SvmHead.
    """
    heads = [module for module in model.modules() if isinstance(module, nn.Linear | SvmHead)]
    if not heads:
        raise WeightsError(
            f"{type(model).__name__} has no head, a linear layer or SvmHead; build it with cxr.models.factory.build"
        )
    return heads[-1]


def set_head(model: nn.Module, head: nn.Module) -> None:
    """Replace the last layer of a single network by `head`."""
    parent, _, child = _head_name(model).rpartition(".")
    model.get_submodule(parent).add_module(child, head)


def saliency_stage(model: nn.Module) -> nn.Module | None:
    """Return the module that computes a network's last feature maps; None for a network that is not from `build`."""
    backbone = getattr(model, _BACKBONE, None)
    return None if backbone is None else model.get_submodule(_architecture(backbone).saliency_layer)


def features(model: nn.Module, x: Tensor) -> Tensor:
    """Return the pooled features (N, D), the input of the head, of images (N, 3, H, W).

    The features of an Ensemble are those of its last member.
    """
    return logits_and_features(model.members[-1] if isinstance(model, Ensemble) else model, x)[1]


def logits_and_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, C) and features (N, D) of images (N, 3, H, W) from one forward pass.

    The features of an Ensemble are those of its last member.
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
    """Load every starting weight that fits into `model`; the head always stays random.

    Args:
        model: a single network from `build`.
        source: "none", "imagenet" (published weights, cached or downloaded) or the path of a state dict
            (.pth of tensors only, or .safetensors), which may be partial.

    Raises:
        WeightsError: the weights cannot be fetched or read, or none of them fits.
    """
    if source == "none":
        return WeightsReport("none", "", (), (), PARTS)
    state, digest = _imagenet(getattr(model, _BACKBONE)) if source == "imagenet" else _read_state(Path(source))
    wanted = model.state_dict()
    head_name = _head_name(model)
    fitting = {
        name: value
        for name, value in ((_renamed(name), value) for name, value in state.items())
        if name in wanted and wanted[name].shape == value.shape and not name.startswith(f"{head_name}.")
    }
    if not fitting:
        raise WeightsError(
            f"{source}: none of its {len(state)} tensors fits the network; expected torchvision's names and shapes"
        )
    model.load_state_dict(fitting, strict=False)
    return _report(model, source, digest, set(fitting))


def _network(backbone: str, n_classes: int, head: str) -> nn.Module:
    architecture = _architecture(backbone)
    if head not in ("linear", "svm"):
        raise WeightsError(f"unknown head {head!r}; choose linear or svm")
    model = architecture.make(n_classes)
    setattr(model, _BACKBONE, backbone)
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
        raise WeightsError(f"unknown backbone {backbone!r}; choose {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[backbone]


def _renamed(name: str) -> str:
    """Return the current name of a tensor; torchvision's DenseNet file has norm.1 where the module has norm1."""
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
    """Yield parameters and running statistics, without the batch counters."""
    yield from module.named_parameters()
    yield from (pair for pair in module.named_buffers() if not pair[0].endswith("num_batches_tracked"))


def _imagenet(backbone: str) -> tuple[dict[str, Tensor], str]:
    published = _architecture(backbone).published
    if published is None:
        raise WeightsError(
            f"there are no published ImageNet weights of {backbone}; set train.weights to none or a file"
        )
    copy = Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
    # torch.hub checks the digest of a download alone, and reads whatever it finds in its cache.
    if copy.is_file() and not sha256_of(copy).startswith(published.digest):
        raise WeightsError(f"{copy} is not the file of {published.url}, or damaged; delete it, and run again")
    try:
        state = torch.hub.load_state_dict_from_url(
            published.url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights cannot be fetched from {published.url} ({error}); "
            "offline, set train.weights to a file (make run WEIGHTS=<file>) or to none"
        ) from error
    return dict(state), published.digest


def _read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    if not path.is_file():
        raise WeightsError(f"weights {path} do not exist; set train.weights to a file, `imagenet` or `none`")
    try:
        state = _load_tensors(path)
    except Exception as error:  # the two readers share no base class of errors
        raise WeightsError(
            f"{path} is not a state dict of tensors ({type(error).__name__}); no code in it was run"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} is not a state dict: expected a mapping of names to tensors")
    return state, sha256_of(path)


def _load_tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file  # optional: the training loop also runs where only torch is installed

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
