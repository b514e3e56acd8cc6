"""Scored images as Parquet parts: the schema of a row, which images were scored before, and reading all parts.

`<output>/version-<n>/<time>-<shard>of<shards>-<run>-<part>.parquet`, each written atomically and never changed. A row
an image:

    location, path           where it was found, and the path below
    sha256                   of its bytes; null where they were not read
    size_bytes, changed      as listed (cxr.inference.image_source.ImageFile); `changed` is null where the image could
                             not be opened
    scored_at                UTC
    model_version            as in the registry
    <answer>                 the columns of cxr.inference.answer.Answer.to_row, p_<class> in the model's order; null for
                             an image that cannot be read. Parts of older releases lack columns that came later
    error                    why the image cannot be read, else null

The schema's metadata name the model, its version, the digests of its weights and its spec, the code that scored, and
`engine`: "torch", or "openvino" and its precision.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cxr.common.errors import DataError, other_format
from cxr.common.files import atomic_file
from cxr.inference.answer import FieldType, columns
from cxr.inference.image_source import ImageFile

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = "1"
_SPEC_KEY = b"spec_sha256"
_FIRST = datetime.min.replace(tzinfo=UTC)
_BEFORE_ANSWER = (
    pa.field("location", pa.string(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    pa.field("sha256", pa.string()),
    pa.field("size_bytes", pa.int64(), nullable=False),
    pa.field("changed", pa.string()),
    pa.field("scored_at", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("model_version", pa.string(), nullable=False),
)
_TYPES: dict[FieldType, pa.DataType] = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "double": pa.float64(),
    "float": pa.float32(),
}


def schema(classes: Sequence[str], measures: Sequence[str], metadata: Mapping[str, str]) -> pa.Schema:
    """Return the schema of a part.

    Args:
        classes: in the model's order.
        measures: names without `m_`.
        metadata: of the model and the code; `spec_sha256` identifies the model.
    """
    fields = [
        *_BEFORE_ANSWER,
        *(pa.field(column.name, _TYPES[column.type]) for column in columns(classes, measures)),
        pa.field("error", pa.string()),
    ]
    return pa.schema(fields, metadata={**metadata, "schema_version": SCHEMA_VERSION})


def version_folder(output: Path, number: str) -> Path:
    """Return the folder of the parts of one model version."""
    return output / f"version-{number}"


class PartWriter:
    """Collects rows and writes a part whenever there are enough; `close` writes the rest.

    `publish` is called with each part when it is written.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        *,
        images_per_part: int,
        shard: str,
        publish: Callable[[Path], object] = lambda _: None,
    ) -> None:
        self._folder, self._schema, self._images_per_part = folder, schema, images_per_part
        self._publish = publish
        # Runs that begin in the same second, also on several machines, need different names.
        self._name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{shard}-{secrets.token_hex(4)}"
        self._rows: list[Mapping[str, Any]] = []
        self._written = 0

    def add(self, rows: Iterable[Mapping[str, Any]]) -> Path | None:
        """Add rows; return the part that they completed, or None."""
        self._rows.extend(rows)
        return self._write() if len(self._rows) >= self._images_per_part else None

    def close(self) -> Path | None:
        """Write the rows that no part holds yet, if there are any."""
        return self._write() if self._rows else None

    def _write(self) -> Path:
        self._written += 1
        path = self._folder / f"{self._name}-{self._written:05d}.parquet"
        with atomic_file(path) as partial:
            pq.write_table(pa.Table.from_pylist(self._rows, self._schema), partial, compression="zstd")
        self._rows = []
        self._publish(path)
        return path


class Scored:
    """Which of `images`, as they are listed now, one model has scored; about 200 bytes of memory for each of them.

    An image with the path, size and modification time or ETag of a scored one is not read. Any other is read, and
    not scored when its bytes were scored under its path. An image that was not opened counts as not scored.
    """

    def __init__(self, folder: Path, *, spec_sha256: str, location: str, images: Iterable[ImageFile]) -> None:
        self._listed: set[bytes] = set()
        self._held: set[bytes] = set()
        self._newest = _FIRST
        paths = {image.path for image in images}
        for part in parts_below(folder) if paths else ():
            with readable_part(part) as file:
                self._newest = max([self._newest, *_newest_times(file)])
                if (file.schema_arrow.metadata or {}).get(_SPEC_KEY) == spec_sha256.encode():
                    self._remember(_rows_of(file, location, paths))

    def is_unchanged(self, image: ImageFile) -> bool:
        """Return whether the image was scored as it is listed."""
        return _key(image.path, image.size_bytes, image.changed) in self._listed

    def has_bytes(self, path: str, sha256: str) -> bool:
        """Return whether these bytes were scored under this path."""
        return _key(path, sha256) in self._held

    def next_time(self) -> datetime:
        """Return the time of the next rows: by the clock, unless that is behind the newest row, then just after it.

        Rows are compared in the order of their times. A clock that was ahead for one night would otherwise let that
        night's rows be the newest ones for as long.
        """
        self._newest = max(datetime.now(UTC), self._newest + timedelta(microseconds=1))
        return self._newest

    def _remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            if row["changed"] is not None:
                self._listed.add(_key(row["path"], row["size_bytes"], row["changed"]))
            if row["sha256"] is not None:
                self._held.add(_key(row["path"], row["sha256"]))


def _newest_times(file: pq.ParquetFile) -> Iterator[datetime]:
    """Yield the time of the newest row of each group of a part, from its footer."""
    column = file.schema_arrow.names.index("scored_at")
    for group in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(group).column(column).statistics
        if statistics is not None and statistics.has_min_max:
            yield statistics.max


def _rows_of(file: pq.ParquetFile, location: str, paths: Set[str]) -> list[dict[str, Any]]:
    """Return the rows of a part for some paths of a location. Its other columns are read only where there are any."""
    found = file.read(["location", "path"])
    wanted = [
        at
        for at, (where, path) in enumerate(zip(*(column.to_pylist() for column in found.columns), strict=True))
        if where == location and path in paths
    ]
    if not wanted:
        return []
    rows: list[dict[str, Any]] = file.read(["path", "size_bytes", "changed", "sha256"]).take(wanted).to_pylist()
    return rows


def read_scores(folder: Path) -> pd.DataFrame:
    """Return every scored image of every version below `folder`, the oldest first; columns as listed above.

    Columns that a part lacks are missing values; without any part the table is empty.

    Raises:
        DataError: a part cannot be read; names it.
    """
    import pandas as pd

    tables = []
    for part in parts_below(folder):
        with readable_part(part) as file:
            tables.append(file.read())
    if not tables:
        return pd.DataFrame(columns=[field.name for field in schema((), (), {})])
    merged: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    return merged.sort_values("scored_at", kind="stable", ignore_index=True)


def parts_below(folder: Path) -> list[Path]:
    """Return the parts below a folder, sorted, without those that are being written."""
    return sorted(folder.rglob("[!.]*.parquet"))


@contextmanager
def readable_part(part: Path) -> Iterator[pq.ParquetFile]:
    """Open a part. Raises DataError, also inside the block, when it is damaged or of a later release."""
    try:
        with pq.ParquetFile(part) as file:
            _check_release(part, file.schema_arrow.metadata or {})
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{part} is not a part of scored images ({error}); remove it, and the next run scores its images again"
        ) from error


def _check_release(part: Path, metadata: Mapping[bytes, bytes]) -> None:
    found = metadata.get(b"schema_version", SCHEMA_VERSION.encode()).decode()
    if found != SCHEMA_VERSION:
        raise DataError(other_format(str(part), found, SCHEMA_VERSION))


def _key(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
