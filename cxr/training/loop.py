"""The training loop: images in memory, whole batches augmented on the device, every epoch a checkpoint.

Imports torch, torchvision, numpy and scikit-learn and nothing of the platform, so the same loop runs
on a machine that has only these. A run that is killed goes on from its last epoch and, on a CPU,
ends with the same bits: order and augmentation of an epoch depend on the seed and its number alone.

Several processes train one network together when `fit` is given their group: the batches are those of one process,
shared out, and the gradients are the same but for rounding. Dropout alone draws otherwise.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional

from cxr.common.errors import DataError, ParamsError, TrainingError
from cxr.models.factory import IMAGENET_MEAN, IMAGENET_STD, WeightsReport, build, check_image_size, load_weights
from cxr.models.forward import choose_device, to_input
from cxr.training.augmentation import Augmentation, Moves, augment, draw_mixture, draw_moves, mix
from cxr.training.checkpoint import load_checkpoint, save_checkpoint
from cxr.training.data import TrainingData
from cxr.training.distributed import ProcessGroup, check_batch_norm
from cxr.training.optimizer import (
    check_frozen,
    make_optimizer,
    running_average,
    set_learning_rates,
    set_mode,
    warm_cosine,
)
from cxr.training.sampler import class_weights, epoch_order

if TYPE_CHECKING:
    from cxr.common.params import TrainParams

_VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. `epoch` counts from 1; losses in nats; `seconds` with validation."""

    epoch: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float
    images_per_second: float
    seconds: float


class Listener(Protocol):
    """Who is told how a training goes."""

    def on_batch(self, images: int) -> None:
        """Called after each batch with its number of images."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Called after each epoch, once its checkpoint is safe."""


@dataclass(frozen=True)
class Trained:
    """The averaged weights of the best epoch (macro-F1 on validation), and how they came about."""

    state: dict[str, Tensor]
    weights: WeightsReport
    history: tuple[Epoch, ...]
    best_epoch: int
    device: str
    precision: str


def fit(
    data: TrainingData, recipe: TrainParams, *, checkpoints: Path, listener: Listener, group: ProcessGroup | None = None
) -> Trained:
    """Train a network, or go on with a training that was cut off.

    Args:
        data: images and rows.
        recipe: see TrainParams; any object with its attributes will do.
        checkpoints: folder of this very training (same data, same recipe); what is there is continued.
        listener: whom to tell; each process tells its own.
        group: the processes that train together; this one alone if none is given. All of them call `fit` alike
            and return alike; one of them writes the checkpoints.

    Returns:
        The averaged weights of the epoch with the best validation macro-F1.

    Raises:
        DataError: there is nothing to train or to validate on.
        ParamsError: the images are smaller than the network can take, or the recipe cannot be shared by the group.
        WeightsError: starting weights cannot be loaded, or random parts are frozen.
        TrainingError: the loss is no longer finite, and the last epoch's checkpoint is kept; or the processes see
            different images or checkpoints.
    """
    if not len(data.train_rows) or not len(data.validation_rows):
        raise DataError(
            f"training needs images to learn from and images to validate on, got {len(data.train_rows)} and "
            f"{len(data.validation_rows)}; look at the split's shares and quotas in params.yaml"
        )
    check_image_size(recipe.backbone, data.images.shape[1])
    training = _Training(data, recipe, group or ProcessGroup())
    load_checkpoint(training, checkpoints, Epoch)
    training.check_alike()
    while len(training.history) < recipe.epochs and not training.has_stalled():
        training.run_epoch(listener)
        if training.group.is_main_process:
            save_checkpoint(training, checkpoints)
        listener.on_epoch(training.history[-1])
    return Trained(
        training.best_state,
        training.weights,
        tuple(training.history),
        training.best_epoch,
        str(training.device),
        training.precision,
    )


def choose_precision(name: str, device: torch.device) -> str:
    """Return "bf16" or "fp32"; "auto" takes bf16 where `device` multiplies it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # since torch 2.10
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"


class _Images:
    """Images by row: kept on the GPU whole when they take less than half of its free memory."""

    def __init__(self, images: NDArray[np.uint8], device: torch.device) -> None:
        self._images, self._device = images, device
        self._resident: Tensor | None = None
        if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            self._resident = torch.from_numpy(np.array(images)).to(device)

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        """Return (B, H, W) float grey levels 0 to 1 on the device."""
        if self._resident is not None:
            return self._resident[torch.from_numpy(rows).to(self._device)].float() / 255
        return torch.from_numpy(self._images[rows]).to(self._device).float() / 255


class _Training:
    """A training between two epochs: what a checkpoint holds, and what the next epoch needs."""

    def __init__(self, data: TrainingData, recipe: TrainParams, group: ProcessGroup) -> None:
        self.data, self.recipe, self.group = data, recipe, group
        self.device = group.device(choose_device(recipe.device))
        self.precision = choose_precision(recipe.precision, self.device)
        torch.manual_seed(recipe.seed)  # random weights, the head's at least
        self.model = build(recipe.backbone, len(data.classes))
        self.weights = load_weights(self.model, recipe.weights)
        check_frozen(self.weights, recipe)
        self.model.to(self.device)
        # Nearly equal batches: a last batch of one image would break batch norm.
        self._steps = max(1, round(len(data.train_rows) / recipe.batch_size))
        if group.size > 1:
            self._prepare_for_several()
        self.average = running_average(self.model, recipe.ema_decay)
        self.optimizer = make_optimizer(self.model, recipe)
        self.history: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_epoch = 0
        self._images = _Images(data.images, self.device)
        self._forward: Callable[[Tensor], Tensor] = self.model
        self._forward_learns: list[str] | None = None
        self._class_weights = class_weights(data, recipe).to(self.device)
        self._ranges = Augmentation(
            rotation_deg=recipe.rotation_deg,
            zoom=(recipe.zoom[0], recipe.zoom[1]),
            shift=recipe.shift,
            contrast_jitter=recipe.contrast_jitter,
            brightness_jitter=recipe.brightness_jitter,
            mirror=recipe.mirror,
        )

    def _prepare_for_several(self) -> None:
        smallest = len(self.data.train_rows) // self._steps
        if smallest < self.group.size:
            raise ParamsError(
                f"train.batch_size gives batches of {smallest} images, fewer than the {self.group.size} processes; "
                "raise it or start fewer"
            )
        set_mode(self.model, self.weights, self.recipe, epoch=0)
        check_batch_norm(self.model, self.device)
        if self.device.type == "cuda":
            convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
            self.model = convert(self.model)

    def check_alike(self) -> None:
        """Refuse to go on when another process of the group has other images or stands at another epoch."""
        data = self.data
        rows = np.concatenate((data.train_rows, data.validation_rows, data.labels))
        self.group.check_alike(epochs=len(self.history), images=zlib.crc32(rows.tobytes()))

    def has_stalled(self) -> bool:
        """Say whether validation has not improved for as long as the recipe waits."""
        patience = self.recipe.early_stopping_patience
        return patience > 0 and len(self.history) - self.best_epoch >= patience

    def run_epoch(self, listener: Listener) -> None:
        """Train on every image once, validate the average, and keep it if it is the best so far."""
        number, started = len(self.history), time.perf_counter()
        loss = self._train(number, listener)
        train_seconds = time.perf_counter() - started
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {number + 1}; the checkpoint of epoch {number} is kept. "
                "Lower train.learning_rates or set train.precision to fp32, and run again"
            )
        best_before = max((epoch.validation_macro_f1 for epoch in self.history), default=-1.0)
        validation_loss, accuracy, macro_f1 = self._validate()
        self.history.append(
            Epoch(
                epoch=number + 1,
                learning_rate=float(self.optimizer.param_groups[-1]["lr"]),
                train_loss=loss,
                validation_loss=validation_loss,
                validation_accuracy=accuracy,
                validation_macro_f1=macro_f1,
                images_per_second=len(self.data.train_rows) / train_seconds,
                seconds=time.perf_counter() - started,
            )
        )
        if macro_f1 > best_before:
            self.best_epoch = number + 1
            self.best_state = {name: value.cpu().clone() for name, value in self.average.module.state_dict().items()}

    def _train(self, number: int, listener: Listener) -> float:
        """Take the steps of epoch `number` (from 0); return the mean loss."""
        self._set_mode(number)
        seed = self.recipe.seed * 100_003 + number
        torch.manual_seed(seed + (self.group.rank << 32))  # dropout
        generator = torch.Generator().manual_seed(seed)
        order = epoch_order(self.data, self.recipe, generator)
        steps = self._steps
        total = torch.zeros((), device=self.device)
        for index, rows in enumerate(np.array_split(order, steps)):
            factor = warm_cosine(
                number * steps + index,
                warmup_steps=self.recipe.warmup_epochs * steps,
                total_steps=self.recipe.epochs * steps,
            )
            set_learning_rates(self.optimizer, factor)
            total += self._step(rows, generator) * len(rows)
            listener.on_batch(len(rows))
        return float(self.group.total(total)) / len(order)

    def _set_mode(self, number: int) -> None:
        """Make the parts learn or rest as epoch `number` (from 0) asks, and wrap the network for what learns."""
        set_mode(self.model, self.weights, self.recipe, epoch=number)
        learns = [name for name, value in self.model.named_parameters() if value.requires_grad]
        if self._forward_learns is None or (self.group.size > 1 and learns != self._forward_learns):
            shared = self.group.share_gradients(self.model)
            self._forward = torch.compile(shared) if self.recipe.compile else shared
            self._forward_learns = learns

    def _step(self, rows: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """Learn from the images of one global batch; return this process's part of the loss, in nats."""
        moves = draw_moves(len(rows), self._ranges, generator)
        partners, share = draw_mixture(len(rows), self.recipe.mixup, generator)
        own = self.group.part(len(rows))
        images = self._moved(rows, moves, own)
        if share < 1:
            # Of several processes, another may have an image's partner.
            alone = self.group.size == 1
            others = images[partners.to(self.device)] if alone else self._moved(rows, moves, partners[own])
            images = mix(images, others, share)
        with self._autocast():
            scores = self._forward(to_input(images, IMAGENET_MEAN, IMAGENET_STD)).float()
        labels = torch.from_numpy(self.data.labels[rows])
        loss = self._loss(scores, labels, own)
        if share < 1:
            loss = share * loss + (1 - share) * self._loss(scores, labels[partners], own)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss * self.group.size)  # the mean over the processes is the sum of their parts
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return loss.detach()

    def _moved(self, rows: NDArray[np.int64], moves: Moves, positions: Tensor) -> Tensor:
        return augment(self._images.batch(rows[positions.numpy()]), self._ranges, moves.of(positions))

    def _loss(self, scores: Tensor, labels: Tensor, own: Tensor) -> Tensor:
        """Return what the images `own` add to the mean loss of a global batch with these labels."""
        targets, weights = labels.to(self.device), self._class_weights
        smoothing = self.recipe.label_smoothing
        if self.group.size == 1:
            return functional.cross_entropy(scores, targets, weight=weights, label_smoothing=smoothing)
        mine = targets[own.to(self.device)]
        added = functional.cross_entropy(scores, mine, weight=weights, label_smoothing=smoothing, reduction="sum")
        return added / weights[targets].sum()

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float, float]:
        """Return loss, accuracy and macro-F1 of the average on the validation images."""
        rows = self.data.validation_rows
        logits, labels = self._validation_logits(rows), torch.from_numpy(self.data.labels[rows])
        predicted = logits.argmax(dim=1)
        classes = range(len(self.data.classes))
        macro_f1 = f1_score(labels, predicted, average="macro", labels=classes, zero_division=0.0)
        accuracy = (predicted == labels).float().mean()
        return float(functional.cross_entropy(logits, labels)), float(accuracy), float(macro_f1)

    def _validation_logits(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the average's scores (N, C) of the images `rows`, on the CPU; each process computes its part."""
        average = self.average.module.eval()
        own = self.group.part(len(rows))
        logits = torch.zeros((len(rows), len(self.data.classes)), device=self.device)
        for chunk in own.tensor_split(max(1, round(len(own) / _VALIDATION_BATCH))):
            if len(chunk):
                images = self._images.batch(rows[chunk.numpy()]).unsqueeze(1)
                with self._autocast():
                    scores = average(to_input(images, IMAGENET_MEAN, IMAGENET_STD)).float()
                logits[chunk.to(self.device)] = scores
        return self.group.total(logits).cpu()  # adding zeros changes no bit

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()
