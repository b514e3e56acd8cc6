"""The networks, their parts by depth, and the weights they start from."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from cxr.errors import WeightsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
"""The parts of a network, from the film to the answer."""


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


def build(backbone: str, n_classes: int) -> nn.Module:
    """Return `backbone` with random weights and a linear head of `n_classes`."""
    if backbone != "resnet50":
        raise WeightsError(f"there is no backbone {backbone!r}; choose resnet50")
    # Residual branches that start at zero (Goyal et al. 2017, section 5.1) make training from scratch steady;
    # weights that are loaded replace them.
    model: nn.Module = resnet50(weights=None, num_classes=n_classes, zero_init_residual=True)
    return model.to(memory_format=torch.channels_last)


def parts_of(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the modules of each part (see PARTS) of a ResNet."""
    layers = {name: nn.ModuleList([model.get_submodule(name)]) for name in PARTS[1:-1]}
    stem = nn.ModuleList([model.get_submodule("conv1"), model.get_submodule("bn1")])
    return {"stem": stem, **layers, "head": nn.ModuleList([model.get_submodule("fc")])}


def load_weights(model: nn.Module, source: str) -> WeightsReport:
    """Load starting weights into `model` as far as they go; the head always starts from random.

    Args:
        model: from `build`.
        source: "none", "imagenet" (torchvision's, cached or downloaded) or the path of a state dict
            (.pth of tensors only, or .safetensors), which may be partial.

    Raises:
        WeightsError: not to be had, not a state dict, or nothing in it fits.
    """
    if source == "none":
        return WeightsReport("none", "", (), (), PARTS)
    state, digest = _imagenet() if source == "imagenet" else _read_state(Path(source))
    wanted = model.state_dict()
    head = {f"{name}." for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    fitting = {
        name: value
        for name, value in state.items()
        if name in wanted and wanted[name].shape == value.shape and not name.startswith(tuple(head))
    }
    if not fitting:
        raise WeightsError(f"{source}: none of its {len(state)} tensors fits the network; is it a torchvision one?")
    model.load_state_dict(fitting, strict=False)
    return _report(model, source, digest, set(fitting))


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


def _imagenet() -> tuple[dict[str, Tensor], str]:
    weights = ResNet50_Weights.IMAGENET1K_V2
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights cannot be fetched from {weights.url} ({error}); "
            "without a network set train.weights to a file (make run WEIGHTS=<file>) or to none"
        ) from error
    return dict(state), weights.url.rsplit("-", 1)[-1].removesuffix(".pth")


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
