"""Sanity of heat maps: do they depend on the weights, and do they lie on the thorax?

A map that stays the same with random weights shows edges of the image and nothing that was learnt (Adebayo et al. 2018,
"Sanity Checks for Saliency Maps"). A map beside the thorax shows a shortcut.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

from cxr.audit.thorax_mask import thorax_mask
from cxr.evaluation.bootstrap import Interval, Resampling, pair
from cxr.evaluation.rates import Floats, Ints
from cxr.models.factory import parts_of
from cxr.models.grad_cam import grad_cam_of_images
from cxr.models.modules import Ensemble

Heat = NDArray[np.float32]
Images = NDArray[np.uint8]

SIMILAR_FROM = 0.5
"""Rank correlation from which two maps count as similar. Unrelated maps of one image are near 0."""

_DRAWS = 2  # random networks a step: one may look by chance where the trained one looks


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the three channels, on the scale 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class MedianOfImages:
    """The median of a figure over images with its 95% interval over patients."""

    value: float
    interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {"value": self.value, "ci95": pair(self.interval)}


@dataclass(frozen=True)
class RandomisedStep:
    """Rank correlation (-1 to 1) with the trained model's maps after the part `randomised` and all parts above it."""

    randomised: str
    similarity: MedianOfImages

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {"randomised": self.randomised, "similarity": self.similarity.to_json()}


@dataclass(frozen=True)
class SanityCheck:
    """The cascade from the head to all parts, on `images` images; without steps if every map was empty."""

    images: int
    steps: tuple[RandomisedStep, ...]

    @property
    def depends_on_weights(self) -> bool | None:
        """Whether the maps of every randomised network differ from those of the trained one; None without a map."""
        return not self.similar_steps if self.steps else None

    @property
    def similar_steps(self) -> tuple[str, ...]:
        """The steps after which the maps still look like the trained network's."""
        return tuple(step.randomised for step in self.steps if step.similarity.value >= SIMILAR_FROM)

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        return {
            "images": self.images,
            "steps": [step.to_json() for step in self.steps],
            "depends_on_weights": self.depends_on_weights,
            "similar_steps": list(self.similar_steps),
            "similar_from": SIMILAR_FROM,
        }


@dataclass(frozen=True)
class AttentionShare:
    """The share of the heat in the thorax against the thorax's share of the area; medians over images.

    `excess` is the median of the differences. `without_heat` counts images with an empty map; `images` excludes them.
    """

    images: int
    without_heat: int
    heat_inside: MedianOfImages
    area_inside: MedianOfImages
    excess: MedianOfImages

    @property
    def keeps_to_the_thorax(self) -> bool | None:
        """Whether the heat prefers the thorax beyond chance; None with too few patients."""
        return None if self.excess.interval is None else self.excess.interval.low > 0

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        medians = {name: getattr(self, name).to_json() for name in ("heat_inside", "area_inside", "excess")}
        return {
            "images": self.images,
            "without_heat": self.without_heat,
            **medians,
            "keeps_to_the_thorax": self.keeps_to_the_thorax,
        }


def randomisation_check(
    model: nn.Module,
    images: Images,
    class_indices: Ints,
    *,
    scale: Normalisation,
    draws: Resampling,
    parts: Callable[[nn.Module], Mapping[str, nn.Module]] = parts_of,
) -> SanityCheck:
    """Compare the model's maps with those of copies whose parts are randomised, from the head downwards.

    Args:
        model: in evaluation mode; a part of an Ensemble is randomised in all members at once.
        images: (N, H, W) prepared images.
        class_indices: (N,) the classes whose maps are compared.
        scale: of the channels.
        draws: of the images' patients; its seed also draws the weights.
        parts: the model's parts from the image to the answer.
    """
    trained = grad_cam_of_images(model, images, class_indices, **asdict(scale))
    has_map = np.any(trained, axis=(1, 2))
    if not has_map.any():
        return SanityCheck(0, ())
    kept = draws.where(has_map)
    similar: dict[str, list[Floats]] = {}
    for draw in range(_DRAWS):
        for name, randomised in _cascade(model, parts, seed=draws.seed + draw):
            heat = grad_cam_of_images(randomised, images[has_map], class_indices[has_map], **asdict(scale))
            similar.setdefault(name, []).append(rank_correlations(trained[has_map], heat))
    steps = [RandomisedStep(name, _median(np.mean(values, axis=0), kept)) for name, values in similar.items()]
    return SanityCheck(int(has_map.sum()), tuple(steps))


def rank_correlations(first: Heat, second: Heat) -> Floats:
    """Return Spearman's correlation of each pair of maps (N, H, W); 0 where one is constant."""
    flat = [np.nan_to_num(maps.reshape(len(maps), -1)) for maps in (first, second)]
    ranks = [rankdata(maps, axis=1) for maps in flat]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    lengths = np.sqrt(np.prod([(rank**2).sum(axis=1) for rank in centred], axis=0))
    products = (centred[0] * centred[1]).sum(axis=1)
    return np.asarray(np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1), 0.0))


def attention_in_thorax(heat: Heat, images: Images, draws: Resampling) -> AttentionShare | None:
    """Measure how much of the maps (N, H, W) of the images (N, H, W) lies in the thorax; None without any heat."""
    return share_inside(heat, thorax_mask(images), draws)


def share_inside(heat: Heat, inside: NDArray[np.bool_], draws: Resampling) -> AttentionShare | None:
    """Measure how much of the maps (N, H, W) lies where `inside` (N, H, W) is True; None without any heat."""
    total = heat.sum(axis=(1, 2), dtype=np.float64)
    has_heat = total > 0
    if not has_heat.any():
        return None
    heat_share = np.where(inside, heat, 0).sum(axis=(1, 2), dtype=np.float64)[has_heat] / total[has_heat]
    area_share = inside[has_heat].mean(axis=(1, 2))
    kept = draws.where(has_heat)
    return AttentionShare(
        images=int(has_heat.sum()),
        without_heat=int((~has_heat).sum()),
        heat_inside=_median(heat_share, kept),
        area_inside=_median(area_share, kept),
        excess=_median(heat_share - area_share, kept),
    )


def _median(values: Floats, draws: Resampling) -> MedianOfImages:
    return MedianOfImages(float(np.median(values)), draws.median(values))


def _cascade(
    model: nn.Module, parts: Callable[[nn.Module], Mapping[str, nn.Module]], *, seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """Yield a copy of the model with a random head, then also with the next part, until all parts are random."""
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    of_members = [parts(one) for one in (copied.members if isinstance(copied, Ensemble) else [copied])]
    for name in reversed(list(of_members[0])):
        for of_member in of_members:
            _randomise(of_member[name], generator)
        yield name, copied


@torch.no_grad()
def _randomise(part: nn.Module, generator: torch.Generator) -> None:
    """Draw every filter and matrix at random; normalisation layers are reset, other vectors stay.

    Filters get the spread that preserves the signal of a deep network (He et al. 2015). Matrices keep their own spread,
    since those of a support vector machine are in its units.
    """
    for module in part.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            module.reset_parameters()
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dim() > 1 and tensor.numel() > 1:
                spread = (2 / tensor[0].numel()) ** 0.5 if tensor.dim() > 2 else float(tensor.std())
                drawn = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(drawn * spread)
