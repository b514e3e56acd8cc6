"""Take in raw images: merge the sets into one folder, and account for every file.

Reads the sources in params.yaml (a folder, a zip, https://, s3:// or the synthetic sample).
Writes data/raw whole or not at all: images/ (packed, see cxr/dataset/shards.py), manifest.parquet, statistics.parquet,
duplicates.csv, near_duplicates.csv, quarantine.csv, ingest.json (see cxr/dataset/manifest.py). Run it with

    python -m tasks.ingest
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from cxr.common.cli import run_step
from cxr.common.errors import DataError, ParamsError

if TYPE_CHECKING:
    from pathlib import Path

    from cxr.common.params import IngestParams, Paths
    from cxr.dataset.deduplicate import Duplicate, Sorted
    from cxr.dataset.ingest import RawFile, Refused, Taken

log = logging.getLogger("cxr.ingest")


def ingest(params: IngestParams, paths: Paths) -> None:
    """Merge the sources into `paths.raw`.

    Raises:
        SourceError: a source cannot be fetched or holds no images of its layout.
        DataError: kept + quarantined + duplicates is not the number of files that came in.
    """
    from cxr.common.files import atomic_folder
    from cxr.dataset.deduplicate import sort_out

    files = _all_files(params, paths)
    with atomic_folder(paths.raw) as raw:
        taken, refused = _take_in(files, params)
        result = sort_out(
            taken, same_image=params.duplicate_correlation, near_duplicate=params.near_duplicate_correlation
        )
        refused += result.refused
        counts = _account(files, refused, result)
        _pack(result.kept, raw / "images", params)
        _write(raw, result, refused, counts, _origin(params))
    _log_summary(counts, refused, result)


def _all_files(params: IngestParams, paths: Paths) -> list[RawFile]:
    from cxr.dataset.ingest import list_files
    from cxr.dataset.sources import Sample, fetch

    names = [source.name for source in params.sources]
    if len(set(names)) < len(names):
        raise ParamsError(f"ingest.sources: each source needs a name of its own, got {', '.join(names)}")
    sample = Sample(patients_per_class=params.sample_patients_per_class, seed=params.sample_seed)
    files = []
    for source in params.sources:
        fetched = fetch(source.location, downloads=paths.downloads, sample=sample, sha256=source.sha256)
        files += list_files(source.name, source.layout, fetched.folder, all_of_it=fetched.is_archive)
    return files


def _take_in(files: list[RawFile], params: IngestParams) -> tuple[list[Taken], list[Refused]]:
    from tqdm import tqdm

    from cxr.dataset.ingest import Taken, take_in

    taken, refused = [], []
    results = take_in(files, max_pixels=params.max_pixels, workers=params.workers)
    for result in tqdm(results, total=len(files), desc="ingest", unit="image", disable=None):
        if isinstance(result, Taken):
            taken.append(result)
        else:
            refused.append(result)
    return taken, refused


def _pack(kept: list[Taken], folder: Path, params: IngestParams) -> None:
    from tqdm import tqdm

    from cxr.dataset.ingest import read_again
    from cxr.dataset.shards import write_shards

    images = {_image_path(image): image for image in kept}
    sizes = {path: image.image.bytes for path, image in images.items()}

    def read(path: str) -> bytes:
        return read_again(images[path], max_pixels=params.max_pixels)

    with tqdm(total=len(images), desc="pack", unit="image", disable=None) as progress:
        for packed in write_shards(folder, sizes, read, workers=params.workers or os.cpu_count() or 1):
            progress.update(packed)


def _image_path(image: Taken) -> str:
    return f"images/{image.source}/{image.path}"


def _account(files: list[RawFile], refused: list[Refused], result: Sorted) -> dict[str, dict[str, int]]:
    """Count per source, and check that each file ended in exactly one place."""
    counted = {
        "total": Counter(file.source for file in files),
        "kept": Counter(image.source for image in result.kept),
        "quarantined": Counter(row.source for row in refused),
        "duplicates": Counter(row.image.source for row in result.duplicates),
    }
    counts = {}
    for source in counted["total"]:
        count = {name: counter[source] for name, counter in counted.items()}
        if count["kept"] + count["quarantined"] + count["duplicates"] != count["total"]:
            raise DataError(f"source {source}: {count} does not add up; this is a fault of ingest, please report it")
        counts[source] = count
    return counts


def _origin(params: IngestParams) -> dict[str, Any]:
    """Return what the data card says of where images come from: generated or not, and how each source is laid out."""
    return {
        "synthetic": any(source.location == "sample" for source in params.sources),
        "layouts": {source.name: source.layout for source in params.sources},
    }


def _write(
    raw: Path, result: Sorted, refused: list[Refused], counts: dict[str, dict[str, int]], origin: dict[str, Any]
) -> None:
    import pandas as pd

    from cxr.common.classes import LABELS
    from cxr.common.files import sha256_of, write_json
    from cxr.dataset.manifest import MANIFEST_COLUMNS, STATISTICS_COLUMNS, write_table

    def write_csv(name: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
        pd.DataFrame(rows, columns=columns).to_csv(raw / name, index=False, lineterminator="\n")

    manifest = pd.DataFrame([_manifest_row(image, result) for image in result.kept], columns=list(MANIFEST_COLUMNS))
    write_table(manifest, MANIFEST_COLUMNS, raw / "manifest.parquet")
    statistics = pd.DataFrame([_statistics_row(image) for image in result.kept], columns=list(STATISTICS_COLUMNS))
    write_table(statistics, STATISTICS_COLUMNS, raw / "statistics.parquet")
    write_csv(
        "duplicates.csv",
        ["path", "source", "sha256", "kind", "kept_image_id", "correlation"],
        [_duplicate_row(row) for row in result.duplicates],
    )
    write_csv(
        "near_duplicates.csv",
        ["image_id_a", "image_id_b", "correlation"],
        [(one, other, f"{correlation:.6f}") for one, other, correlation in result.near_duplicates],
    )
    write_csv(
        "quarantine.csv",
        ["path", "source", "reason", "detail"],
        sorted((row.path, row.source, row.refusal.reason, row.refusal.detail) for row in refused),
    )
    classes = Counter(image.placement.label for image in result.kept)
    totals = {name: sum(count[name] for count in counts.values()) for name in next(iter(counts.values()))}
    write_json(
        raw / "ingest.json",
        {
            **totals,
            "sources": counts,
            **origin,
            "classes": {label: classes[label] for label in LABELS},
            "manifest_sha256": sha256_of(raw / "manifest.parquet"),
        },
    )


def _duplicate_row(row: Duplicate) -> tuple[str, ...]:
    image = row.image
    return image.path, image.source, image.image.sha256, row.kind, row.kept.image_id, f"{row.correlation:.6f}"


def _manifest_row(image: Taken, result: Sorted) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "source": image.source,
        "official_split": image.placement.official_split,
        "path": _image_path(image),
        "label": image.placement.label,
        "patient_id": result.patients[image.patient_id],
        "sha256": image.image.sha256,
        "phash": f"{image.image.phash:016x}",
        "width": image.image.width,
        "height": image.image.height,
        "mode": image.image.mode,
        "bytes": image.image.bytes,
    }


def _statistics_row(image: Taken) -> dict[str, Any]:
    described = image.image
    return {
        "image_id": image.image_id,
        "grey_mean": described.grey_mean,
        "grey_std": described.grey_std,
        "grey_p01": described.grey_p01,
        "grey_p99": described.grey_p99,
        "saturated_share": described.saturated_share,
    }


def _log_summary(counts: dict[str, dict[str, int]], refused: list[Refused], result: Sorted) -> None:
    columns = ("total", "kept", "quarantined", "duplicates")
    lines = [f"{'source':<12}" + "".join(f"{name:>13}" for name in columns)]
    lines += [f"{source:<12}" + "".join(f"{count[name]:>13,}" for name in columns) for source, count in counts.items()]
    log.info("\n".join(lines))
    labels = Counter(image.placement.label for image in result.kept)
    log.info("kept: %s", ", ".join(f"{count:,} {label}" for label, count in sorted(labels.items())))
    reasons = Counter(row.refusal.reason for row in refused)
    if reasons:
        log.info("quarantined: %s", ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items())))
    log.info("pairs of kept images that look alike: %s", f"{len(result.near_duplicates):,}")


if __name__ == "__main__":
    run_step(ingest)
