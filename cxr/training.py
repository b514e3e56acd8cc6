"""The training loop: films in memory, whole batches augmented on the device, every epoch a checkpoint.

Imports torch, torchvision, numpy and scikit-learn and nothing of the platform, so the same loop runs
on a machine that has only these. A run that is killed goes on from its last epoch and, on a CPU,
ends with the same bits: order and augmentation of an epoch depend on the seed and its number alone.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn import functional

from cxr.augment import Augmentation, augment, mix
from cxr.checkpoint import load_checkpoint, save_checkpoint
from cxr.errors import DataError, TrainingError
from cxr.inference import choose_device, to_input
from cxr.optimisation import (
    check_frozen,
    make_optimizer,
    running_average,
    set_learning_rates,
    set_mode,
    warm_cosine,
)
from cxr.zoo import IMAGENET_MEAN, IMAGENET_STD, WeightsReport, build, check_image_size, load_weights

if TYPE_CHECKING:
    from cxr.params import TrainParams

_VALIDATION_BATCH = 64


@dataclass(frozen=True)
class TrainingData:
    """Prepared films and who learns from them.

    images           (N, H, W) uint8, may be memory-mapped
    labels           (N,) int64, index into classes
    train_rows, validation_rows   rows of `images`; no row may be in both
    sources          (N,) int64, the set each film comes from; needed for sampling by source alone
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    train_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]
    classes: tuple[str, ...]
    sources: NDArray[np.int64] | None = None


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

    def on_batch(self, films: int) -> None:
        """Called after each batch with its number of films."""

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


def fit(data: TrainingData, recipe: TrainParams, *, checkpoints: Path, listener: Listener) -> Trained:
    """Train a network, or go on with a training that was cut off.

    Args:
        data: films and rows.
        recipe: see TrainParams; any object with its attributes will do.
        checkpoints: folder of this very training (same data, same recipe); what is there is continued.
        listener: whom to tell.

    Returns:
        The averaged weights of the epoch with the best validation macro-F1.

    Raises:
        DataError: there is nothing to train or to validate on.
        ParamsError: the films are smaller than the network can take.
        WeightsError: starting weights cannot be loaded, or random parts are frozen.
        TrainingError: the loss is no longer finite; the last epoch's checkpoint is kept.
    """
    if not len(data.train_rows) or not len(data.validation_rows):
        raise DataError(
            f"training needs films to learn from and films to validate on, got {len(data.train_rows)} and "
            f"{len(data.validation_rows)}; look at the split's shares and quotas in params.yaml"
        )
    check_image_size(recipe.backbone, data.images.shape[1])
    training = _Training(data, recipe)
    load_checkpoint(training, checkpoints, Epoch)
    while len(training.history) < recipe.epochs and not training.has_stalled():
        training.run_epoch(listener)
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


class _Films:
    """Films by row: kept on the GPU whole when they take less than half of its free memory."""

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

    def __init__(self, data: TrainingData, recipe: TrainParams) -> None:
        self.data, self.recipe = data, recipe
        self.device = choose_device(recipe.device)
        self.precision = choose_precision(recipe.precision, self.device)
        torch.manual_seed(recipe.seed)  # random weights, the head's at least
        self.model = build(recipe.backbone, len(data.classes))
        self.weights = load_weights(self.model, recipe.weights)
        check_frozen(self.weights, recipe)
        self.model.to(self.device)
        self.average = running_average(self.model, recipe.ema_decay)
        self.optimizer = make_optimizer(self.model, recipe)
        self.history: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_epoch = 0
        self._films = _Films(data.images, self.device)
        self._forward = torch.compile(self.model) if recipe.compile else self.model
        self._class_weights = _class_weights(data, recipe).to(self.device)
        self._ranges = Augmentation(
            rotation_deg=recipe.rotation_deg,
            zoom=(recipe.zoom[0], recipe.zoom[1]),
            shift=recipe.shift,
            contrast_jitter=recipe.contrast_jitter,
            brightness_jitter=recipe.brightness_jitter,
            mirror=recipe.mirror,
        )

    def has_stalled(self) -> bool:
        """Say whether validation has not improved for as long as the recipe waits."""
        patience = self.recipe.early_stopping_patience
        return patience > 0 and len(self.history) - self.best_epoch >= patience

    def run_epoch(self, listener: Listener) -> None:
        """Train on every film once, validate the average, and keep it if it is the best so far."""
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
        set_mode(self.model, self.weights, self.recipe, epoch=number)
        seed = self.recipe.seed * 100_003 + number
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed)
        order = _order(self.data, self.recipe, generator)
        # Nearly equal batches: a last batch of one film would break batch norm.
        steps = max(1, round(len(order) / self.recipe.batch_size))
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
        return float(total) / len(order)

    def _step(self, rows: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        films = augment(self._films.batch(rows), self._ranges, generator)
        targets = torch.from_numpy(self.data.labels[rows]).to(self.device)
        films, partners, share = mix(films, self.recipe.mixup, generator)
        with self._autocast():
            scores = self._forward(to_input(films, IMAGENET_MEAN, IMAGENET_STD)).float()
        loss = self._loss(scores, targets)
        if share < 1:
            loss = share * loss + (1 - share) * self._loss(scores, targets[partners.to(self.device)])
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return loss.detach()

    def _loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(
            scores, targets, weight=self._class_weights, label_smoothing=self.recipe.label_smoothing
        )

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float, float]:
        """Return loss, accuracy and macro-F1 of the average on the validation films."""
        average = self.average.module.eval()
        rows = self.data.validation_rows
        scores = []
        for chunk in np.array_split(rows, max(1, round(len(rows) / _VALIDATION_BATCH))):
            films = self._films.batch(chunk).unsqueeze(1)
            with self._autocast():
                scores.append(average(to_input(films, IMAGENET_MEAN, IMAGENET_STD)).float().cpu())
        logits, labels = torch.cat(scores), torch.from_numpy(self.data.labels[rows])
        predicted = logits.argmax(dim=1)
        classes = range(len(self.data.classes))
        macro_f1 = f1_score(labels, predicted, average="macro", labels=classes, zero_division=0.0)
        accuracy = (predicted == labels).float().mean()
        return float(functional.cross_entropy(logits, labels)), float(accuracy), float(macro_f1)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


def _order(data: TrainingData, recipe: TrainParams, generator: torch.Generator) -> NDArray[np.int64]:
    """Return the rows of one epoch: shuffled, or drawn with replacement so that strata are equally likely."""
    rows = data.train_rows
    if recipe.class_balance in {"none", "weights"}:
        chosen = torch.randperm(len(rows), generator=generator)
    else:
        weights = torch.from_numpy(_sampling_weights(data, by_source=recipe.class_balance == "sampling_by_source"))
        chosen = torch.multinomial(weights, len(rows), replacement=True, generator=generator)
    return np.asarray(rows[chosen.numpy()], np.int64)


def _sampling_weights(data: TrainingData, *, by_source: bool) -> NDArray[np.float64]:
    """Return a weight for each training film: each class weighs the same and, if asked, each source within it."""
    labels = data.labels[data.train_rows]
    weights = 1.0 / np.bincount(labels, minlength=len(data.classes))[labels]
    if not by_source:
        return weights
    if data.sources is None:
        raise DataError("train.class_balance sampling_by_source needs the source of each film, and none is known")
    _, stratum, counts = np.unique(
        np.stack([labels, data.sources[data.train_rows]]), axis=1, return_inverse=True, return_counts=True
    )
    sources_of_class = np.bincount(np.unique(np.stack([labels, stratum.ravel()]), axis=1)[0])
    return 1.0 / (counts[stratum.ravel()] * sources_of_class[labels])


def _class_weights(data: TrainingData, recipe: TrainParams) -> Tensor:
    """Return a weight a class: all one, or the inverse of its share, with the mean over films one."""
    if recipe.class_balance != "weights":
        return torch.ones(len(data.classes))
    counts = np.bincount(data.labels[data.train_rows], minlength=len(data.classes))
    return torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
