"""The scored images that drift is looked for in, each once, without every column of every row in memory.

A year of nights is a million rows. Which rows count, and in which order, takes 60 bytes a row; all columns are read for
the rows of the last windows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr.inference.score_store import parts_below, readable_part

if TYPE_CHECKING:
    import pandas as pd

_IDENTITY = ("location", "path", "sha256")
_OTHERS = ("scored_at", "model_version", "error")
_MEASURE = "m_"
_PARTS_AT_ONCE = 64
_HASH_KEYS = (
    "first of two key",
    "second of two ke",
)  # 16 bytes each: 128 bits, so that no two images are taken for one


@dataclass(frozen=True)
class ScoreIndex:
    """Where the rows of a version are that count, the oldest first.

    parts       the files
    part, row   (N,) index into `parts`, and the row in that file
    unmeasured  rows left out because they hold neither measures nor an error
    """

    parts: Sequence[Path]
    part: NDArray[np.int32]
    row: NDArray[np.int32]
    unmeasured: int

    def __len__(self) -> int:
        """Number of rows that count."""
        return len(self.part)

    def read(self, start: int, stop: int) -> pd.DataFrame:
        """Return rows `start` to `stop` with all their columns (cxr/inference/score_store.py); needs at least one."""
        part, row = self.part[start:stop], self.row[start:stop]
        by_part = np.argsort(part, kind="stable")
        tables = []
        for number in np.unique(part):
            with readable_part(self.parts[number]) as file:
                tables.append(file.read().take(row[by_part][part[by_part] == number]))
        rows: pd.DataFrame = pa.concat_tables(tables, promote_options="default").take(np.argsort(by_part)).to_pandas()
        return rows


@dataclass(frozen=True)
class _Rows:
    """The rows of some parts: time in microseconds, a digest of the image, what they hold, and where they are."""

    time: NDArray[np.int64]
    digest: NDArray[np.uint64]  # (N, 2)
    of_version: NDArray[np.bool_]
    measured: NDArray[np.bool_]
    part: NDArray[np.int32]
    row: NDArray[np.int32]


def index_scores(folder: Path, number: str) -> ScoreIndex:
    """Return the rows below `folder` that count for version `number`.

    Scoring tries an unreadable image again every night and writes a row each time: only the first counts.

    Raises:
        DataError: a part cannot be read; names it.
    """
    import pandas as pd

    parts = parts_below(folder)
    found = [*_read(parts, number)]
    if not found:
        return ScoreIndex(parts, np.empty(0, np.int32), np.empty(0, np.int32), 0)
    order = np.concatenate([rows.time for rows in found]).argsort(kind="stable")
    order = order[np.concatenate([rows.of_version for rows in found])[order]]
    again = pd.DataFrame(np.concatenate([rows.digest for rows in found])[order]).duplicated().to_numpy()
    order = order[~again]
    measured = np.concatenate([rows.measured for rows in found])[order]
    part, row = (np.concatenate([getattr(rows, name) for rows in found]) for name in ("part", "row"))
    return ScoreIndex(parts, part[order[measured]], row[order[measured]], int((~measured).sum()))


def _read(parts: Sequence[Path], version: str) -> Iterator[_Rows]:
    """Yield the rows of a few parts at a time."""
    for first in range(0, len(parts), _PARTS_AT_ONCE):
        tables = []
        for path in parts[first : first + _PARTS_AT_ONCE]:
            with readable_part(path) as file:
                measures = [name for name in file.schema_arrow.names if name.startswith(_MEASURE)]
                tables.append(file.read([*_IDENTITY, *_OTHERS, *measures]))
        sizes = [len(table) for table in tables]
        numbers = np.arange(first, first + len(tables), dtype=np.int32)
        yield _rows(
            pa.concat_tables(tables, promote_options="default"),
            version,
            part=np.repeat(numbers, sizes),
            row=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        )


def _rows(table: pa.Table, version: str, *, part: NDArray[np.int32], row: NDArray[np.int32]) -> _Rows:
    measured = table["error"].is_valid().to_numpy()
    for name in table.column_names:
        if name.startswith(_MEASURE):
            measured |= ~np.isnan(table[name].cast(pa.float64()).to_numpy())  # a null is NaN there
    return _Rows(
        time=table["scored_at"].cast(pa.int64()).to_numpy(),
        digest=_digests(table),
        of_version=pc.equal(table["model_version"], version).to_numpy(),
        measured=measured,
        part=part,
        row=row,
    )


def _digests(table: pa.Table) -> NDArray[np.uint64]:
    """Return a digest (N, 2) of the columns that say which image a row is of."""
    from pandas.util import hash_array

    sums = []
    for key in _HASH_KEYS:
        total = np.zeros(len(table), np.uint64)
        for factor, name in zip((1, 3, 5), _IDENTITY, strict=True):
            values = table[name].to_numpy()
            total += np.uint64(factor) * hash_array(values, hash_key=key, categorize=name == "location")
        sums.append(total)
    return np.column_stack(sums)
