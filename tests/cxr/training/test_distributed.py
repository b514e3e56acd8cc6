"""Two processes train as one does: the same losses and weights but for rounding, and one that dies ends all."""

import os
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
from cxr.training.loop import Epoch, fit
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
"""Class weights, smoothing and mixup: what makes the loss of a batch more than the mean of its images' losses."""

LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-4, 0.01
"""Relative, of the losses and of the distance that the weights moved. Measured: losses 2e-6 on an AMD EPYC, 2.5e-5 on
an Intel Xeon, whose kernels block a batch of 4 and one of 9 differently; weights 0.0012.

AdamW divides a gradient by its own size: where that is nearly zero, rounding in another order is felt.
"""

PROCESS = """
import os, sys
from pathlib import Path
from test_distributed import Quiet, images, recipe
from cxr.common.cli import run_command
from cxr.training.distributed import joined
from cxr.training.loop import fit
import torch

def main():
    folder = Path(sys.argv[1])
    with joined() as group:
        dies = Quiet(die_after=int(sys.argv[2]) if group.rank == 1 else 10**9)
        made = fit(images(), recipe(folder.parent), checkpoints=folder / "ck", listener=dies, group=group)
        torch.save({"state": made.state, "history": [vars(epoch) for epoch in made.history], "size": group.size},
                   folder / f"made{group.rank}.pt")

run_command(main)
"""
"""The training of a test as a module, so that torchrun can start it."""


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


def recipe(folder: Path, **changes: Any) -> TrainParams:
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
    """A folder with starting weights that hold every part, so that batch norm may keep its statistics."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(5)
    torch.save(build("resnet50", 3).state_dict(), folder / "start.pth")
    return folder


@pytest.fixture(scope="module")
def two(start: Path) -> Path:
    """What two processes made of the training."""
    folder = start / "two"
    done = train_in_two(folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def made(folder: Path, rank: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / f"made{rank}.pt", weights_only=True)
    return content


def test_two_processes_end_with_the_weights_and_losses_of_one(start: Path, two: Path) -> None:
    # 35 images in 4 batches of 9, 9, 9 and 8: each shared unevenly or evenly; partners of mixup cross the processes.
    one = fit(images(), recipe(start), checkpoints=start / "one", listener=Quiet())
    first = made(two, 0)
    assert first["size"] == 2
    for key in ("train_loss", "validation_loss", "validation_accuracy", "validation_macro_f1", "learning_rate"):
        alone = [getattr(epoch, key) for epoch in one.history]
        assert [epoch[key] for epoch in first["history"]] == pytest.approx(alone, rel=LOSS_TOLERANCE), key
    begun = torch.load(start / "start.pth", weights_only=True)
    learnt = [name for name, value in one.state.items() if value.is_floating_point()]
    gone = distance({name: one.state[name] - begun[name] for name in learnt})
    apart = distance({name: one.state[name] - first["state"][name] for name in learnt})
    assert apart < WEIGHT_TOLERANCE * gone


def distance(changes: dict[str, torch.Tensor]) -> float:
    return float(sum(change.double().square().sum() for change in changes.values())) ** 0.5


def test_both_processes_hold_the_same_bits(two: Path) -> None:
    first, second = made(two, 0), made(two, 1)
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
    decided = ("train_loss", "validation_macro_f1")
    assert [[epoch[key] for key in decided] for epoch in first["history"]] == [
        [epoch[key] for key in decided] for epoch in second["history"]
    ]


def test_one_process_that_is_killed_ends_all_and_the_next_run_goes_on_to_the_same_bits(start: Path, two: Path) -> None:
    folder = start / "killed"
    died = train_in_two(folder, die_after=40)  # in the second epoch
    assert (died.returncode, died.stderr) == (
        8,
        "error: process 1 of the training was ended by SIGKILL, and the others with it; "
        "run the same command again to go on from the last whole epoch\n",
    )
    kept = torch.load(folder / "ck" / "last.pt", weights_only=True)
    assert len(kept["history"]) == 1
    resumed = train_in_two(folder)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    whole, again = made(two, 0), made(folder, 0)
    assert all(torch.equal(value, again["state"][name]) for name, value in whole["state"].items())


def test_an_error_of_every_process_is_said_once_with_its_exit_code(start: Path) -> None:
    folder = start / "damaged"
    (folder / "ck").mkdir(parents=True)
    (folder / "ck" / "last.pt").write_bytes(b"half")
    done = train_in_two(folder)
    assert done.returncode == 8
    assert done.stderr.startswith(f"error: the checkpoint in {folder}/ck is damaged or of another training")
    assert done.stderr.count("error: ") == 1


def test_parts_of_a_crew_are_nearly_equal_and_hold_every_image_once() -> None:
    parts = [ProcessGroup(rank, 3).part(8).tolist() for rank in range(3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_a_batch_too_small_for_the_crew_is_refused(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="batches of 1 images, fewer than the 2 processes"):
        fit(images(), recipe(start, batch_size=1), checkpoints=tmp_path, listener=Quiet(), group=ProcessGroup(0, 2))


def test_batch_norm_that_learns_its_statistics_is_refused_on_cpus() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU())
    with pytest.raises(ParamsError, match="1 batch-norm layers take their statistics from the batch"):
        check_batch_norm(network.train(), torch.device("cpu"))
    check_batch_norm(network.eval(), torch.device("cpu"))


def test_a_device_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"train on cuda or cpu, and train\.device is mps"):
        ProcessGroup(0, 2).device(torch.device("mps"))
    assert ProcessGroup().device(torch.device("mps")) == torch.device("mps")
