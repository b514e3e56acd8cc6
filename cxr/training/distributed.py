"""One training on several processes, each with its GPU or its cores, on one machine or more.

Every process draws the same order and the same augmentation of the same global batches, works on its own part
of each, and ends the step with the same gradient: the sum of the parts. All of them hold the same weights at all
times, so any decision made from the weights is made alike by all, and one of them writes.

Processes are started by torchrun (see `cxr.training.launcher`); on GPUs they talk through NCCL, on CPUs through gloo.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.nn.parallel import DistributedDataParallel

from cxr.common.errors import CxrError, ParamsError, TrainingError

STORE_VARIABLE = "CXR_PROCESS_STORE"
"""Where processes of one machine meet: a file, so that no port is opened to the network. Set by cxr.training.launcher."""

_PATIENCE = timedelta(minutes=30)
_SIGNS_OF_A_LOST_PEER = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")


class PeerLostError(TrainingError):
    """Another process of the training is gone."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one training, seen by one of them: `rank` counts from 0 to `size` - 1."""

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one process that writes and reports."""
        return self.rank == 0

    def part(self, count: int) -> Tensor:
        """Return the positions, of 0 to `count` - 1, that are this process's: int64, parts differ by one at most."""
        return torch.arange(count).tensor_split(self.size)[self.rank]

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the processes, the same bits in each; `value` itself is overwritten."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def share_gradients(self, model: nn.Module) -> nn.Module:
        """Return what to call instead of `model` so that its gradients become the MEAN over the processes.

        To be made anew whenever other parameters of `model` learn.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        # Statistics are equal already: frozen, or summed over the processes as they are taken.
        return DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None, forward_sync_buffers=False
        )

    def device(self, chosen: torch.device) -> torch.device:
        """Return this process's own GPU where `chosen` is cuda. Raises ParamsError where processes cannot talk."""
        if self.size == 1 or chosen.type == "cpu":
            return chosen
        if chosen.type != "cuda":
            raise ParamsError(f"several processes train on cuda or cpu, and train.device is {chosen}; set it to cpu")
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if own.index >= torch.cuda.device_count():
            raise ParamsError(
                f"process {own.index} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
                "start as many processes as GPUs with --nproc-per-node"
            )
        torch.cuda.set_device(own)
        return own

    def check_alike(self, **numbers: int) -> None:
        """Refuse to train when processes see different numbers. Raises TrainingError in every process."""
        if self.size == 1:
            return
        values = torch.tensor(list(numbers.values()), dtype=torch.int64)
        both = torch.cat((values, -values))
        dist.all_reduce(both, dist.ReduceOp.MAX)
        unlike = [
            f"{name} ({-low} to {high})"
            for name, high, low in zip(numbers, *both.view(2, -1).tolist(), strict=True)
            if high != -low
        ]
        if unlike:
            raise TrainingError(
                f"the processes of this training do not see the same {', '.join(unlike)}; "
                "the project's folder must be the same on all machines, on a file system they share"
            )


def is_started_by_torchrun() -> bool:
    """Say whether this process is one of those that torchrun started."""
    return dist.is_torchelastic_launched()


@contextmanager
def joined() -> Iterator[ProcessGroup]:
    """Join the other processes when torchrun started this one; yield how many there are.

    When torchrun is gone, killed outright included, this process ends at once.

    Raises:
        PeerLostError: another process is gone; the checkpoint of the last whole epoch is kept.
    """
    if not is_started_by_torchrun():
        yield ProcessGroup()
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    rank, size, store = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ.get(STORE_VARIABLE)
    try:
        with _errors_reported():
            meeting = f"file://{store}" if store else "env://"
            dist.init_process_group(init_method=meeting, rank=rank, world_size=size, timeout=_PATIENCE)
            yield ProcessGroup(rank, size)
        dist.destroy_process_group()
    except (CxrError, KeyboardInterrupt) as error:
        if store:  # cxr.training.launcher says it, once for all; a regular exit may wait for the process that is gone
            os._exit(error.exit_code if isinstance(error, CxrError) else 130)
        raise


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Leave an error where torchrun finds it, and name what the death of another process comes to."""
    try:
        yield
    except CxrError as error:
        get_error_handler().record_exception(error)
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(sign in str(error) for sign in _SIGNS_OF_A_LOST_PEER):
            raise
        lost = PeerLostError(
            "another process of this training is gone; run the same command again to go on from the last whole epoch"
        )
        get_error_handler().record_exception(lost)
        raise lost from error


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def check_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Refuse batch norms of `model` that take statistics, on a CPU: torch sums them over processes on GPUs alone.

    Raises:
        ParamsError: there are some; each process would normalise by its own part of the batch.
    """
    learning: list[Any] = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    if learning and device.type != "cuda":
        raise ParamsError(
            f"{len(learning)} batch-norm layers take their statistics from the batch, and several processes on CPUs "
            "cannot share those: keep loaded statistics (train.freeze_batchnorm_statistics with whole weights), "
            "use one process, or GPUs"
        )
