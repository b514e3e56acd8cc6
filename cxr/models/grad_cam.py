"""Heat maps: which part of an image contributes to a class. Grad-CAM (Selvaraju et al. 2017) or LayerCAM.

The map comes from the deepest stage that has MIN_CELLS cells a side, and is enlarged to the image. Where that is the
last stage (a ResNet at 224 px), it is Grad-CAM. Where the last stage is coarser (4 x 4 at 112 px, which shows nothing),
the map comes from an earlier one, by LayerCAM (Jiang et al. 2021): each cell is weighted by its own gradient, because
one weight a channel is meaningful in the last stage only. The map of an ensemble is the mean of its members' maps.

It shows what the model used, not where the disease is.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cxr.common.errors import WeightsError
from cxr.models.factory import parts_of, saliency_stage
from cxr.models.forward import images_to_input
from cxr.models.modules import Ensemble

MIN_CELLS = 7
"""Cells a side that a map needs to show a part of a lung; a ResNet at 224 px has as many."""

_EARLIER_PARTS = ("layer3", "layer2")  # from the last stage towards the image


def last_convolution_stage(model: nn.Module) -> nn.Module:
    """Return the module that computes the last feature maps of a network, no Ensemble.

    Networks of cxr.models.factory name it (`layer4` of a ResNet). In others it is found by type: the last child that
    contains a convolution, searched recursively while it also contains a linear layer (a classifier).

    Raises:
        WeightsError: the model has no two-dimensional convolution.
    """
    return saliency_stage(model) or _last_stage_by_type(model)


def _last_stage_by_type(model: nn.Module) -> nn.Module:
    stages = [child for child in model.children() if _holds(child, nn.Conv2d)]
    if isinstance(model, nn.Conv2d):
        return model
    if not stages:
        raise WeightsError(
            f"Grad-CAM needs a convolution, and {type(model).__name__} has none; choose a convolutional backbone"
        )
    return _last_stage_by_type(stages[-1]) if _holds(stages[-1], nn.Linear) else stages[-1]


def grad_cam(
    model: nn.Module, inputs: torch.Tensor, class_indices: NDArray[np.int64], *, batch_size: int = 16
) -> NDArray[np.float32]:
    """Return one heat map per image for its class.

    Args:
        model: in evaluation mode, logits (N, C) out; of an Ensemble all members are used.
        inputs: (N, channels, H, W), normalised as in training, on the model's device.
        class_indices: (N,) the class that each map explains.
        batch_size: images per forward pass.

    Returns:
        (N, H, W), 0 to 1. The maximum of a map is 1; a map is all 0 if no cell contributes to the class.

    Raises:
        WeightsError: the model has no convolution stage.
    """
    members = list(model.members) if isinstance(model, Ensemble) else [model]
    stages = [_stages(member) for member in members]
    maps = [np.zeros((0, *inputs.shape[-2:]), np.float32)]
    for start in range(0, len(inputs), batch_size):
        batch, classes = inputs[start : start + batch_size], class_indices[start : start + batch_size]
        of_members = [_heat(member, own, batch, classes) for member, own in zip(members, stages, strict=True)]
        mean = torch.stack(of_members).mean(dim=0) if len(members) > 1 else of_members[0]
        maps.append(_peak_at_1(mean).cpu().numpy())
    return np.concatenate(maps)


def grad_cam_of_images(
    model: nn.Module,
    images: NDArray[np.uint8],
    class_indices: NDArray[np.int64],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> NDArray[np.float32]:
    """Return `grad_cam` of prepared uint8 images (N, H, W)."""
    device = next(model.parameters()).device
    return grad_cam(model, images_to_input(images, device, mean=mean, std=std), class_indices)


def _holds(module: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(part, kind) for part in module.modules())


def _stages(network: nn.Module) -> list[nn.Module]:
    """Return the modules that a map may come from, the last stage first."""
    last = last_convolution_stage(network)
    if saliency_stage(network) is None:
        return [last]
    parts = parts_of(network)
    return [last, *(list(parts[name])[-1] for name in _EARLIER_PARTS)]


def _heat(
    network: nn.Module, stages: list[nn.Module], inputs: torch.Tensor, class_indices: NDArray[np.int64]
) -> torch.Tensor:
    """Return the maps (B, H, W) of one network, each with its maximum at 1."""
    kept: dict[int, torch.Tensor] = {}

    def keep(number: int, output: torch.Tensor) -> torch.Tensor:
        # A leaf in place of the earliest stage's output: works with frozen weights, and backward stops there.
        kept[number] = output.detach().requires_grad_() if number == len(stages) - 1 else output
        return kept[number].clone()  # the next layer may operate in place

    handles = [
        stage.register_forward_hook(lambda _module, _arguments, output, number=number: keep(number, output))
        for number, stage in enumerate(stages)
    ]
    try:
        with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
            logits = network(inputs.float())
            wanted = torch.as_tensor(class_indices, device=logits.device)
            score = logits.gather(1, wanted[:, None]).sum()
            chosen = _deepest_fine_enough(kept)
            (gradient,) = torch.autograd.grad(score, kept[chosen])
    finally:
        for handle in handles:
            handle.remove()
    return _enlarged(gradient, kept[chosen].detach(), (inputs.shape[-2], inputs.shape[-1]), of_last=chosen == 0)


def _deepest_fine_enough(maps: dict[int, torch.Tensor]) -> int:
    """Return the number of the first stage with MIN_CELLS cells a side; of coarser ones the finest."""
    cells = {number: min(maps[number].shape[-2:]) for number in sorted(maps)}
    return next((number for number, side in cells.items() if side >= MIN_CELLS), max(cells, key=cells.__getitem__))


def _enlarged(
    gradient: torch.Tensor, activation: torch.Tensor, size: tuple[int, int], *, of_last: bool
) -> torch.Tensor:
    weights = gradient.mean(dim=(2, 3), keepdim=True) if of_last else gradient.relu()
    cam = (weights * activation).sum(dim=1, keepdim=True).relu()
    return _peak_at_1(nn.functional.interpolate(cam, size=size, mode="bilinear", align_corners=False)[:, 0])


def _peak_at_1(maps: torch.Tensor) -> torch.Tensor:
    peak = maps.amax(dim=(1, 2), keepdim=True)
    return maps / torch.where(peak > 0, peak, 1)
