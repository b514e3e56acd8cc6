"""Read what ingest wrote beside the manifest: `ingest.json` and the tables of data/raw (see cxr/dataset/manifest.py).

`ingest.json` holds the digest of each table, so that a table that was cut off or edited is not read. A missing pair of
near-duplicates would let two pictures of one person into two splits.

Also the verdict of the gate on these files, `reports/validation.json`; reading it imports no Great Expectations.
"""

from pathlib import Path
from typing import NotRequired

import pandas as pd
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cxr.common.artifacts import existing, missing, read_csv, read_parquet, read_record
from cxr.common.errors import DataError
from cxr.common.files import sha256_of
from cxr.dataset.manifest import MANIFEST_COLUMNS, MANIFEST_FILE, STATISTICS_COLUMNS

STATISTICS_FILE, RECORD_FILE = "statistics.parquet", "ingest.json"
DUPLICATES_FILE, NEAR_DUPLICATES_FILE = "duplicates.csv", "near_duplicates.csv"
QUARANTINE_FILE, CORRECTIONS_FILE = "quarantine.csv", "corrections.csv"

TABLES: dict[str, tuple[str, ...]] = {
    DUPLICATES_FILE: ("source", "path", "sha256", "kind", "kept_image_id", "correlation"),
    NEAR_DUPLICATES_FILE: ("image_id_a", "image_id_b", "correlation"),
    QUARANTINE_FILE: ("source", "path", "reason", "detail"),
    CORRECTIONS_FILE: ("image_id", "source", "path", "label_was", "label", "reviewer"),
}
"""Name of each CSV file of data/raw -> its columns."""

STAGE = "ingest"


class Counts(TypedDict):
    """Files by result."""

    total: int
    kept: int
    quarantined: int
    duplicates: int


class IngestRecord(Counts):
    """The content of ingest.json.

    sources        counts of each source
    layouts, published   of each source: its layout, and the size of each part of the set as it is published
    classes        kept images of each class
    manifest_sha256, tables_sha256   digests of the files beside it
    corrections    see cxr.dataset.corrections.summary
    """

    sources: dict[str, Counts]
    synthetic: bool
    layouts: dict[str, str]
    published: dict[str, dict[str, int]]
    classes: dict[str, int]
    manifest_sha256: str
    tables_sha256: dict[str, str]
    corrections: NotRequired[dict[str, object]]


def read_ingest_record(raw: Path) -> IngestRecord:
    """Read ingest.json in the folder `raw`. Raises DataError."""
    return read_record(raw / RECORD_FILE, IngestRecord, stage=STAGE)


def read_recorded_manifest(raw: Path, record: IngestRecord, *, checked: bool = True) -> pd.DataFrame:
    """Read the manifest that `record` describes; without `checked` whatever its columns. Raises DataError."""
    columns = MANIFEST_COLUMNS if checked else None
    return read_parquet(raw / MANIFEST_FILE, columns, stage=STAGE, sha256=record["manifest_sha256"])


def read_statistics(raw: Path, record: IngestRecord) -> pd.DataFrame:
    """Read the grey-level statistics (see STATISTICS_COLUMNS). Raises DataError."""
    return read_parquet(
        raw / STATISTICS_FILE, STATISTICS_COLUMNS, stage=STAGE, sha256=_digest(raw, record, STATISTICS_FILE)
    )


def read_ingest_table(raw: Path, name: str, record: IngestRecord) -> pd.DataFrame:
    """Read one of `TABLES`; `correlation` is a number, all other columns are text. Raises DataError."""
    columns = {column: "float64" if column == "correlation" else "str" for column in TABLES[name]}
    return read_csv(raw / name, columns, stage=STAGE, sha256=_digest(raw, record, name))


def require_tables(raw: Path, record: IngestRecord) -> None:
    """Check that every CSV file of `raw` is there and as it was written. Raises DataError."""
    for name in TABLES:
        existing(raw / name, STAGE, sha256=_digest(raw, record, name))


def _digest(raw: Path, record: IngestRecord, name: str) -> str:
    if name not in record["tables_sha256"]:
        raise missing(raw / name, STAGE)
    return record["tables_sha256"][name]


class Verdict(TypedDict):
    """`passed` of the manifest with this digest, and each check with its result and its threshold."""

    passed: bool
    manifest_sha256: str
    expectations: list[dict[str, object]]


def require_passed(validation: Path, raw: Path) -> None:
    """Check that the manifest in `raw` passed the gate whose verdict is in the file `validation`.

    Raises:
        DataError: the verdict is missing or damaged, is not a pass, or is about another manifest.
    """
    verdict = read_record(validation, Verdict, stage="validate")
    if not verdict["passed"] or verdict["manifest_sha256"] != sha256_of(raw / MANIFEST_FILE):
        said = "about another manifest" if verdict["passed"] else "not a pass"
        raise DataError(f"{validation} is {said}; expected the verdict on {raw}; run `./run dvc repro validate`")
