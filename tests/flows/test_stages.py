"""One stage of dvc.yaml, run through DVC."""

import json
import os
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from cxr.common.params import override, read_params
from flows.stages import (
    StageBusyError,
    StageFailedError,
    heal_path_lock,
    last_words,
    plan,
    reads_network,
    run_stage,
)
from tests.support.faults import fault


def run(name: str, root: Path) -> tuple[bool, list[str]]:
    lines: list[str] = []
    return run_stage(name, root=root, on_line=lines.append).cached, lines


def test_stages_come_after_what_they_read_from(tiny: Path) -> None:
    assert plan(tiny).order == ("ingest", "train", "evaluate")


def test_a_stage_runs_once_and_is_cached_until_something_changes(tiny: Path) -> None:
    cached, lines = run("ingest", tiny)
    assert not cached
    assert "ingest reads images.txt" in lines
    assert run("ingest", tiny)[0]
    (tiny / "images.txt").write_text("other images")
    assert not run("ingest", tiny)[0]


def test_unchanged_is_what_dvc_would_skip(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(tiny).unchanged == frozenset()
    for name in ("ingest", "train", "evaluate"):
        run(name, tiny)
    monkeypatch.chdir("/")  # as for a worktree, which is not the working directory
    assert plan(tiny).unchanged == {"ingest", "train", "evaluate"}
    override(tiny / "params.yaml", {"train.epochs": 7})
    (tiny / "reports" / "metrics.json").unlink()
    assert plan(tiny).unchanged == {"ingest"}


def test_while_dvc_is_busy_nothing_counts_as_unchanged(tiny: Path) -> None:
    run("ingest", tiny)
    holder = {"write": {str(tiny / "data" / "raw"): {"pid": os.getppid(), "cmd": "dvc repro"}}}
    (tiny / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(holder))
    assert plan(tiny).unchanged == frozenset()


def test_outputs_that_were_deleted_come_back_from_the_cache(tiny: Path) -> None:
    run("ingest", tiny)
    (tiny / "data" / "raw").unlink()
    (tiny / "dvc.lock").unlink()
    assert run("ingest", tiny)[0]
    assert (tiny / "data" / "raw").exists()


def test_a_failed_stage_hands_on_the_steps_own_message(tiny: Path) -> None:
    (tiny / "fail-ingest").write_text("images.txt: expected images, found none")
    with pytest.raises(StageFailedError, match=r"^ingest: images.txt: expected images, found none$"):
        run("ingest", tiny)


def test_an_unreadable_path_lock_is_healed_and_the_stage_runs(tiny: Path) -> None:
    (tiny / ".dvc" / "tmp").mkdir(exist_ok=True)
    (tiny / ".dvc" / "tmp" / "rwlock").touch()
    assert not run("ingest", tiny)[0]


def test_a_path_lock_that_is_being_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / ".dvc" / "tmp" / "rwlock"
    record.parent.mkdir(parents=True)
    record.touch()
    monkeypatch.setattr("flows.stages.time", Mock(sleep=lambda _: record.write_text("{}")))  # written meanwhile
    assert heal_path_lock(tmp_path) is False
    assert record.read_text() == "{}"


@fault(
    "flows.rebuild",
    "another process runs the same stage",
    "it waits and tries again",
    "the number of the other process",
)
def test_a_path_that_another_live_process_holds_is_busy(tiny: Path) -> None:
    holder = {"write": {str(tiny / "data" / "raw"): {"pid": os.getppid(), "cmd": "dvc repro"}}}
    (tiny / ".dvc" / "tmp").mkdir(exist_ok=True)
    (tiny / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(holder))
    with pytest.raises(StageBusyError):
        run("ingest", tiny)


def test_an_interrupted_stage_leaves_no_process_and_runs_again(tiny: Path) -> None:
    (tiny / "hang-ingest").touch()

    def interrupt_once_hanging(line: str) -> None:
        if line.startswith("ingest reads"):
            while not (tiny / "data" / "pid").exists():
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage("ingest", root=tiny, on_line=interrupt_once_hanging)
    (tiny / "hang-ingest").unlink()
    assert not run("ingest", tiny)[0]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["error: no images", "ERROR: failed to reproduce 'ingest'"], "no images"),  # the step's own words come first
        (["ERROR: failed to reproduce 'ingest': boom"], "failed to reproduce 'ingest': boom"),
        (["Running", ""], "exit code 3, last line: Running"),
        ([], "exit code 3"),
    ],
)
def test_the_last_words_are_the_most_telling_line(lines: list[str], words: str) -> None:
    assert last_words(lines, 3) == words


def test_only_ingest_from_an_address_reads_the_network(tiny: Path) -> None:
    local = read_params(tiny / "params.yaml").ingest
    override(tiny / "params.yaml", {"ingest.sources.0.location": "https://example.org/images.zip"})
    remote = read_params(tiny / "params.yaml").ingest
    assert not reads_network("ingest", local)
    assert reads_network("ingest", remote)
    assert not reads_network("train", remote)
