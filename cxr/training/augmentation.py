"""Augmentation computed on the device for a whole batch: the paper's movements, and changes of style.

Nothing here waits for the device: a copy that did would leave a GPU idle while the next operations are started.

Pham and Nguyen 2023, section 3.2: rotation up to 20 degrees, zoom 0.9 to 1.1, shift up to 0.1.
The changes of style imitate other X-ray devices and other software: exposure (gamma), sharpness, shading, noise, and
borders of another width. torchvision draws one set of parameters per batch; here each image has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, radians

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
    gamma_jitter        0.4 raises grey levels to a power from exp(-0.4) to exp(0.4)
    sharpness_jitter    1.0 ranges from a blurred image over the unchanged one to fine detail doubled
    shading             largest change of grey levels, relative, by a smooth field over the image
    noise               largest standard deviation of white noise, as a share of full scale
    border_wipe         largest strip at each side that is painted with one grey level, as a share of the side
    """

    rotation_deg: float
    zoom: tuple[float, float]
    shift: float
    contrast_jitter: float
    brightness_jitter: float
    mirror: float = 0.0
    gamma_jitter: float = 0.0
    sharpness_jitter: float = 0.0
    shading: float = 0.0
    noise: float = 0.0
    border_wipe: float = 0.0

    @property
    def changes_style(self) -> bool:
        """Whether any change of style is on."""
        return any((self.gamma_jitter, self.sharpness_jitter, self.shading, self.noise, self.border_wipe))


@dataclass(frozen=True)
class Draws:
    """Random numbers for the images of a batch.

    uniform   (6, B), each -1 to 1: angle, zoom, shift in x and y, contrast, brightness
    mirrored  (B,) bool
    style     (17, B), each -1 to 1: gamma, sharpness, noise, 4 borders, their grey level, 9 nodes of the shading;
              (0, B) without changes of style
    seed      of the noise
    """

    uniform: Tensor
    mirrored: Tensor
    style: Tensor
    seed: int

    def of(self, positions: Tensor) -> Draws:
        """Return the numbers of the images at `positions`."""
        return Draws(self.uniform[:, positions], self.mirrored[positions], self.style[:, positions], self.seed)


def draw(count: int, ranges: Augmentation, generator: torch.Generator) -> Draws:
    """Draw for `count` images; `generator` is on the CPU, so a seed draws the same numbers for every device."""
    uniform = torch.rand((6, count), generator=generator) * 2 - 1
    mirrored = torch.rand(count, generator=generator) < ranges.mirror if ranges.mirror else torch.zeros(count) > 0
    if not ranges.changes_style:
        return Draws(uniform, mirrored, torch.zeros((0, count)), 0)
    style = torch.rand((17, count), generator=generator) * 2 - 1
    return Draws(uniform, mirrored, style, int(torch.randint(2**31, (1,), generator=generator)))


def augment(images: Tensor, ranges: Augmentation, draws: Draws) -> Tensor:
    """Rotate, zoom, shift and jitter each image, and change its style, by its own parameters.

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
    ).to(images.device, non_blocking=True)
    grid = functional.affine_grid(theta, [count, 1, *images.shape[1:]], align_corners=False)
    moved = functional.grid_sample(images.unsqueeze(1), grid, padding_mode="border", align_corners=False)
    contrast = (1 + uniform[4] * ranges.contrast_jitter).view(-1, 1, 1, 1).to(images.device, non_blocking=True)
    brightness = (uniform[5] * ranges.brightness_jitter).view(-1, 1, 1, 1).to(images.device, non_blocking=True)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    jittered = ((moved - mean) * contrast + mean + brightness).clamp(0, 1)
    return change_style(jittered, ranges, draws) if ranges.changes_style else jittered


def change_style(images: Tensor, ranges: Augmentation, draws: Draws) -> Tensor:
    """Change exposure, sharpness, shading, noise and borders of images (B, 1, H, W), grey levels 0 to 1."""
    style = draws.style.to(images.device, non_blocking=True)
    gamma, sharpness, noise = (value.view(-1, 1, 1, 1) for value in style[:3])
    if ranges.gamma_jitter:
        images = images.clamp(min=1e-4) ** (gamma * ranges.gamma_jitter).exp()
    if ranges.sharpness_jitter:
        images = images + sharpness * ranges.sharpness_jitter * (images - _blurred(images))
    if ranges.shading:
        nodes = style[8:17].T.reshape(-1, 1, 3, 3)
        field = functional.interpolate(nodes, size=images.shape[2:], mode="bilinear", align_corners=True)
        images = images * (1 + ranges.shading * field)
    if ranges.noise:
        generator = torch.Generator(images.device).manual_seed(draws.seed)
        white = torch.randn(images.shape, generator=generator, device=images.device)
        images = images + noise.abs() * ranges.noise * white
    if ranges.border_wipe:
        # Half of the draws are negative: those sides keep their border.
        images = _wiped(images, style[3:7] * ranges.border_wipe, (style[7] + 1) / 2)
    return images.clamp(0, 1)


def _blurred(images: Tensor) -> Tensor:
    """Blur by a Gaussian whose standard deviation is 1 pixel in 112, so that it does the same at every size."""
    sigma = images.shape[-1] / 112
    reach = max(1, round(2.5 * sigma))
    kernel = torch.tensor([exp(-0.5 * (step / sigma) ** 2) for step in range(-reach, reach + 1)])
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).to(images.device, non_blocking=True)
    padded = functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel), kernel.transpose(2, 3))


def _wiped(images: Tensor, widths: Tensor, grey: Tensor) -> Tensor:
    """Paint strips of `widths` (4, B), shares of the side at left, right, top and bottom, with `grey` (B,)."""
    left, right, top, bottom = (width.view(-1, 1, 1, 1) for width in widths)
    y = torch.linspace(0, 1, images.shape[2], device=images.device).view(1, 1, -1, 1)
    x = torch.linspace(0, 1, images.shape[3], device=images.device).view(1, 1, 1, -1)
    wiped = (x < left) | (x > 1 - right) | (y < top) | (y > 1 - bottom)
    return torch.where(wiped, grey.view(-1, 1, 1, 1), images)


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
