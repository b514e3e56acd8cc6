"""The checkpoint of a training: written atomically after every epoch, read without running pickled code.

`last.pt`  weights, average, optimizer and history after the last complete epoch
`best.pt`  averaged weights of the best epoch; written first, so that the best epoch in `last.pt` always exists
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cxr.common.errors import TrainingError
from cxr.common.files import atomic_file


class Resumable(Protocol):
    """The state of a training that a checkpoint holds."""

    model: nn.Module
    average: AveragedModel
    optimizer: torch.optim.AdamW
    history: list[Any]
    best_state: dict[str, Tensor]
    best_epoch: int


def save_checkpoint(run: Resumable, folder: Path) -> None:
    """Write the state of `run` after a complete epoch."""
    if run.best_epoch == len(run.history):
        _save({"epoch": run.best_epoch, "state": run.best_state}, folder / "best.pt")
    last = {
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "history": [asdict(epoch) for epoch in run.history],
        "best_epoch": run.best_epoch,
    }
    _save(last, folder / "last.pt")


def load_checkpoint(run: Resumable, folder: Path, epoch_type: Callable[..., Any]) -> None:
    """Restore `run` from the checkpoint in `folder`; without a checkpoint leave it unchanged.

    Raises:
        TrainingError: the checkpoint is damaged or of another training.
    """
    if not (folder / "last.pt").is_file():
        return
    try:
        last = torch.load(folder / "last.pt", map_location="cpu", weights_only=True)
        best = torch.load(folder / "best.pt", map_location="cpu", weights_only=True)
        run.model.load_state_dict(last["model"])
        run.average.load_state_dict(last["average"])
        run.optimizer.load_state_dict(last["optimizer"])
        run.history[:] = [epoch_type(**epoch) for epoch in last["history"]]
    except Exception as error:  # torch's readers raise half a dozen unrelated types
        raise TrainingError(
            f"the checkpoint in {folder} is damaged or of another training ({type(error).__name__}); "
            "delete the folder to start from the beginning"
        ) from error
    run.best_epoch, run.best_state = last["best_epoch"], best["state"]


def _save(content: dict[str, Any], path: Path) -> None:
    with atomic_file(path) as partial:
        torch.save(content, partial)
