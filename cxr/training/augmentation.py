"""The paper's augmentation, computed on the device for a whole batch.

Pham and Nguyen 2023, section 3.2: rotation up to 20 degrees, zoom 0.9 to 1.1, shift up to 0.1.
torchvision draws one set of parameters per batch; here each image has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import radians

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Ranges from which each image's parameters are drawn uniformly.

    rotation_deg        largest angle in either direction
    zoom                smallest and largest magnification
    shift               largest translation in x and in y, as a share of the side
    contrast_jitter     0.1 scales the contrast about the image's mean by 0.9 to 1.1
    brightness_jitter   0.1 adds -0.1 to 0.1 of full scale to the grey levels
    mirror              share of the images that are mirrored left to right
    """

    rotation_deg: float
    zoom: tuple[float, float]
    shift: float
    contrast_jitter: float
    brightness_jitter: float
    mirror: float = 0.0


@dataclass(frozen=True)
class Draws:
    """Random numbers for the images of a batch.

    uniform   (6, B), each -1 to 1: angle, zoom, shift in x and y, contrast, brightness
    mirrored  (B,) bool
    """

    uniform: Tensor
    mirrored: Tensor

    def of(self, positions: Tensor) -> Draws:
        """Return the numbers of the images at `positions`."""
        return Draws(self.uniform[:, positions], self.mirrored[positions])


def draw(count: int, ranges: Augmentation, generator: torch.Generator) -> Draws:
    """Draw for `count` images; `generator` is on the CPU, so a seed draws the same numbers for every device."""
    uniform = torch.rand((6, count), generator=generator) * 2 - 1
    mirrored = torch.rand(count, generator=generator) < ranges.mirror if ranges.mirror else torch.zeros(count) > 0
    return Draws(uniform, mirrored)


def augment(images: Tensor, ranges: Augmentation, draws: Draws) -> Tensor:
    """Rotate, zoom, shift and jitter each image by its own parameters.

    Args:
        images: (B, H, W) float, grey levels 0 to 1, on any device.
        ranges: ranges of the parameters.
        draws: random numbers of these images.

    Returns:
        (B, 1, H, W) float on the device of `images`, padded by repeating the edge.
    """
    count, uniform = len(images), draws.uniform
    middle, half = sum(ranges.zoom) / 2, (ranges.zoom[1] - ranges.zoom[0]) / 2
    angle, zoom = uniform[0] * radians(ranges.rotation_deg), middle + uniform[1] * half
    shift = uniform[2:4] * 2 * ranges.shift  # the sampling grid is 2 wide
    side = torch.where(draws.mirrored, -1.0, 1.0)
    theta = torch.stack(
        (
            torch.stack((side * angle.cos() / zoom, -side * angle.sin() / zoom, shift[0]), dim=1),
            torch.stack((angle.sin() / zoom, angle.cos() / zoom, shift[1]), dim=1),
        ),
        dim=1,
    ).to(images.device)
    grid = functional.affine_grid(theta, [count, 1, *images.shape[1:]], align_corners=False)
    moved = functional.grid_sample(images.unsqueeze(1), grid, padding_mode="border", align_corners=False)
    contrast = (1 + uniform[4] * ranges.contrast_jitter).view(-1, 1, 1, 1).to(images.device)
    brightness = (uniform[5] * ranges.brightness_jitter).view(-1, 1, 1, 1).to(images.device)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    return ((moved - mean) * contrast + mean + brightness).clamp(0, 1)


def draw_mixture(count: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Draw how the images of a batch are blended with each other (mixup; Zhang et al. 2018).

    Args:
        count: number of images, B.
        alpha: of the Beta(alpha, alpha) distribution of the share, drawn once per batch; 0 means no blending.
        generator: on the CPU.

    Returns:
        Index (B,) of the image that is blended into each, and the share that each image keeps, 0 to 1.
    """
    if alpha == 0:
        return torch.arange(count), 1.0
    seed = int(torch.randint(2**31, (1,), generator=generator))  # torch cannot draw Beta variates from a generator
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return torch.randperm(count, generator=generator), share


def mix(images: Tensor, others: Tensor, share: float) -> Tensor:
    """Return `share` of `images` (B, ...) and the rest of `others` (B, ...), image by image."""
    return share * images + (1 - share) * others
