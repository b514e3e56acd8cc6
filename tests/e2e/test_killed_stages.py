"""Stages that are killed at each moment in which they commit something: the same command again gives the whole result.

The child is a fork of this process, so that nothing has to be imported again; it kills itself with SIGKILL right before
its n-th rename of a file, or its n-th commit to the store.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import cv2
import pytest
import torch
from sqlalchemy.orm import Session

from cxr.common.files import read_json
from cxr.registry import versions
from tests.e2e.test_damaged_inputs import outputs
from tests.support.faults import fault
from tests.support.sample_project import run_stage

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def _die_before_rename(number: int) -> None:
    whole, left = Path.replace, [number]

    def replace(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(path, target)

    Path.replace = replace  # type: ignore[assignment,method-assign]


def _die_before_commit(number: int) -> None:
    whole, left = Session.commit, [number]

    def commit(session: Session) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(session)

    Session.commit = commit  # type: ignore[method-assign]


def _run(stage: str, number: int, *, at_commit: bool) -> None:
    torch.set_num_threads(1)  # the pools of the parent's threads are not in the child
    cv2.setNumThreads(0)
    (_die_before_commit if at_commit else _die_before_rename)(number)
    run_stage(stage)


def killed(stage: str, number: int, *, at_commit: bool = False) -> bool:
    """Run a stage in a child that kills itself; return whether it came so far."""
    child = multiprocessing.get_context("fork").Process(
        target=_run, args=(stage, number), kwargs={"at_commit": at_commit}
    )
    child.start()
    child.join()
    assert child.exitcode in {0, -signal.SIGKILL}
    return child.exitcode != 0


def again_gives_the_same(stage: str, number: int) -> None:
    """Kill a stage before its n-th rename; what stands then is whole, and the next run gives what the first gave."""
    whole = outputs(stage)
    came_so_far = killed(stage, number)
    left = outputs(stage)
    assert all(whole[file] == digest for file, digest in left.items())
    run_stage(stage)
    assert outputs(stage) == whole
    assert came_so_far
    assert not [file for file in Path().rglob("*") if file.name.endswith((".partial", ".old"))]


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize("number", [1, 2, 3])
@fault("validate", "SIGKILL before a rename", "no verdict, or the whole one", "the same command again ends as usual")
def test_validate_is_killed(number: int) -> None:
    again_gives_the_same("validate", number)


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize("number", [1, 2])
@fault("split", "SIGKILL before a rename", "no split, or the whole one", "the same command again ends as usual")
def test_split_is_killed(number: int) -> None:
    again_gives_the_same("split", number)


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize("number", [1, 8])
@fault(
    "evaluate", "SIGKILL before a rename", "reports are the earlier or the new ones, each whole",
    "the same command again ends as usual",
)  # fmt: skip
def test_evaluate_is_killed(number: int) -> None:
    run_stage("evaluate")  # its report shows the champion, which there was none of as the sample was made
    again_gives_the_same("evaluate", number)


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize("number", [1, 12, 30])
@fault("register", "SIGKILL before a commit to the store", "the next run completes the version; there is one",
       "the same command again ends as usual")  # fmt: skip
def test_register_is_killed(number: int) -> None:
    receipt = Path("reports/registration.json")
    shutil.rmtree("mlruns")
    receipt.unlink()
    assert killed("register", number, at_commit=True)
    assert not receipt.exists()
    run_stage("register")
    written = read_json(receipt)
    assert written["version"] == versions.get_version(versions.CHALLENGER).number == "1"
