"""What moves the weights: which parts learn, how fast, and the average that is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cxr.common.errors import WeightsError
from cxr.models.factory import WeightsReport, parts_of

if TYPE_CHECKING:
    from cxr.common.params import TrainParams


def make_optimizer(model: nn.Module, recipe: TrainParams) -> torch.optim.AdamW:
    """Return AdamW with a learning rate for each part; biases and norms are not decayed."""
    groups = []
    rates = {str(part): rate for part, rate in recipe.learning_rates.items()}
    for part, modules in parts_of(model).items():
        rate = rates[part]
        matrices = [value for value in modules.parameters() if value.ndim > 1]
        vectors = [value for value in modules.parameters() if value.ndim <= 1]
        groups.append({"params": matrices, "lr": rate, "base_lr": rate, "weight_decay": recipe.weight_decay})
        groups.append({"params": vectors, "lr": rate, "base_lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(groups)


def check_frozen(report: WeightsReport, recipe: TrainParams) -> None:
    """Refuse to freeze what was never trained. Raises WeightsError."""
    untrained = [part for part in recipe.frozen if part not in report.loaded]
    if untrained:
        raise WeightsError(
            f"train.frozen holds {', '.join(untrained)}, of which weights {report.source!r} lack some or all: "
            "frozen they would stay random; take them out of train.frozen or give weights that hold them"
        )


def set_mode(model: nn.Module, report: WeightsReport, recipe: TrainParams, *, epoch: int) -> None:
    """Put `model` in training mode for `epoch` (from 0): what learns, what keeps its statistics.

    Batch-norm statistics are kept only in parts whose weights were wholly loaded: beside random
    convolutions the loaded statistics describe activations that do not exist.
    """
    model.train()
    for part, modules in parts_of(model).items():
        learns = part == "head" or (part not in recipe.frozen and epoch >= recipe.head_only_epochs)
        modules.requires_grad_(learns)
        keeps_statistics = part in recipe.frozen or (recipe.freeze_batchnorm_statistics and part in report.loaded)
        if keeps_statistics:
            for module in modules.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to its own base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def warm_cosine(step: int, *, warmup_steps: float, total_steps: int) -> float:
    """Return the factor of the learning rate at `step` (from 0): linear up to 1, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def running_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of weights and statistics, `decay` reached by warming up.

    Without warm-up the random start would weigh on the average for 1 / (1 - decay) steps.
    """

    @torch.no_grad()
    def average(kept: Iterable[Tensor], current: Iterable[Tensor], n_averaged: Tensor | int) -> None:
        step = int(n_averaged)
        weight = 1 - min(decay, (1 + step) / (10 + step))
        for old, new in zip(kept, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, weight)
            else:
                old.copy_(new)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
