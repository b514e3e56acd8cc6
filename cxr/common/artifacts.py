"""Read a file that a stage wrote for later ones: whole and as described, or one error that says which stage to run.

Each artifact has one reader, in the module that describes it; those readers call the functions here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from cxr.common.errors import DataError
from cxr.common.files import sha256_of

Record = TypeVar("Record")
_ADDED = {"manifest_sha256", "splits_sha256", "tables_sha256"}
"""Keys that records of releases before 0.7.0 lack."""


def missing(path: Path, stage: str) -> DataError:
    """Return the error of a file that is not there; `stage` writes it."""
    return DataError(f"{path} is missing; run `./run dvc repro {stage}`")


def damaged(path: Path, stage: str, *, expected: str, found: str) -> DataError:
    """Return the error of a file that is not as `stage` writes it."""
    wanted, shown = (" ".join(text.split()) for text in (expected, found))  # a library's message may have several lines
    return DataError(f"{path} is damaged: expected {wanted}, found {shown}; run `./run dvc repro -f -s {stage}`")


def existing(path: Path, stage: str, *, sha256: str | None = None) -> Path:
    """Return `path`, an existing file, with the digest that another artifact records for it.

    Raises:
        DataError: it is missing or has another digest.
    """
    if not path.is_file():
        raise missing(path, stage)
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise damaged(path, stage, expected=f"SHA-256 {sha256[:12]}", found=found[:12])
    return path


def read_record(path: Path, keys: type[Record], *, stage: str) -> Record:
    """Read a JSON object with the keys of the TypedDict `keys`; further keys are kept.

    Raises:
        DataError: the file is missing, is not such an object, or a value has another type.
    """
    existing(path, stage)
    adapter = TypeAdapter(keys)
    try:
        value = json.loads(path.read_bytes())
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing" and name in _ADDED:
            raise DataError(f"{path} has no {name}: written by an older release; run `./run dvc repro`") from error
        raise damaged(path, stage, expected=f"an object with valid {name or 'keys'}", found=problem["msg"]) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested without end
        raise damaged(path, stage, expected="JSON", found=str(error)) from error
    return value  # type: ignore[no-any-return]


def read_csv(path: Path, columns: Mapping[str, str], *, stage: str, sha256: str | None = None) -> pd.DataFrame:
    """Read a table with a header; further columns are kept.

    Args:
        path: of the file.
        columns: columns that must be there -> dtype.
        stage: that writes the file.
        sha256: digest that another artifact records for the file; None: not recorded.

    Raises:
        DataError: the file is missing, has another digest, lacks a column, or a value does not fit.
    """
    existing(path, stage, sha256=sha256)
    try:
        table = pd.read_csv(path, dtype=dict(columns))
    except (ValueError, OverflowError) as error:  # pandas's own errors are ValueErrors
        raise damaged(path, stage, expected=f"a table with {', '.join(columns)}", found=str(error)) from error
    return _with_columns(table, columns, path, stage)


def read_parquet(
    path: Path, columns: Mapping[str, str] | None, *, stage: str, sha256: str | None = None
) -> pd.DataFrame:
    """Read a Parquet table, and only the columns named; None: all, unchecked. Arguments and errors as of `read_csv`."""
    from pyarrow import ArrowException  # a machine that only answers has no pyarrow
    from pyarrow.parquet import read_schema

    existing(path, stage, sha256=sha256)
    try:
        there = read_schema(path).names
        table = pd.read_parquet(path, columns=None if columns is None else [name for name in columns if name in there])
    except (OSError, ValueError, KeyError, TypeError, ArrowException) as error:
        raise damaged(path, stage, expected="a Parquet table", found=str(error)) from error
    return table if columns is None else _with_columns(table, columns, path, stage)[list(columns)]


def read_text(path: Path, *, stage: str, marks: Sequence[str]) -> str:
    """Read a text that begins with the first mark and holds the others. Raises DataError where it does not."""
    existing(path, stage)
    text = path.read_bytes().decode("utf-8", "replace")
    if not text.startswith(marks[0]) or not all(mark in text for mark in marks):
        raise damaged(path, stage, expected=f"a text with {' and '.join(marks)}", found=f"{text[:20]!r} ...")
    return text


def _with_columns(table: pd.DataFrame, columns: Mapping[str, str], path: Path, stage: str) -> pd.DataFrame:
    lacking = [name for name in columns if name not in table.columns]
    if lacking:
        raise damaged(path, stage, expected=f"the columns {', '.join(columns)}", found=f"no {', '.join(lacking)}")
    return table
