"""The training loop: images in memory, batches augmented on the device, checkpoints between epochs.

It imports torch, torchvision, numpy and scikit-learn and nothing of the platform, so it runs on a machine that has only
these. A killed run resumes from its last checkpoint and, on a CPU, ends with bit-identical weights: the order and the
augmentation of an epoch depend only on the seed and the epoch's number.

If `fit` is given a process group, its processes train one network together. They share the batches of a single process
among them, so the gradients are equal up to rounding. Only dropout and the noise of the augmentation differ.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional

from cxr.common.errors import DataError, ParamsError, TrainingError
from cxr.common.on_disk import take
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.factory import build, check_image_size, load_weights
from cxr.models.forward import choose_device, to_input
from cxr.models.modules import merge_outputs
from cxr.training.augmentation import Augmentation, Draws, augment, draw, draw_mixture, mix
from cxr.training.checkpoint import CheckpointWriter, load_checkpoint
from cxr.training.data import TrainingData
from cxr.training.distributed import ProcessGroup, check_batch_norm
from cxr.training.optimizer import (
    RunningAverage,
    check_frozen,
    make_optimizer,
    set_learning_rates,
    set_mode,
    warm_cosine,
)
from cxr.training.results import Epoch, Listener, Trained
from cxr.training.sampler import class_weights, epoch_order

if TYPE_CHECKING:
    from cxr.common.params import TrainParams

_VALIDATION_BATCH = 64


def fit(
    data: TrainingData, config: TrainParams, *, checkpoints: Path, listener: Listener, group: ProcessGroup | None = None
) -> Trained:
    """Train a network, or resume an interrupted training.

    Args:
        data: images and rows.
        config: a TrainParams, or any object with its attributes.
        checkpoints: folder of this training, that is of the same data and config; a checkpoint in it is resumed.
        listener: callbacks, separate in each process.
        group: the processes that train together, by default only this one. All of them call `fit` with the same
            arguments and return the same; the main process writes the checkpoints.

    Returns:
        The averaged weights of the epoch with the best validation macro-F1.

    Raises:
        DataError: there are no images to train or to validate on.
        ParamsError: the images are too small for the network, or the group cannot share the config's batches.
        WeightsError: starting weights cannot be loaded, or random parts are frozen.
        TrainingError: the loss is not finite, and the last checkpoint is kept; or the processes have
            different images or checkpoints.
    """
    if not len(data.train_rows) or not len(data.validation_rows):
        raise DataError(
            f"training needs training and validation images, got {len(data.train_rows)} and "
            f"{len(data.validation_rows)}; check the split's shares and quotas in params.yaml"
        )
    check_image_size(config.backbone, data.images.shape[1])
    training = _Training(data, config, group or ProcessGroup())
    load_checkpoint(training, checkpoints, Epoch)
    training.check_equal()
    writer = CheckpointWriter(training, checkpoints)
    while not training.is_over():
        training.run_epoch(listener)
        if training.group.is_main_process:
            writer.save_if_due(is_last=training.is_over())
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
    """Return "bf16" or "fp32"; "auto" selects bf16 if `device` supports it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # since torch 2.10
        supported = torch.cpu.get_capabilities()
        return "bf16" if supported.get("avx512_bf16") or supported.get("amx_bf16") else "fp32"
    return "fp32"


class _Images:
    """Images by row; all are kept on the GPU if they take less than half of its free memory."""

    def __init__(self, images: NDArray[np.uint8], device: torch.device) -> None:
        self._images, self._device = images, device
        self._resident: Tensor | None = None
        if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            self._resident = torch.from_numpy(np.array(images)).to(device)

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        """Return (B, H, W) float, grey levels 0 to 1, on the device."""
        if self._resident is not None:
            return self._resident[torch.from_numpy(rows).to(self._device, non_blocking=True)].float() / 255
        return torch.from_numpy(take(self._images, rows)).to(self._device, non_blocking=True).float() / 255


class _Training:
    """The state of a training between two epochs."""

    def __init__(self, data: TrainingData, config: TrainParams, group: ProcessGroup) -> None:
        self.data, self.config, self.group = data, config, group
        self.device = group.device(choose_device(config.device))
        self.precision = choose_precision(config.precision, self.device)
        torch.manual_seed(config.seed)  # random weights, at least those of the head
        self.model = build(config.backbone, data.n_outputs)
        self.weights = load_weights(self.model, config.weights)
        check_frozen(self.weights, config)
        self.model.to(self.device)
        # Batches of nearly equal size: a last batch of one image would break batch norm.
        self._steps = max(1, round(len(data.train_rows) / config.batch_size))
        if group.size > 1:
            self._prepare_for_group()
        self.average = RunningAverage(self.model, config.ema_decay)
        self.optimizer = make_optimizer(self.model, config)
        self.history: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_epoch = 0
        self._images = _Images(data.images, self.device)
        self._forward: Callable[[Tensor], Tensor] = self.model
        self._forward_learns: list[str] | None = None
        self._class_weights = class_weights(data, config).to(self.device)
        self._ranges = Augmentation(
            rotation_deg=config.rotation_deg,
            zoom=(config.zoom[0], config.zoom[1]),
            shift=config.shift,
            contrast_jitter=config.contrast_jitter,
            brightness_jitter=config.brightness_jitter,
            mirror=config.mirror,
            gamma_jitter=config.gamma_jitter,
            sharpness_jitter=config.sharpness_jitter,
            shading=config.shading,
            noise=config.noise,
            border_wipe=config.border_wipe,
        )

    def _prepare_for_group(self) -> None:
        smallest = len(self.data.train_rows) // self._steps
        if smallest < self.group.size:
            raise ParamsError(
                f"train.batch_size gives batches of {smallest} images for {self.group.size} processes; "
                "raise it or start fewer processes"
            )
        set_mode(self.model, self.weights, self.config, epoch=0)
        check_batch_norm(self.model, self.device)
        if self.device.type == "cuda":
            convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
            self.model = convert(self.model)

    def check_equal(self) -> None:
        """Raise TrainingError if processes of the group have different images or epochs."""
        data = self.data
        rows = np.concatenate((data.train_rows, data.validation_rows, data.labels))
        self.group.check_equal(epochs=len(self.history), images=zlib.crc32(rows.tobytes()))

    def is_over(self) -> bool:
        """Return whether all epochs have run, or validation has not improved for `early_stopping_patience` epochs."""
        patience = self.config.early_stopping_patience
        stalled = patience > 0 and len(self.history) - self.best_epoch >= patience
        return stalled or len(self.history) >= self.config.epochs

    def run_epoch(self, listener: Listener) -> None:
        """Train on every image once, validate the averaged weights, and keep them if they are the best so far."""
        number, started = len(self.history), time.perf_counter()
        loss, train_accuracy = self._train(number, listener)
        train_seconds = time.perf_counter() - started
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {number + 1}; the last checkpoint is kept. "
                "Lower train.learning_rates or set train.precision to fp32, and run again"
            )
        best_before = max((epoch.validation_macro_f1 for epoch in self.history), default=-1.0)
        validation_loss, accuracy, macro_f1 = self._validate()
        self.history.append(
            Epoch(
                epoch=number + 1,
                learning_rate=float(self.optimizer.param_groups[-1]["lr"]),
                train_loss=loss,
                train_accuracy=train_accuracy,
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

    def _train(self, number: int, listener: Listener) -> tuple[float, float]:
        """Run the steps of epoch `number` (from 0); return mean loss and accuracy."""
        self._set_mode(number)
        seed = self.config.seed * 100_003 + number
        torch.manual_seed(seed + (self.group.rank << 32))  # dropout
        generator = torch.Generator().manual_seed(seed)
        order = epoch_order(self.data, self.config, generator)
        steps = self._steps
        total = torch.zeros(2, device=self.device)
        for index, rows in enumerate(np.array_split(order, steps)):
            factor = warm_cosine(
                number * steps + index,
                warmup_steps=self.config.warmup_epochs * steps,
                total_steps=self.config.epochs * steps,
            )
            set_learning_rates(self.optimizer, factor)
            total += self._step(rows, generator) * len(rows)
            listener.on_batch(len(rows))
        loss, accuracy = self.group.total(total).tolist()
        return loss / len(order), accuracy / len(order)

    def _set_mode(self, number: int) -> None:
        """Set which parts learn in epoch `number` (from 0), and wrap the network when that changes."""
        set_mode(self.model, self.weights, self.config, epoch=number)
        learns = [name for name, value in self.model.named_parameters() if value.requires_grad]
        if self._forward_learns is None or (self.group.size > 1 and learns != self._forward_learns):
            shared = self.group.share_gradients(self.model)
            self._forward = torch.compile(shared) if self.config.compile else shared
            self._forward_learns = learns

    def _step(self, rows: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """Run one optimizer step on a global batch; return this process's part of loss, in nats, and accuracy."""
        draws = draw(len(rows), self._ranges, generator)
        partners, share = draw_mixture(len(rows), self.config.mixup, generator)
        own = self.group.part(len(rows))
        images = self._augmented(rows, draws, own)
        if share < 1:
            # In a group, another process may hold an image's partner.
            alone = self.group.size == 1
            others = images[self._on_device(partners)] if alone else self._augmented(rows, draws, partners[own])
            images = mix(images, others, share)
        with self._autocast():
            scores = self._forward(to_input(images, IMAGENET_MEAN, IMAGENET_STD)).float()
        labels = torch.from_numpy(self.data.labels[rows])
        loss, accuracy = self._loss(scores, labels, own), self._accuracy(scores, labels, own)
        if share < 1:
            loss = share * loss + (1 - share) * self._loss(scores, labels[partners], own)
            accuracy = share * accuracy + (1 - share) * self._accuracy(scores, labels[partners], own)
        self.optimizer.zero_grad()
        # Gradients are averaged over the processes; the loss is their sum.
        torch.autograd.backward(loss * self.group.size)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return torch.stack([loss.detach(), accuracy])

    def _augmented(self, rows: NDArray[np.int64], draws: Draws, positions: Tensor) -> Tensor:
        return augment(self._images.batch(rows[positions.numpy()]), self._ranges, draws.of(positions))

    def _loss(self, scores: Tensor, labels: Tensor, own: Tensor) -> Tensor:
        """Return the contribution of the images `own` to the mean loss of a global batch with these labels."""
        targets, weights = self._on_device(labels), self._class_weights
        smoothing = self.config.label_smoothing
        if self.group.size == 1:
            return functional.cross_entropy(scores, targets, weight=weights, label_smoothing=smoothing)
        mine = targets[self._on_device(own)]
        added = functional.cross_entropy(scores, mine, weight=weights, label_smoothing=smoothing, reduction="sum")
        return added / weights[targets].sum()

    def _accuracy(self, scores: Tensor, labels: Tensor, own: Tensor) -> Tensor:
        """Return the contribution of the images `own` to the accuracy on a global batch with these labels."""
        predicted = merge_outputs(scores.detach(), self.data.classes, self.data.populations).argmax(dim=1)
        actual = torch.from_numpy(self.data.class_of(labels[own].numpy()))
        return (predicted == self._on_device(actual)).sum() / len(labels)

    def _on_device(self, values: Tensor) -> Tensor:
        """Copy without waiting: a step has no result that is needed before the next one is started."""
        return values.to(self.device, non_blocking=True)

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float, float]:
        """Return loss, accuracy and macro-F1 of the averaged weights on the validation images.

        An image of a population counts as much as its population does in an answer.
        """
        rows, weights = self.data.validation_rows, self.data.validation_weights()
        logits = merge_outputs(self._validation_outputs(rows), self.data.classes, self.data.populations)
        labels = torch.from_numpy(self.data.class_of(self.data.labels[rows]))
        predicted = logits.argmax(dim=1)
        classes = range(len(self.data.classes))
        macro_f1 = f1_score(
            labels, predicted, average="macro", labels=classes, zero_division=0.0, sample_weight=weights
        )
        losses = functional.cross_entropy(logits, labels, reduction="none")
        accuracy = np.average((predicted == labels).numpy(), weights=weights)
        return float(np.average(losses.numpy(), weights=weights)), float(accuracy), float(macro_f1)

    def _validation_outputs(self, rows: NDArray[np.int64]) -> Tensor:
        """Return outputs (N, C + P) of the averaged weights for the images `rows`; each process computes a part."""
        average = self.average.module.eval()
        own = self.group.part(len(rows))
        outputs = torch.zeros((len(rows), self.data.n_outputs), device=self.device)
        for chunk in own.tensor_split(max(1, round(len(own) / _VALIDATION_BATCH))):
            if len(chunk):
                images = self._images.batch(rows[chunk.numpy()]).unsqueeze(1)
                with self._autocast():
                    scores = average(to_input(images, IMAGENET_MEAN, IMAGENET_STD)).float()
                outputs[chunk.to(self.device)] = scores
        return self.group.total(outputs).cpu()  # each row is zero in all processes but one

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()
