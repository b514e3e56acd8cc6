"""Two processes train like one up to rounding, and the loss of one process stops all."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cxr.common.errors import ParamsError
from cxr.common.params import TrainParams, read_params
from cxr.models.factory import build
from cxr.training.data import TrainingData
from cxr.training.distributed import ProcessGroup, check_batch_norm
from cxr.training.loop import fit
from cxr.training.results import Epoch
from tests.support.faults import fault
from tests.support.project import PROJECT

CLASSES = ("normal", "viral", "bacterial")
IMAGES = 46
TINY: dict[str, Any] = {
    "backbone": "resnet50",
    "epochs": 2,
    "batch_size": 9,
    "frozen": ["stem"],
    "freeze_batchnorm_statistics": True,
    "head_only_epochs": 0,
    "warmup_epochs": 0,
    "early_stopping_patience": 0,
    "label_smoothing": 0.1,
    "class_balance": "weights",
    "mixup": 0.4,
    "mirror": 0.5,
    "device": "cpu",
    "precision": "fp32",
    "compile": False,
}
"""With class weights, smoothing and mixup, the loss of a batch is not the mean of its images' losses."""


LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-4, 0.01
"""Relative to the losses and to the total change of the weights. Measured: losses 2e-6 on an AMD EPYC, 2.5e-5 on an
Intel Xeon, whose kernels block a batch of 4 and one of 9 differently; weights 0.0012.

AdamW divides a gradient by its magnitude, so rounding matters where that is nearly zero.
"""

PROCESS = """
import os, sys
from pathlib import Path
from test_distributed import Quiet, images, config
from cxr.common.cli import run_command
from cxr.training.distributed import join_process_group
from cxr.training.loop import fit
import torch

def main():
    folder = Path(sys.argv[1])
    with join_process_group() as group:
        listener = Quiet(die_after=int(sys.argv[2]) if group.rank == 1 else 10**9)
        made = fit(images(), config(folder.parent), checkpoints=folder / "ck", listener=listener, group=group)
        torch.save({"state": made.state, "history": [vars(epoch) for epoch in made.history], "size": group.size},
                   folder / f"made{group.rank}.pt")

run_command(main)
"""
"""The training as a module that torchrun can start."""


class Quiet:
    """A listener that kills its process after so many images."""

    def __init__(self, die_after: int = 10**9) -> None:
        self._left = die_after

    def on_batch(self, images: int) -> None:
        self._left -= images
        if self._left <= 0:
            os.kill(os.getpid(), 9)

    def on_epoch(self, epoch: Epoch) -> None:
        pass


def images() -> TrainingData:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (IMAGES, 32, 32)).astype(np.uint8)
    labels = np.minimum(np.arange(IMAGES) % 5, 2)  # three of five are bacterial
    rows = np.arange(IMAGES)
    return TrainingData(pixels, labels, rows[:35], rows[35:], CLASSES)


def config(folder: Path, **changes: Any) -> TrainParams:
    values = read_params(PROJECT / "params.yaml").train.model_dump() | TINY | {"weights": str(folder / "start.pth")}
    return TrainParams.model_validate(values | changes)


def train_in_two(folder: Path, die_after: int = 10**9) -> "subprocess.CompletedProcess[str]":
    (folder.parent / "two_processes.py").write_text(PROCESS)
    script = (
        "from cxr.common.cli import run_command\nfrom cxr.training.launcher import run_processes\n"
        f"run_command(lambda: run_processes('two_processes', [{str(folder)!r}, '{die_after}'], '--nproc-per-node 2'))"
    )
    path = os.pathsep.join((str(PROJECT), str(Path(__file__).parent), str(folder.parent)))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with starting weights of every part, so that batch-norm statistics can be frozen."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(5)
    torch.save(build("resnet50", 3).state_dict(), folder / "start.pth")
    return folder


@pytest.fixture(scope="module")
def two(start: Path) -> Path:
    """The results of a training in two processes."""
    folder = start / "two"
    done = train_in_two(folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def made(folder: Path, rank: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / f"made{rank}.pt", weights_only=True)
    return content


def test_two_processes_give_the_weights_and_losses_of_one(start: Path, two: Path) -> None:
    # 35 images in 4 batches of 9, 9, 9 and 8, in parts of unequal or equal size; mixup blends across processes.
    one = fit(images(), config(start), checkpoints=start / "one", listener=Quiet())
    first = made(two, 0)
    assert first["size"] == 2
    for key in (
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "validation_macro_f1",
        "learning_rate",
    ):
        alone = [getattr(epoch, key) for epoch in one.history]
        assert [epoch[key] for epoch in first["history"]] == pytest.approx(alone, rel=LOSS_TOLERANCE), key
    begun = torch.load(start / "start.pth", weights_only=True)
    learnt = [name for name, value in one.state.items() if value.is_floating_point()]
    total_change = distance({name: one.state[name] - begun[name] for name in learnt})
    difference = distance({name: one.state[name] - first["state"][name] for name in learnt})
    assert difference < WEIGHT_TOLERANCE * total_change


def distance(changes: dict[str, torch.Tensor]) -> float:
    return float(sum(change.double().square().sum() for change in changes.values())) ** 0.5


def test_both_processes_hold_bit_identical_weights(two: Path) -> None:
    first, second = made(two, 0), made(two, 1)
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
    decided = ("train_loss", "validation_macro_f1")
    assert [[epoch[key] for key in decided] for epoch in first["history"]] == [
        [epoch[key] for key in decided] for epoch in second["history"]
    ]


@fault(
    "train",
    "SIGKILL of one of two processes",
    "the other ends too; the next run goes on from the last checkpoint",
    "bit-identical weights",
)
def test_killed_process_stops_all_and_the_next_run_resumes_to_bit_identical_weights(start: Path, two: Path) -> None:
    folder = start / "killed"
    killed = train_in_two(folder, die_after=40)  # in the second epoch
    assert killed.returncode == 8
    assert re.fullmatch(r"error: process 1 .* SIGKILL .*\n", killed.stderr)
    kept = torch.load(folder / "ck" / "last.pt", weights_only=True)
    assert len(kept["history"]) == 1
    resumed = train_in_two(folder)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    whole, again = made(two, 0), made(folder, 0)
    assert all(torch.equal(value, again["state"][name]) for name, value in whole["state"].items())


def test_error_of_all_processes_is_reported_once_with_its_exit_code(start: Path) -> None:
    folder = start / "damaged"
    (folder / "ck").mkdir(parents=True)
    (folder / "ck" / "last.pt").write_bytes(b"half")
    done = train_in_two(folder)
    assert done.returncode == 8
    assert f"{folder}/ck is damaged" in done.stderr
    assert done.stderr.count("error: ") == 1


def test_parts_of_a_group_are_nearly_equal_and_hold_every_image_once() -> None:
    parts = [ProcessGroup(rank, 3).part(8).tolist() for rank in range(3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_batch_smaller_than_the_group_is_rejected(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="1 images for 2 processes"):
        fit(images(), config(start, batch_size=1), checkpoints=tmp_path, listener=Quiet(), group=ProcessGroup(0, 2))


def test_batch_norm_that_computes_statistics_is_rejected_on_cpus() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU())
    with pytest.raises(ParamsError, match="1 batch-norm layers"):
        check_batch_norm(network.train(), torch.device("cpu"))
    check_batch_norm(network.eval(), torch.device("cpu"))


def test_device_without_communication_between_processes_is_rejected() -> None:
    with pytest.raises(ParamsError, match=r"train\.device .* mps"):
        ProcessGroup(0, 2).device(torch.device("mps"))
    assert ProcessGroup().device(torch.device("mps")) == torch.device("mps")
