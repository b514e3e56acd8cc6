"""Stages that write to a disk with too little room, and to one that is read-only: one line, and no half output."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxr.common.cli import run_command
from cxr.common.errors import StorageError
from cxr.common.params import override
from tests.support.faults import fault
from tests.support.projects.sample_project import run_stage

OUTPUT = {
    "validate": "data_docs", "split": "split", "preprocess": "images", "train": "model", "evaluate": "evaluation",
}  # fmt: skip


@pytest.fixture
def disk(sample: Path) -> Iterator[Path]:
    """A disk of 4 KB below the project."""
    folder = sample / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(folder)], check=False).returncode:
        pytest.skip("no right to mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # the error may still hold a mapped file


def refused(stage: str, disk: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a stage that writes to `disk`; return its message after checking that it is one line."""
    override(Path("params.yaml"), {f"paths.{OUTPUT[stage]}": str(disk / "out")})
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: run_stage(stage))
    assert ended.value.code == StorageError.exit_code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert list(disk.iterdir()) == []
    return line


@pytest.mark.parametrize("stage", OUTPUT)
@fault(
    "validate, split, preprocess, train, evaluate",
    "the disk is full",
    "nothing half-written is left",
    "exit code 12, no space left",
)
def test_a_full_disk_is_one_line(stage: str, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No space left on device" in refused(stage, disk, capsys)


@pytest.mark.parametrize("stage", OUTPUT)
@fault(
    "validate, split, preprocess, train, evaluate",
    "the folder is read-only",
    "nothing is written",
    "exit code 12, read-only",
)
def test_a_read_only_disk_is_one_line(stage: str, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "Read-only file system" in refused(stage, disk, capsys)
