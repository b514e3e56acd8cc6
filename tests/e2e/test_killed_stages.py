"""Stages that are killed at each moment in which they commit something: the same command again gives the whole result.

A child kills itself with SIGKILL right before its n-th rename of a file, or its n-th commit to the store.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from cxr.common.files import read_json
from cxr.registry import versions
from tests.e2e.test_damaged_inputs import outputs
from tests.support.faults import fault
from tests.support.moments import before_commit, before_rename, in_child, signals_itself
from tests.support.projects.sample_project import run_stage

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def killed(stage: str, number: int, *, at_commit: bool = False) -> bool:
    """Run a stage in a child that kills itself; return whether it came so far."""
    moment = before_commit if at_commit else before_rename
    ended = in_child(lambda: run_stage(stage), lambda: moment(number, signals_itself(signal.SIGKILL)))
    assert ended in {0, -signal.SIGKILL}
    return ended != 0


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
