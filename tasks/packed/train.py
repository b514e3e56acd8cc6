"""Run packed trials of the study on a machine that has only torch: no network, none of the other libraries.

    ./run flows.study --pack FOLDER                   # on the machine with the data: what the missing trials need
    python -m tasks.packed.train FOLDER --workers 8   # on the other one, from the root of a copy of this repository
    ./run flows.study --collect FOLDER                # on the first again: into the tracking store

Reads   FOLDER/packed.json, images, weights, trials: copy these there
Writes  FOLDER/trials/*/outputs.npz and training.json: copy FOLDER/trials back

It needs torch, torchvision, timm and scikit-learn. The same command goes on with trials that are not done; one that was
interrupted starts anew, as a training of this kind takes seconds on a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from argparse import ArgumentParser
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.common.cli import answer_help, command_parser, number_within, run_command


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--workers", type=number_within(int, 1, 1024), default=1, help="trainings at once, on one GPU (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no trial after so long (all)")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from cxr.common.errors import CxrError, TrainingError
from cxr.common.files import read_json
from cxr.training.packed import TRAINING_FILE, check_files, fit_and_predict, is_done, packed_trials, read_training

if TYPE_CHECKING:
    from cxr.training.results import Epoch


class _Silent:
    """A listener that says nothing: several trainings share the screen."""

    def on_batch(self, images: int) -> None:
        """Do nothing."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Do nothing."""


def train_packed(folder: Path, *, workers: int, minutes: float) -> None:
    """Run the trials that are not done, in `workers` processes; start none after `minutes`.

    Raises:
        DataError: the folder is not complete, or a file in it is damaged.
        TrainingError: trials failed and the others are done, or a worker was killed.
    """
    every = packed_trials(folder)
    waiting = [trial for trial in every if not is_done(trial)]
    check_files(folder, waiting)
    print(f"{len(every) - len(waiting)} of {len(every)} trials are done", flush=True)
    try:
        failed = _run(waiting, workers=workers, until=time.monotonic() + 60 * minutes)
    except BrokenProcessPool as error:
        raise TrainingError(
            "a worker was killed, probably for memory; run the same command with fewer --workers, or where there is "
            "more memory"
        ) from error
    left = sum(not is_done(trial) for trial in every) - failed
    if left:
        print(f"{left} trials are left; the same command goes on with them", flush=True)
    if failed:
        raise TrainingError(f"{failed} trials failed, see above; the others are done")


def _run(trials: Sequence[Path], *, workers: int, until: float) -> int:
    """Run trials until the monotonic time `until`; return how many failed. Raises BrokenProcessPool."""
    waiting, running, failed, finished = list(trials), set[Future[str]](), 0, 0
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")  # a GPU in use does not survive a fork
    with ProcessPoolExecutor(workers, context, _prepare_worker, (threads,)) as pool:
        while True:
            while waiting and len(running) < workers and time.monotonic() < until:
                running.add(pool.submit(_run_trial, waiting.pop(0)))
            if not running:
                return failed
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for trial in ended:
                error = trial.exception()
                if isinstance(error, BrokenProcessPool):  # the trial did not fail, and no other can run
                    raise error
                failed, finished = failed + (error is not None), finished + 1
                print(f"{finished}/{len(trials)} {f'failed: {error}' if error else trial.result()}", flush=True)


def _prepare_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _run_trial(folder: Path) -> str:
    """Run one trial; return a line about it. Raises TrainingError with the trial's name, whatever failed."""
    started = time.perf_counter()
    try:
        fit_and_predict(read_training(folder), folder, _Silent())
    except CxrError as error:
        raise TrainingError(f"{folder.name}: {error}") from error
    except Exception as error:  # the other trials may still work
        raise TrainingError(f"{folder.name}: {traceback.format_exc()}") from error
    score = read_json(folder / TRAINING_FILE)["best_validation_macro_f1"]
    return f"{folder.name}: {time.perf_counter() - started:.1f} s, validation macro-F1 {score:.3f}"


def main() -> None:
    """Read the command line and run the trials."""
    arguments = command_line().parse_args()
    train_packed(arguments.folder, workers=arguments.workers, minutes=arguments.minutes)


if __name__ == "__main__":
    run_command(main)
