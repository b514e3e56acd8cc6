"""From prepared images to probabilities: the path that evaluation, registration and prediction share.

Functions import torch where they compute: answering through OpenVINO must not wait seconds for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cxr.models.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cxr.models.bundle import ModelSpec

BATCH_SIZE = 16
"""Images in every forward pass, filled up if there are fewer: see `predict_logits`.

On two cores an image takes 5% longer than in batches of 32, and a single image half as long.
"""


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" selects the first available of cuda, mps and cpu.

    Where it is the CPU, the process keeps memory that it frees from then on, as `keep_freed_memory` says.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def to_input(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalise grey images and repeat them on three channels, as the network expects.

    Args:
        images: (B, 1, H, W) float, grey levels 0 to 1.
        mean, std: of the three channels, on the same scale.

    Returns:
        (B, 3, H, W) float, normalised, channels last in memory.
    """
    import torch

    shape = (1, 3, 1, 1)
    centre, scale = images.new_tensor(mean).view(shape), images.new_tensor(std).view(shape)
    return ((images - centre) / scale).contiguous(memory_format=torch.channels_last)


def images_to_input(
    images: NDArray[np.uint8], device: torch.device, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return prepared images (N, H, W), which may be memory-mapped, on `device` as `to_input` makes them."""
    import torch

    return to_input(torch.from_numpy(np.array(images)).to(device).unsqueeze(1).float() / 255, mean, std)


def predict_logits(
    model: nn.Module,
    pixels: NDArray[np.uint8],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], object] | None = None,
) -> NDArray[np.float32]:
    """Return the logits of prepared images, computed in fp32 regardless of the precision of the training.

    An image's logits do not depend on its batch. Libraries choose their algorithms by batch size, which changes the
    last bits (1e-6 of a DenseNet-121's logits), so the last batch is filled up with black images.

    Args:
        model: in evaluation mode, on any device.
        pixels: (N, H, W) uint8; may be memory-mapped, one batch is read at a time.
        mean, std: of the three channels, on the scale 0 to 1.
        batch_size: images per forward pass.
        progress: called after each batch with its number of images.

    Returns:
        (N, C) float32.
    """
    logits: list[NDArray[np.float32]] = []
    for start in range(0, len(pixels), batch_size):
        images = pixels[start : start + batch_size]
        logits.append(_answer(model, images, mean=mean, std=std, batch_size=batch_size)[0])
        if progress is not None:
            progress(len(images))
    return np.concatenate(logits) if logits else np.zeros((0, 0), np.float32)


def predict_with_features(
    model: nn.Module, images: NDArray[np.uint8], *, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits (N, C) and features (N, D) of prepared images (N, H, W), N from 1 to BATCH_SIZE.

    Both come from one forward pass in fp32. The logits are bit-identical to those of `predict_logits`.
    """
    return _answer(model, images, mean=mean, std=std, batch_size=BATCH_SIZE)


def _answer(
    model: nn.Module, images: NDArray[np.uint8], *, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits and features of at most `batch_size` images, filled up to that number for the forward pass."""
    import torch

    from cxr.models.factory import logits_and_features

    filled = np.zeros((batch_size, *images.shape[1:]), np.uint8)
    filled[: len(images)] = images
    device = next(model.parameters()).device
    # TF32 keeps 10 of 23 mantissa bits; GPUs that have it use it for convolutions by default.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        logits, features = logits_and_features(model, images_to_input(filled, device, mean=mean, std=std))
    return logits.float().cpu().numpy()[: len(images)], features.float().cpu().numpy()[: len(images)]


def softmax_with_temperature(
    logits: NDArray[np.floating], temperature: float, bias: tuple[float, ...] = (0.0,)
) -> NDArray[np.float64]:
    """Return probabilities (N, C), the softmax of `logits / temperature + bias` with one bias per class."""
    scaled = np.asarray(logits, np.float64) / temperature + np.asarray(bias)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float64)


def calibrated(logits: NDArray[np.floating], spec: ModelSpec) -> NDArray[np.float64]:
    """Return probabilities (N, C) of logits, calibrated by the spec's temperature and bias."""
    return softmax_with_temperature(logits, spec.temperature, spec.bias)


def classify(model: nn.Module, spec: ModelSpec, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return calibrated probabilities (N, C) of prepared images (N, H, W), classes in the spec's order."""
    return calibrated(predict_logits(model, images, mean=spec.mean, std=spec.std), spec)


def referred(probabilities: NDArray[np.float64], spec: ModelSpec) -> list[bool | None]:
    """Return for each image with calibrated `probabilities` (N, C) whether it is referred to a reader.

    All are None if the spec has no threshold (`refer_below`).
    """
    if spec.refer_below is None:
        return [None] * len(probabilities)
    return [bool(confidence < spec.refer_below) for confidence in probabilities.max(axis=1)]
