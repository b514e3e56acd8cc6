"""Merge the raw sets into one folder, remove duplicates, and account for every file.

Reads   the sources in params.yaml: a folder, a zip, https://, s3:// or the synthetic sample; the labels that a reader
        corrected, labels-corrected.csv (see cxr/dataset/corrections.py)
Writes  data/raw, atomically: images/ (packed, see cxr/dataset/shards.py), manifest.parquet, statistics.parquet,
        duplicates.csv, near_duplicates.csv, quarantine.csv, corrections.csv, ingest.json (columns:
        cxr/dataset/manifest.py)
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from cxr.common.cli import answer_help, run_step, step_parser

if __name__ == "__main__":
    answer_help(step_parser(sys.modules[__name__]))

import pandas as pd
from tqdm import tqdm

from cxr.common.classes import LABELS
from cxr.common.errors import DataError, ParamsError, SourceError
from cxr.common.files import atomic_folder, sha256_of, write_json
from cxr.common.on_disk import Spool
from cxr.common.params import IngestParams, Paths, Source
from cxr.dataset.corrections import Corrected, apply_corrections, read_corrections, summary
from cxr.dataset.deduplicate import Deduplicated, Duplicate, deduplicate, set_mosaics_aside
from cxr.dataset.ingest import Accepted, AcceptedImages, RawFile, Rejected, examine_files, list_files, reread
from cxr.dataset.ingest_record import (
    CORRECTIONS_FILE,
    DUPLICATES_FILE,
    NEAR_DUPLICATES_FILE,
    QUARANTINE_FILE,
    RECORD_FILE,
    STATISTICS_FILE,
    TABLES,
)
from cxr.dataset.inspect import InspectedImage
from cxr.dataset.layouts.raw_set import Annotation
from cxr.dataset.layouts.table import published_images
from cxr.dataset.manifest import MANIFEST_COLUMNS, MANIFEST_FILE, STATISTICS_COLUMNS, write_table
from cxr.dataset.shards import write_shards
from cxr.dataset.sources import Sample, fetch

_ROWS_AT_ONCE = 4096

log = logging.getLogger("cxr.ingest")


def ingest(params: IngestParams, paths: Paths) -> None:
    """Merge the sources into `paths.raw`.

    Raises:
        SourceError: a source cannot be fetched, or holds no usable image of its layout.
        DataError: a correction is wrong, or kept + quarantined + duplicates is not the number of files that came in.
    """
    corrections = read_corrections(paths.corrections)
    files = _all_files(params, paths)
    with atomic_folder(paths.raw) as raw, Spool[tuple[Annotation, InspectedImage]](raw.parent) as spool:
        examined, rejected = _examine(files, params, AcceptedImages(spool))
        accepted, mosaics = set_mosaics_aside(examined, raw.parent)
        accepted, corrected = apply_corrections(accepted, corrections, paths.corrections)
        result = deduplicate(
            accepted,
            duplicate=params.duplicate_correlation,
            near_duplicate=params.near_duplicate_correlation,
            scratch=raw.parent,
            decided={one.image_id for one in corrected},
        )
        rejected += mosaics + result.rejected
        tables = _tables(result)
        counts = _account(files, rejected, result, tables.manifest)
        _require_images(counts, rejected)
        _pack(result.kept, tables.manifest, raw / "images", params)
        _write_tables(raw, tables, result, rejected, corrected)
        written = _summary(raw, tables.manifest, counts, params) | {"corrections": summary(corrected)}
        write_json(raw / RECORD_FILE, written)
    _log_summary(counts, rejected, tables.manifest, near_duplicates=len(result.near_duplicates))


def _all_files(params: IngestParams, paths: Paths) -> list[RawFile]:
    names = [source.name for source in params.sources]
    if len(set(names)) < len(names):
        raise ParamsError(f"ingest.sources: source names must differ, got {', '.join(names)}")
    sample = Sample(patients_per_class=params.sample_patients_per_class, seed=params.sample_seed)
    files = []
    for source in params.sources:
        fetched = fetch(source.location, downloads=paths.downloads, sample=sample, sha256=source.sha256)
        files += list_files(source.name, source.layout, fetched.folder, is_archive=fetched.is_archive)
    return files


def _examine(
    files: list[RawFile], params: IngestParams, accepted: AcceptedImages
) -> tuple[AcceptedImages, list[Rejected]]:
    rejected = []
    results = examine_files(files, max_pixels=params.max_pixels, workers=params.workers)
    for result in tqdm(results, total=len(files), desc="ingest", unit="image", disable=None):
        if isinstance(result, Accepted):
            accepted.append(result)
        else:
            rejected.append(result)
    return accepted, rejected


@dataclass(frozen=True)
class Tables:
    """The manifest and the statistics, with the columns and dtypes of cxr/dataset/manifest.py."""

    manifest: pd.DataFrame
    statistics: pd.DataFrame


def _tables(result: Deduplicated) -> Tables:
    """Make the tables a few thousand rows at a time: as Python objects a row takes ten times the memory."""
    manifests, statistics = [], []
    for start in range(0, max(len(result.kept), 1), _ROWS_AT_ONCE):
        images = [result.kept[row] for row in range(start, min(start + _ROWS_AT_ONCE, len(result.kept)))]
        manifests.append(_typed([_manifest_row(image, result) for image in images], MANIFEST_COLUMNS))
        statistics.append(_typed([_statistics_row(image) for image in images], STATISTICS_COLUMNS))
    return Tables(pd.concat(manifests, ignore_index=True), pd.concat(statistics, ignore_index=True))


def _typed(rows: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def _pack(kept: Sequence[Accepted], manifest: pd.DataFrame, folder: Path, params: IngestParams) -> None:
    row_of = {path: row for row, path in enumerate(manifest["path"])}
    sizes = dict(zip(row_of, manifest["bytes"].tolist(), strict=True))

    def read(path: str) -> bytes:
        return reread(kept[row_of[path]], max_pixels=params.max_pixels)

    with tqdm(total=len(kept), desc="pack", unit="image", disable=None) as progress:
        for packed in write_shards(folder, sizes, read, workers=params.workers or os.cpu_count() or 1):
            progress.update(packed)


def _image_path(image: Accepted) -> str:
    return f"images/{image.source}/{image.path}"


def _account(
    files: list[RawFile], rejected: list[Rejected], result: Deduplicated, manifest: pd.DataFrame
) -> dict[str, dict[str, int]]:
    """Count files by source and result, and check that each file has exactly one result."""
    counted = {
        "total": Counter(file.source for file in files),
        "kept": Counter(manifest["source"]),
        "quarantined": Counter(row.source for row in rejected),
        "duplicates": Counter(row.image.source for row in result.duplicates),
    }
    counts = {}
    for source in counted["total"]:
        count = {name: counter[source] for name, counter in counted.items()}
        if count["kept"] + count["quarantined"] + count["duplicates"] != count["total"]:
            raise DataError(f"source {source}: {count} does not add up; this is a defect of ingest, please report it")
        counts[source] = count
    return counts


def _require_images(counts: dict[str, dict[str, int]], rejected: list[Rejected]) -> None:
    """Check that every source gave at least one image. Raises SourceError, with the reasons why files were rejected."""
    for source, count in counts.items():
        if count["quarantined"] == count["total"]:
            reasons = Counter(row.rejection.reason for row in rejected if row.source == source)
            shown = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common(3))
            raise SourceError(
                f"source {source}: none of its {count['total']:,} files is a usable image ({shown}); nothing was "
                "written: copy the set again, or correct ingest.sources"
            )


def _write_tables(
    raw: Path, tables: Tables, result: Deduplicated, rejected: list[Rejected], corrected: list[Corrected]
) -> None:
    def write_csv(name: str, rows: list[tuple[Any, ...]]) -> None:
        pd.DataFrame(rows, columns=list(TABLES[name])).to_csv(raw / name, index=False, lineterminator="\n")

    write_table(tables.manifest, MANIFEST_COLUMNS, raw / MANIFEST_FILE)
    write_table(tables.statistics, STATISTICS_COLUMNS, raw / STATISTICS_FILE)
    write_csv(
        DUPLICATES_FILE,
        [_duplicate_row(row) for row in result.duplicates],
    )
    write_csv(
        NEAR_DUPLICATES_FILE,
        [(one, other, f"{correlation:.6f}") for one, other, correlation in result.near_duplicates],
    )
    write_csv(
        QUARANTINE_FILE,
        sorted((row.source, row.path, row.rejection.reason, row.rejection.detail) for row in rejected),
    )
    write_csv(
        CORRECTIONS_FILE,
        sorted(astuple(row) for row in corrected),
    )


def _summary(
    raw: Path, manifest: pd.DataFrame, counts: dict[str, dict[str, int]], params: IngestParams
) -> dict[str, Any]:
    """Return the content of ingest.json."""
    classes = Counter(manifest["label"])
    totals = {name: sum(count[name] for count in counts.values()) for name in next(iter(counts.values()))}
    return {
        **totals,
        "sources": counts,
        "synthetic": any(source.location == "sample" for source in params.sources),
        "layouts": {source.name: source.layout for source in params.sources},
        "published": {source.name: _published(source) for source in params.sources},
        "classes": {label: classes[label] for label in LABELS},
        "manifest_sha256": sha256_of(raw / MANIFEST_FILE),
        "tables_sha256": {name: sha256_of(raw / name) for name in (STATISTICS_FILE, *TABLES)},
    }


def _published(source: Source) -> dict[str, int]:
    """Return the number of images of each part of the set as it is published; empty for the sample."""
    return {} if source.location == "sample" else dict(published_images(source.layout))


def _duplicate_row(row: Duplicate) -> tuple[str, ...]:
    image = row.image
    return image.source, image.path, image.image.sha256, row.kind, row.kept.image_id, f"{row.correlation:.6f}"


def _manifest_row(image: Accepted, result: Deduplicated) -> dict[str, Any]:
    acquisition = image.annotation.acquisition
    return {
        "image_id": image.image_id,
        "source": image.source,
        "official_split": image.annotation.official_split,
        "path": _image_path(image),
        "label": image.annotation.label,
        "patient_id": result.patients[image.patient_id],
        "sha256": image.image.sha256,
        "phash": f"{image.image.phash:016x}",
        "width": image.image.width,
        "height": image.image.height,
        "mode": image.image.mode,
        "bytes": image.image.bytes,
        "acquisition_series": acquisition.series if acquisition else None,
        "acquisition_number": acquisition.number if acquisition else None,
    }


def _statistics_row(image: Accepted) -> dict[str, Any]:
    described = image.image
    return {
        "image_id": image.image_id,
        "grey_mean": described.grey_mean,
        "grey_std": described.grey_std,
        "grey_p01": described.grey_p01,
        "grey_p99": described.grey_p99,
        "saturated_share": described.saturated_share,
    }


def _log_summary(
    counts: dict[str, dict[str, int]], rejected: list[Rejected], manifest: pd.DataFrame, *, near_duplicates: int
) -> None:
    columns = ("total", "kept", "quarantined", "duplicates")
    lines = [f"{'source':<12}" + "".join(f"{name:>13}" for name in columns)]
    lines += [f"{source:<12}" + "".join(f"{count[name]:>13,}" for name in columns) for source, count in counts.items()]
    log.info("\n".join(lines))
    labels = Counter(manifest["label"])
    log.info("kept: %s", ", ".join(f"{count:,} {label}" for label, count in sorted(labels.items())))
    reasons = Counter(row.rejection.reason for row in rejected)
    if reasons:
        log.info("quarantined: %s", ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items())))
    ordered = int(manifest["acquisition_number"].notna().sum())
    log.info("order of acquisition known for %s of %s kept images", f"{ordered:,}", f"{len(manifest):,}")
    log.info("near-duplicate pairs of kept images: %s", f"{near_duplicates:,}")


if __name__ == "__main__":
    run_step(ingest)
