"""Run each stage of a finished project without memory, and print how it ended.

    python -m tests.support.without_memory PROJECT SCRATCH

Prints one line of JSON a stage; see Ended. A process of its own, because one that has run other tests has so much freed
memory of its own that no limit leaves a stage without.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from cxr.common.cli import run_command
from tests.e2e.test_damaged_inputs import outputs
from tests.support.moments import in_child
from tests.support.projects.sample_project import STAGES, copy_project, enter, run_stage

_BLOCK = 1 << 16
_LEFT = 2 << 20
"""Bytes that a stage gets: too little for it, enough to say so."""

_FILLING: list[bytearray] = []


@dataclass(frozen=True)
class Ended:
    """How a stage ended.

    code        exit code
    said        lines of standard error
    is_whole    its outputs are as before, or gone
    is_partial  something half-written is left
    """

    stage: str
    code: int
    said: list[str]
    is_whole: bool
    is_partial: bool


def main(project: Path, scratch: Path) -> None:
    """Run every stage twice: with memory, so that all it needs is imported, and without, in a fork."""
    with pytest.MonkeyPatch.context() as patch:
        for stage in STAGES:
            _enter_copy(project, scratch / f"{stage}-with", patch)
            run_stage(stage)
        for stage in STAGES:
            _enter_copy(project, scratch / stage, patch)
            sys.stdout.write(f"{json.dumps(asdict(_without_memory(stage)))}\n")
            sys.stdout.flush()  # before the next fork, which would print it again


def _enter_copy(project: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
    copy_project(project, folder)
    enter(folder, patch)


def _without_memory(stage: str) -> Ended:
    before, said = outputs(stage), Path("said")
    code = in_child(lambda: run_command(lambda: run_stage(stage)), _take_memory, said=said)
    after = outputs(stage)
    is_partial = any(Path().rglob("*.partial"))
    return Ended(stage, code, said.read_text().splitlines(), after == before or not after, is_partial)


def _take_memory() -> None:
    """Take all memory that this process may still get, but for _LEFT."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (8 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for size in (_BLOCK << 4, _BLOCK):
        with contextlib.suppress(MemoryError):
            while True:
                _FILLING.append(bytearray(size))
    del _FILLING[-_LEFT // _BLOCK :]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
