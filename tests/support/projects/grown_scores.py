"""Parts of scored images as many nights leave them; `./run score` would need an hour for a million images."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.random import Generator

from cxr.inference.score_store import schema, version_folder
from cxr.models.reference import MEASURES
from cxr.registry.versions import MODEL, Version
from tests.support.projects.registry_project import CLASSES


def write_scores(
    output: Path, version: Version, *, location: str, rows: int, nights: int, images_per_part: int = 500
) -> int:
    """Write the parts of `rows` images that a version scored in the last `nights`, the same number each night.

    One in a thousand could not be read. Returns the number of parts.
    """
    folder, generator = version_folder(output, version.number), np.random.default_rng(0)
    folder.mkdir(parents=True)
    metadata = {"model": MODEL, "model_version": version.number, "engine": "torch"}
    metadata |= {name: version.tags[name] for name in ("weights_sha256", "spec_sha256")}
    columns = schema(CLASSES, MEASURES, metadata)
    parts = 0
    for night, begin in enumerate(range(0, rows, -(-rows // nights))):
        started = datetime.now(UTC) - timedelta(days=nights - night)
        end = min(rows, begin + -(-rows // nights))
        for first, last in _cut(begin, end, images_per_part):
            parts += 1
            table = _part(columns, generator, range(first, last), location, version.number, started)
            path = (
                folder
                / f"{started:%Y%m%dT%H%M%S}-1of1-{night:08x}-{(first - begin) // images_per_part + 1:05d}.parquet"
            )
            pq.write_table(table, path, compression="zstd")
    return parts


def _cut(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(end, first + size)) for first in range(begin, end, size))


def _part(
    columns: pa.Schema, generator: Generator, rows: range, location: str, number: str, started: datetime
) -> pa.Table:
    count = len(rows)
    probabilities = generator.dirichlet((1, 1, 1), count)
    digests = generator.bytes(32 * count).hex()
    bad = np.array([row % 1000 == 999 for row in rows])
    values: dict[str, Any] = {
        "location": [location] * count,
        "path": [f"{row // 3000:04d}/study-{row // 2:07d}/image-{row}.png" for row in rows],
        "sha256": [digests[64 * at : 64 * at + 64] for at in range(count)],
        "size_bytes": generator.integers(100_000, 900_000, count),
        "changed": [str(10**18 + row) for row in rows],
        "scored_at": [started + timedelta(milliseconds=100 * at) for at in range(count)],
        "model_version": [number] * count,
        "predicted_class": np.array(CLASSES, object)[probabilities.argmax(axis=1)],
        **{f"p_{name}": probabilities[:, at] for at, name in enumerate(CLASSES)},
        "confidence": probabilities.max(axis=1),
        "refer": generator.random(count) < 0.3,
        "warning": [None] * count,
        **{f"m_{name}": generator.random(count, np.float32) for name in MEASURES},
        "error": ["not an image" if one else None for one in bad],
    }
    answers = set(values) - {
        "location",
        "path",
        "sha256",
        "size_bytes",
        "changed",
        "scored_at",
        "model_version",
        "error",
    }
    arrays = [
        pa.array(values[field.name], field.type, mask=bad if field.name in answers else None) for field in columns
    ]
    return pa.Table.from_arrays(arrays, schema=columns)
