"""Grad-CAM: which part of an image contributes to a class (Selvaraju et al. 2017).

The map has the resolution of the last convolution stage (4 x 4 cells for a ResNet at 112 px, 7 x 7 at 224 px) and is
enlarged to the image. Finer maps from an earlier stage follow edges and hardly change when the network's weights are
randomised (docs/decisions.md). The map of an ensemble is the mean of its members' maps.

It shows what the model used, not where the disease is.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cxr.common.errors import WeightsError
from cxr.models.factory import saliency_stage
from cxr.models.forward import images_to_input
from cxr.models.modules import Ensemble


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
    stages = [last_convolution_stage(member) for member in members]
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


def _heat(network: nn.Module, stage: nn.Module, inputs: torch.Tensor, class_indices: NDArray[np.int64]) -> torch.Tensor:
    """Return the maps (B, H, W) of one network, each with its maximum at 1."""
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        # A leaf in place of the stage's output: works with frozen weights, and backward stops there.
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # the next layer may operate in place

    handle = stage.register_forward_hook(keep)
    try:
        with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
            logits = network(inputs.float())
            wanted = torch.as_tensor(class_indices, device=logits.device)
            (gradient,) = torch.autograd.grad(logits.gather(1, wanted[:, None]).sum(), kept[0])
    finally:
        handle.remove()
    cam = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0].detach()).sum(dim=1, keepdim=True).relu()
    size = (inputs.shape[-2], inputs.shape[-1])
    return _peak_at_1(nn.functional.interpolate(cam, size=size, mode="bilinear", align_corners=False)[:, 0])


def _peak_at_1(maps: torch.Tensor) -> torch.Tensor:
    peak = maps.amax(dim=(1, 2), keepdim=True)
    return maps / torch.where(peak > 0, peak, 1)
