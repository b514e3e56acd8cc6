"""Run each stage of a finished project without memory, and print how it ended.

    python -m tests.support.without_memory PROJECT SCRATCH

Prints one line of JSON a stage; see Ended. A process of its own, because one that has run other tests has so much freed
memory of its own that no limit leaves a stage without.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from cxr.common.cli import run_command
from tests.e2e.test_damaged_inputs import outputs
from tests.support.memory import leave_memory
from tests.support.moments import in_child
from tests.support.projects.sample_project import STAGES, copy_project, enter, run_stage

_LEFT = 2 << 20
"""Bytes that a stage gets: too little for it, enough to say so."""


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
    code = in_child(lambda: run_command(lambda: run_stage(stage)), lambda: leave_memory(_LEFT), said=said)
    after = outputs(stage)
    is_partial = any(Path().rglob("*.partial"))
    return Ended(stage, code, said.read_text().splitlines(), after == before or not after, is_partial)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
