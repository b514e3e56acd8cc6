"""What a training reports while it runs, and what it returns."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cxr.models.factory import WeightsReport


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch. `epoch` counts from 1; losses are in nats; `seconds` includes validation.

    Training values are of the augmented images, by the network as it was while it learned; validation values are of the
    unchanged images, by the average of its weights. So validation may look better than training.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float
    images_per_second: float
    seconds: float


class Listener(Protocol):
    """Callbacks of a training."""

    def on_batch(self, images: int) -> None:
        """Called after each batch with its number of images."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Called after each epoch, when its checkpoint is written."""


@dataclass(frozen=True)
class Trained:
    """The averaged weights of the epoch with the best validation macro-F1, and the history of the training."""

    state: dict[str, Tensor]
    weights: WeightsReport
    history: tuple[Epoch, ...]
    best_epoch: int
    device: str
    precision: str


def summarize_training(members: Sequence[Trained], params: Mapping[str, Any], *, processes: int) -> dict[str, Any]:
    """Return the content of training.json but for the id of the run.

    Args:
        members: the networks that were trained, in order; at least one.
        params: the fields of TrainParams.
        processes: how many trained together.
    """
    first, epochs = members[0], [epoch for member in members for epoch in member.history]
    best = [member.history[member.best_epoch - 1].validation_macro_f1 for member in members]
    return {
        "seconds": sum(epoch.seconds for epoch in epochs),
        "images_per_second": sum(epoch.images_per_second for epoch in epochs) / len(epochs),
        "device": first.device,
        "precision": first.precision,
        "hardware": _hardware(first.device),
        "processes": processes,
        "epochs_run": len(epochs) // len(members),
        "best_epoch": first.best_epoch,
        "best_epochs": [member.best_epoch for member in members],
        "best_validation_macro_f1": sum(best) / len(best),
        "weights": asdict(first.weights),
        "params": dict(params),
    }


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}, {platform.machine()}"
