"""Stages that get no more memory: one line, exit code 13, and outputs whole or as before.

A stage runs in a child, a fork of this process, that takes all memory before, but for a few megabytes.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import pytest

from cxr.common.cli import run_command
from cxr.common.errors import MemoryLimitError
from tests.e2e.test_damaged_inputs import outputs
from tests.support.faults import fault
from tests.support.moments import in_child
from tests.support.sample_project import STAGES, run_stage

_BLOCK = 1 << 16
_LEFT = 2 << 20
"""Bytes that a stage gets: too little for it, enough to say so."""

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

_FILLING: list[bytearray] = []


def take_memory() -> None:
    """Take all memory that this process may still get, but for _LEFT."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (8 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for size in (_BLOCK << 4, _BLOCK):
        with contextlib.suppress(MemoryError):
            while True:
                _FILLING.append(bytearray(size))
    del _FILLING[-_LEFT // _BLOCK :]


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize("stage", STAGES)
@fault("ingest, validate, split, preprocess, train, evaluate, register", "no memory is left for it",
       "the outputs are as before, or gone; nothing half-written is left", "exit code 13, out of memory, what to lower",
)  # fmt: skip
def test_a_stage_without_memory_is_one_line(stage: str) -> None:
    before, said = outputs(stage), Path("said")
    ended = in_child(lambda: run_command(lambda: run_stage(stage)), take_memory, said=said)
    lines = said.read_text().splitlines()
    assert ended == MemoryLimitError.exit_code, lines
    assert lines[-1].startswith("error: out of memory")
    assert not [line for line in lines if "Traceback" in line]
    after = outputs(stage)
    assert after == before or not after
    assert not list(Path().rglob("*.partial"))
