"""What a training reports while it runs, and what it returns."""

from dataclasses import dataclass
from typing import Protocol

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
