"""Stages that get no more memory: one line, exit code 13, and outputs whole or as before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cxr.common.errors import MemoryLimitError
from tests.support.faults import fault
from tests.support.project import PROJECT
from tests.support.projects.sample_project import STAGES
from tests.support.without_memory import Ended


@pytest.fixture(scope="module")
def ended(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Stage -> how it ended without memory."""
    scratch = tmp_path_factory.mktemp("without-memory")
    command = [sys.executable, "-m", "tests.support.without_memory", str(finished), str(scratch)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [Ended(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    return {one.stage: one for one in found}


@pytest.mark.parametrize("stage", STAGES)
@fault("ingest, validate, split, preprocess, train, evaluate, register", "no memory is left for it",
       "the outputs are as before, or gone; nothing half-written is left", "exit code 13, out of memory, what to lower",
)  # fmt: skip
def test_a_stage_without_memory_is_one_line(ended: dict[str, Ended], stage: str) -> None:
    found = ended[stage]
    assert found.code == MemoryLimitError.exit_code, found.said
    assert found.said[-1].startswith("error: out of memory")
    assert not [line for line in found.said if "Traceback" in line]
    assert found.is_whole
    assert not found.is_partial
