"""The table of what readers say is only added to, whole after a crash, and holds no name."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cxr.common.errors import ParamsError
from cxr.inference.feedback import COLUMNS, Feedback, add_feedback, last_of_each_image, read_feedback
from tests.support.faults import fault
from tests.support.project import PROJECT

SAID = Feedback("2026-03-01T11:30:00+00:00", "a" * 64, "12", "viral", "viral")


def test_rows_are_added_and_the_last_one_of_an_image_counts(tmp_path: Path) -> None:
    table = tmp_path / "new" / "feedback.csv"
    assert read_feedback(table) == []
    corrected = replace(SAID, label="bacterial", note="lobar, at the base")
    other = replace(SAID, image_sha256="b" * 64)
    for row in (SAID, other, corrected):
        add_feedback(table, row)
    rows = read_feedback(table)
    assert rows == [SAID, other, corrected]
    assert last_of_each_image(rows) == {"a" * 64: corrected, "b" * 64: other}
    assert [row.agrees for row in rows] == [True, True, False]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused_by_name(make: Callable[[Path], None], tmp_path: Path) -> None:
    table = tmp_path / "feedback.csv"  # docker makes a folder of a bind mount whose file is not there yet
    make(table)
    with pytest.raises(ParamsError, match=r"feedback.csv is not a regular file; move it away"):
        read_feedback(table)


def test_a_table_that_may_not_be_read_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "feedback.csv"
    add_feedback(table, SAID)

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ParamsError, match=r"feedback.csv cannot be read \(Permission denied\); check its permissions"):
        read_feedback(table)


@fault("feedback", "a reader's row is added while the table is exported", "rows that are whole are exported", "nothing")
def test_a_table_that_is_being_added_to_is_read_up_to_its_last_whole_row(tmp_path: Path) -> None:
    table = tmp_path / "feedback.csv"
    rows = [replace(SAID, image_sha256=f"{number:064}", note="word" * 100) for number in range(60)]
    adding = threading.Thread(target=lambda: [add_feedback(table, row) for row in rows])
    adding.start()
    while adding.is_alive():
        said = read_feedback(table)
        assert said == rows[: len(said)]
    adding.join()
    assert read_feedback(table) == rows
    with table.open("ab") as torn:  # as a writer of half a row leaves it for a moment
        torn.write(b"2026-03-01T11:30:00+00:00,")
    assert read_feedback(table) == rows


def test_a_note_is_one_line_and_no_formula(tmp_path: Path) -> None:
    table = tmp_path / "feedback.csv"
    add_feedback(table, replace(SAID, note='=HYPERLINK("x")\n\nsecond, "line"'))
    add_feedback(table, replace(SAID, note="x" * 600))
    first, second = read_feedback(table)
    assert first.note == '\'=HYPERLINK("x") second, "line"'
    assert len(second.note) == 500
    assert len(table.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "left", ["", "time,image_", "time,image_sha256,model_version,answer,label,note\n2026-03-01T11:30"]
)
def test_a_row_that_a_crash_cut_off_is_ignored_and_removed(tmp_path: Path, left: str) -> None:
    table = tmp_path / "feedback.csv"
    table.write_text(left)
    assert read_feedback(table) == []
    add_feedback(table, SAID)
    assert read_feedback(table) == [SAID]
    assert table.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_a_process_that_is_killed_while_it_writes_leaves_whole_rows(tmp_path: Path) -> None:
    table = tmp_path / "feedback.csv"
    program = (
        "import sys; from pathlib import Path; from cxr.inference.feedback import *\n"
        "row = Feedback('2026-03-01T11:30:00+00:00', 'a' * 64, '12', 'viral', 'normal', 'n' * 400)\n"
        "while True: add_feedback(Path(sys.argv[1]), row)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(table)], cwd=PROJECT) as writer:
        while not table.exists() or table.stat().st_size < 20_000:
            assert writer.poll() is None
        os.kill(writer.pid, signal.SIGKILL)
    rows = read_feedback(table)
    assert len(rows) > 30
    assert {row.note for row in rows} == {"n" * 400}
    add_feedback(table, SAID)
    assert len(read_feedback(table)) == len(rows) + 1


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("a,b\n", "line 1: expected the columns time, image_sha256"),
        (",".join(COLUMNS) + "\n2026,aa,1,viral,fungal,\n", "line 2: expected 6 values, with a label of normal, viral"),
        (",".join(COLUMNS) + '\n"\n', "cannot be read as CSV"),
    ],
)
def test_a_damaged_table_is_an_error_that_names_the_line(tmp_path: Path, contents: str, message: str) -> None:
    (tmp_path / "feedback.csv").write_text(contents)
    with pytest.raises(ParamsError, match=message):
        read_feedback(tmp_path / "feedback.csv")
