"""Processor time of what surrounds the network in a training: optimizer, moving average, checkpoint.

Run   ./run benchmarks.optimizer_step [--backbone resnet50] [--rounds 5]

One thread, random gradients, all parameters learn. The peer of our optimizer is torch's AdamW as it is by default on a
CPU. The seconds of a checkpoint depend on the disk, so wall time is given as well.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from cxr.models.factory import build
from cxr.training.optimizer import RunningAverage


def _with_gradients(model: nn.Module) -> nn.Module:
    for value in model.parameters():
        value.grad = torch.full_like(value, 1e-3)
    return model


def main() -> None:
    """Time each in turn, round by round; print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50", help="the network (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    default, fused = (_with_gradients(build(given.backbone, 3)) for _ in range(2))
    average, ours = RunningAverage(fused, 0.99), torch.optim.AdamW(fused.parameters(), fused=True)
    with tempfile.TemporaryDirectory() as folder:

        def write() -> None:
            state = {"model": fused.state_dict(), "average": average.state_dict(), "optimizer": ours.state_dict()}
            torch.save(state, Path(folder) / "last.pt")

        contest: dict[str, Callable[[], object]] = {
            "AdamW, torch's default": torch.optim.AdamW(default.parameters()).step,
            "AdamW in one pass, ours": ours.step,
            "moving average": lambda: average.update_parameters(fused),
            "writing a checkpoint": write,
        }
        _measure(contest, given.rounds)


def _measure(contest: dict[str, Callable[[], object]], rounds: int) -> None:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contest}
    for _ in range(rounds + 1):
        for name, act in contest.items():
            wall, used = time.perf_counter(), time.process_time()
            act()
            taken[name].append((time.process_time() - used, time.perf_counter() - wall))
    for name, times in taken.items():
        processor, wall = (1000 * statistics.median(column) for column in zip(*times[1:], strict=True))
        print(f"{name:26s} {processor:7.0f} ms of processor time   {wall:7.0f} ms")


if __name__ == "__main__":
    main()
