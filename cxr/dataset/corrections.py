"""Labels that a person corrected: labels-corrected.csv, which ingest applies and DVC tracks as an input.

UTF-8 with the header `image_id,label,reviewer`, one line for each image:

`image_id`  as in data/raw/manifest.parquet; holds a digest of the image, so a correction never meets another image
`label`     the right one, of cxr.common.classes.LABELS; that of the file itself confirms it
`reviewer`  who decided; may be empty

A decided label is also that of the image's duplicates, whatever their files say (cxr/dataset/deduplicate.py).

The contact sheet of tasks/forensics.py writes such a file. It is checked whole before any label is changed.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, cast

from cxr.common.classes import LABELS, Label
from cxr.common.errors import DataError
from cxr.common.files import is_special
from cxr.dataset.ingest import Accepted, ChosenImages

COLUMNS = ("image_id", "label", "reviewer")
_NAMED_PROBLEMS = 5


@dataclass(frozen=True)
class Correction:
    """The decision of `reviewer` that image `image_id` has the label `label`."""

    image_id: str
    label: Label
    reviewer: str


@dataclass(frozen=True)
class Corrected:
    """An image of the raw sets whose label was decided by a person; `label_was` is that of the raw set."""

    image_id: str
    source: str
    path: str
    label_was: Label
    label: Label
    reviewer: str


def read_corrections(path: Path) -> list[Correction]:
    """Read the file; a missing file holds no corrections.

    Raises:
        DataError: it is not UTF-8, has other columns, an unknown class or two lines for one image; names each problem.
    """
    if is_special(path):
        raise DataError(f"{path} is not a regular file; save the corrections there as CSV in UTF-8")
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); save it as CSV in UTF-8") from error
    header, *rows = lines or [[]]
    if tuple(header) != COLUMNS:
        raise DataError(f"{path}: expected the header {','.join(COLUMNS)}, found {','.join(header) or 'nothing'}")
    numbered = [(number, row) for number, row in enumerate(rows, start=2) if row]
    _raise_problems(path, [problem for number, row in numbered if (problem := _problem(number, row))])
    corrections = [Correction(row[0], cast(Label, row[1]), row[2]) for _, row in numbered]
    twice = [name for name, n in Counter(one.image_id for one in corrections).items() if n > 1]
    _raise_problems(path, [f"image {name} has more than one line" for name in twice])
    return corrections


def correction_lines(corrections: Sequence[Correction]) -> list[str]:
    """Return the line of each correction in the file, without its end."""
    lines = []
    for one in corrections:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(astuple(one))
        lines.append(line.getvalue())
    return lines


def apply_corrections(
    images: Sequence[Accepted], corrections: Sequence[Correction], path: Path
) -> tuple[Sequence[Accepted], list[Corrected]]:
    """Return the images with their corrected labels, and what was decided about each image in the file.

    Duplicates of an image within its source have its image_id, so they are corrected with it.

    Args:
        images: all accepted images.
        corrections: read from `path`.
        path: for messages.

    Raises:
        DataError: an image_id is not that of an accepted image; nothing is applied.
    """
    by_id = {one.image_id: one for one in corrections}
    labels, decided = {}, []
    for row, image in enumerate(images if by_id else ()):
        if one := by_id.get(image.image_id):
            labels[row] = one.label
            was = image.annotation.label
            decided.append(Corrected(image.image_id, image.source, image.path, was, one.label, one.reviewer))
    unknown = sorted(by_id.keys() - {one.image_id for one in decided})
    _raise_problems(path, [f"no image has the image_id {name}" for name in unknown])
    return ChosenImages(images, range(len(images)), labels), decided


def summary(decided: Sequence[Corrected]) -> dict[str, Any]:
    """Return how many images were relabelled, how many confirmed, and each change with its count."""
    changes = Counter((one.label_was, one.label) for one in decided if one.label_was != one.label)
    return {
        "relabelled": changes.total(),
        "confirmed": len(decided) - changes.total(),
        "changes": [{"from": was, "to": label, "images": n} for (was, label), n in sorted(changes.items())],
    }


def _problem(number: int, row: Sequence[str]) -> str | None:
    if len(row) != len(COLUMNS):
        return f"line {number} has {len(row)} fields, expected {len(COLUMNS)}"
    if not row[0]:
        return f"line {number} has no image_id"
    if row[1] not in LABELS:
        return f"line {number}: unknown class {row[1]!r}, expected one of {', '.join(LABELS)}"
    return None


def _raise_problems(path: Path, problems: Sequence[str]) -> None:
    if problems:
        more = f"; and {len(problems) - _NAMED_PROBLEMS} more" if len(problems) > _NAMED_PROBLEMS else ""
        raise DataError(
            f"{path}: {'; '.join(problems[:_NAMED_PROBLEMS])}{more}; no correction was applied: mend the file and run "
            "ingest again"
        )
