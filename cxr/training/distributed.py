"""Training in several processes, each with its own GPU or CPU cores, on one or more machines.

Every process draws the same order and augmentation of the same global batches, computes its own part of each batch,
and ends the step with the same gradient, the sum over the parts. All processes hold equal weights at all times, so
they make equal decisions. Only the main process writes.

torchrun starts the processes (see `cxr.training.launcher`). They communicate through NCCL on GPUs, gloo on CPUs.
"""

from __future__ import annotations

import os
import signal
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
"""The file in which processes of one machine meet, so that no network port is opened. Set by cxr.training.launcher."""

_TIMEOUT = timedelta(minutes=30)
_SIGNS_OF_A_LOST_PEER = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")


class PeerLostError(TrainingError):
    """Another process of the training has ended unexpectedly."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one training as seen by one of them; `rank` is 0 to `size` - 1."""

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def part(self, count: int) -> Tensor:
        """Return this process's part of the positions 0 to `count` - 1, int64; sizes of parts differ by at most one."""
        return torch.arange(count).tensor_split(self.size)[self.rank]

    def total(self, value: Tensor) -> Tensor:
        """Sum `value` over the processes in place; return it, bit-identical in each."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def share_gradients(self, model: nn.Module) -> nn.Module:
        """Wrap `model` so that its gradients become the mean over the processes.

        Wrap it again whenever the set of trainable parameters changes.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        # Batch-norm statistics are equal already: they are frozen, or synchronised when computed.
        return DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None, forward_sync_buffers=False
        )

    def device(self, chosen: torch.device) -> torch.device:
        """Return `chosen`, or this process's own GPU if it is cuda.

        Raises:
            ParamsError: processes cannot communicate on this device, or this process has no GPU.
        """
        if self.size == 1 or chosen.type == "cpu":
            return chosen
        if chosen.type != "cuda":
            raise ParamsError(f"several processes need train.device cuda or cpu, got {chosen}; set it to cpu")
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if own.index >= torch.cuda.device_count():
            raise ParamsError(
                f"process {own.index} of this machine has no GPU: there are {torch.cuda.device_count()} GPUs; "
                "set --nproc-per-node to that number"
            )
        torch.cuda.set_device(own)
        return own

    def check_equal(self, **numbers: int) -> None:
        """Raise TrainingError in every process if the processes have different numbers."""
        if self.size == 1:
            return
        values = torch.tensor(list(numbers.values()), dtype=torch.int64)
        both = torch.cat((values, -values))
        dist.all_reduce(both, dist.ReduceOp.MAX)
        different = [
            f"{name} ({-low} to {high})"
            for name, high, low in zip(numbers, *both.view(2, -1).tolist(), strict=True)
            if high != -low
        ]
        if different:
            raise TrainingError(
                f"the processes of this training have different {', '.join(different)}; "
                "all machines must share one project folder"
            )


def is_started_by_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return dist.is_torchelastic_launched()


@contextmanager
def join_process_group() -> Iterator[ProcessGroup]:
    """Join the process group if torchrun started this process; yield the group.

    This process ends at once when torchrun ends, even by SIGKILL.

    Raises:
        PeerLostError: another process has ended; the checkpoint of the last complete epoch is kept.
    """
    if not is_started_by_torchrun():
        yield ProcessGroup()
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # A handler of Python's would wait for the end of a collective operation, and torchrun for 30 s before it kills.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rank, size, store = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ.get(STORE_VARIABLE)
    try:
        with _errors_reported():
            meeting = f"file://{store}" if store else "env://"
            dist.init_process_group(init_method=meeting, rank=rank, world_size=size, timeout=_TIMEOUT)
            yield ProcessGroup(rank, size)
        dist.destroy_process_group()
    except (CxrError, KeyboardInterrupt) as error:
        if store:  # cxr.training.launcher reports the error once; a regular exit may wait for the lost process
            os._exit(error.exit_code if isinstance(error, CxrError) else 130)
        raise


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Record an error for torchrun; report the loss of another process as PeerLostError."""
    try:
        yield
    except CxrError as error:
        get_error_handler().record_exception(error)
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(sign in str(error) for sign in _SIGNS_OF_A_LOST_PEER):
            raise
        lost = PeerLostError(
            "another process of this training has ended; "
            "run the same command again to resume from the last complete epoch"
        )
        get_error_handler().record_exception(lost)
        raise lost from error


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def check_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Check that no batch norm of `model` computes statistics on a CPU: torch synchronises them only on GPUs.

    Raises:
        ParamsError: some do; each process would normalise by its own part of the batch.
    """
    learning: list[Any] = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    if learning and device.type != "cuda":
        raise ParamsError(
            f"{len(learning)} batch-norm layers compute statistics, which several processes on CPUs cannot "
            "synchronise: freeze them (train.freeze_batchnorm_statistics with complete weights), or use one process or "
            "GPUs"
        )
