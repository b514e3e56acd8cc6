"""What readers say about answers: a table on this machine, a row each time a reader agrees or corrects.

    time           in UTC
    image_sha256   of the image's file; no name, no path
    model_version  whose answer it was
    answer         the predicted class
    label          the reader's class
    note           the reader's words; may be empty

Rows are only added. A reader who changes their mind adds a row: the last one of an image counts. A row that a crash cut
off is removed when the next one is added, and ignored until then.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

from cxr.common.classes import LABELS
from cxr.common.errors import ParamsError
from cxr.common.files import is_special
from cxr.common.locks import file_lock

MOST_NOTE_CHARACTERS = 500

_LONGEST_ROW_BYTES = 8192
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Feedback:
    """A row of the table; see the module."""

    time: str
    image_sha256: str
    model_version: str
    answer: str
    label: str
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the reader's class is the model's."""
        return self.label == self.answer


COLUMNS = tuple(one.name for one in fields(Feedback))


def add_feedback(table: Path, feedback: Feedback) -> None:
    """Add a row; when this returns it is on the disk. Safe in several processes.

    Raises:
        OSError: the table cannot be written.
    """
    table.parent.mkdir(parents=True, exist_ok=True)
    note = " ".join(feedback.note.split())[:MOST_NOTE_CHARACTERS]
    # A spreadsheet would take such a note for a formula.
    row = asdict(feedback) | {"note": f"'{note}" if note.startswith(_FORMULA) else note}
    with file_lock(table.with_suffix(".lock")), table.open("ab+") as file:
        whole = _whole(file)
        file.truncate(whole)
        lines = [list(row.values())] if whole else [list(COLUMNS), list(row.values())]
        file.write(_csv(lines))
        file.flush()
        os.fsync(file.fileno())


def read_feedback(table: Path) -> list[Feedback]:
    """Return all rows, the oldest first; none if there is no table.

    Raises:
        ParamsError: it is not such a table, and names the line; or it cannot be read.
    """
    try:
        if is_special(table):
            raise ParamsError(f"{table} is not a regular file; move it away, and restore a copy if there was a table")
        data = table.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ParamsError(f"{table} cannot be read ({error.strerror}); check its permissions") from None
    try:
        text = data[: data.rfind(b"\n") + 1].decode()
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ParamsError(f"{table} cannot be read as CSV in UTF-8: {type(error).__name__}; restore a copy") from None
    if rows and tuple(rows[0]) != COLUMNS:
        raise ParamsError(f"{table}, line 1: expected the columns {', '.join(COLUMNS)}; restore a copy")
    return [_row(table, number, row) for number, row in enumerate(rows[1:], start=2)]


def last_of_each_image(rows: Sequence[Feedback]) -> dict[str, Feedback]:
    """Return the last row of each image, by its digest."""
    return {row.image_sha256: row for row in rows}


def _row(table: Path, number: int, row: list[str]) -> Feedback:
    if len(row) != len(COLUMNS) or row[COLUMNS.index("label")] not in LABELS:
        raise ParamsError(
            f"{table}, line {number}: expected {len(COLUMNS)} values, with a label of {', '.join(LABELS)}; correct it"
        )
    return Feedback(*row)


def _whole(file: BinaryIO) -> int:
    """Return the length of the table without a last row that is not whole."""
    start = max(0, file.seek(0, os.SEEK_END) - _LONGEST_ROW_BYTES)
    file.seek(start)
    return start + file.read().rfind(b"\n") + 1


def _csv(lines: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()
