"""The paper's augmentation, a whole batch at a time on the device.

Pham and Nguyen 2023, section 3.2: rotation up to 20 degrees, zoom 0.9 to 1.1, shift up to 0.1.
torchvision draws one set of parameters a batch; here each image has its own.
"""

from dataclasses import dataclass
from math import radians

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Ranges that each image's parameters are drawn from, uniformly.

    rotation_deg        degrees to either side
    zoom                smallest and largest magnification
    shift               share of the side, to either side, in x and in y
    contrast_jitter     0.1: contrast about the image's mean times 0.9 to 1.1
    brightness_jitter   0.1: grey levels plus -0.1 to 0.1 of full scale
    mirror              share of the images that are mirrored left to right
    """

    rotation_deg: float
    zoom: tuple[float, float]
    shift: float
    contrast_jitter: float
    brightness_jitter: float
    mirror: float = 0.0


@dataclass(frozen=True)
class Moves:
    """What was drawn for the images of a batch: draws (6, B), each -1 to 1; mirrored (B,) bool."""

    draws: Tensor
    mirrored: Tensor

    def of(self, positions: Tensor) -> "Moves":
        """Return what was drawn for the images at `positions`."""
        return Moves(self.draws[:, positions], self.mirrored[positions])


def draw_moves(count: int, ranges: Augmentation, generator: torch.Generator) -> Moves:
    """Draw for `count` images; a generator on the CPU, so that a seed draws the same whatever the device."""
    draws = torch.rand((6, count), generator=generator) * 2 - 1
    mirrored = torch.rand(count, generator=generator) < ranges.mirror if ranges.mirror else torch.zeros(count) > 0
    return Moves(draws, mirrored)


def augment(images: Tensor, ranges: Augmentation, moves: Moves) -> Tensor:
    """Rotate, zoom, shift and jitter each image by parameters of its own.

    Args:
        images: (B, H, W) float, grey levels 0 to 1, on any device.
        ranges: what the draws are scaled to.
        moves: drawn for these images.

    Returns:
        (B, 1, H, W) float on the device of `images`; what comes in from outside repeats the image's edge.
    """
    count, draws = len(images), moves.draws
    middle, half = sum(ranges.zoom) / 2, (ranges.zoom[1] - ranges.zoom[0]) / 2
    angle, zoom = draws[0] * radians(ranges.rotation_deg), middle + draws[1] * half
    shift = draws[2:4] * 2 * ranges.shift  # the sampling grid is 2 wide
    side = torch.where(moves.mirrored, -1.0, 1.0)
    theta = torch.stack(
        (
            torch.stack((side * angle.cos() / zoom, -side * angle.sin() / zoom, shift[0]), dim=1),
            torch.stack((angle.sin() / zoom, angle.cos() / zoom, shift[1]), dim=1),
        ),
        dim=1,
    ).to(images.device)
    grid = functional.affine_grid(theta, [count, 1, *images.shape[1:]], align_corners=False)
    moved = functional.grid_sample(images.unsqueeze(1), grid, padding_mode="border", align_corners=False)
    contrast = (1 + draws[4] * ranges.contrast_jitter).view(-1, 1, 1, 1).to(images.device)
    brightness = (draws[5] * ranges.brightness_jitter).view(-1, 1, 1, 1).to(images.device)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    return ((moved - mean) * contrast + mean + brightness).clamp(0, 1)


def draw_mixture(count: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Draw how the images of a batch are blended with each other (mixup; Zhang et al. 2018).

    Args:
        count: of images, B.
        alpha: of the Beta(alpha, alpha) that the share is drawn from, once a batch; 0 leaves the images as they are.
        generator: on the CPU.

    Returns:
        partners (B,), the image that is blended in; the share that each image keeps, 0 to 1.
    """
    if alpha == 0:
        return torch.arange(count), 1.0
    seed = int(torch.randint(2**31, (1,), generator=generator))  # torch draws no Beta from a generator
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return torch.randperm(count, generator=generator), share


def mix(images: Tensor, others: Tensor, share: float) -> Tensor:
    """Return `share` of `images` (B, ...) and the rest of `others` (B, ...), image by image."""
    return share * images + (1 - share) * others
