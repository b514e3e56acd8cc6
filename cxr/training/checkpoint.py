"""The checkpoint of a training, `last.pt`: written atomically between epochs, read without running pickled code.

It holds weights, average, optimizer and history after a complete epoch, and the averaged weights of the best one. It is
one file because a kill between two leaves one of them older, and a GPU does not repeat the epochs between bit by bit.

A checkpoint of a ResNet-50 is 470 MB and takes seconds, as long as an epoch on a GPU. So it is written after the first
epoch, after the last, and in between as often as takes a twentieth of the time.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cxr.common.errors import TrainingError
from cxr.common.files import atomic_file
from cxr.training.optimizer import RunningAverage

MOST_SHARE = 0.05
"""Of the time of a training that its checkpoints take; a kill loses at most 20 times what one takes, and an epoch."""


class Resumable(Protocol):
    """The state of a training that a checkpoint holds."""

    model: nn.Module
    average: RunningAverage
    optimizer: torch.optim.AdamW
    history: list[Any]
    best_state: dict[str, Tensor]
    best_epoch: int


class CheckpointWriter:
    """Writes the checkpoints of `run` into `folder`, from which the run was restored if they are there."""

    def __init__(self, run: Resumable, folder: Path) -> None:
        self._run, self._folder = run, folder
        self._due = time.monotonic()

    def save_if_due(self, *, is_last: bool) -> None:
        """Write a checkpoint after a complete epoch, the last one in any case."""
        started = time.monotonic()
        if started < self._due and not is_last:
            return
        _save(self._run, self._folder)
        self._due = started + (time.monotonic() - started) / MOST_SHARE


def _save(run: Resumable, folder: Path) -> None:
    last = {
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "history": [asdict(epoch) for epoch in run.history],
        "best_epoch": run.best_epoch,
        "best_state": run.best_state,
    }
    with atomic_file(folder / "last.pt") as partial:
        torch.save(last, partial)


def load_checkpoint(run: Resumable, folder: Path, epoch_type: Callable[..., Any]) -> None:
    """Restore `run` from the checkpoint in `folder`; without a checkpoint leave it unchanged.

    Raises:
        TrainingError: the checkpoint is damaged or of another training.
    """
    if not (folder / "last.pt").is_file():
        return
    try:
        last = torch.load(folder / "last.pt", map_location="cpu", weights_only=True)
        run.model.load_state_dict(last["model"])
        run.average.load_state_dict(last["average"])
        run.optimizer.load_state_dict(last["optimizer"])
        run.history[:] = [epoch_type(**epoch) for epoch in last["history"]]
        run.best_epoch, run.best_state = last["best_epoch"], last["best_state"]
    except Exception as error:  # torch's readers raise half a dozen unrelated types
        raise TrainingError(
            f"the checkpoint in {folder} is damaged or of another training ({type(error).__name__}); "
            "delete the folder to start from the beginning"
        ) from error
