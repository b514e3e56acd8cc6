"""The manifest, `data/raw/manifest.parquet`: one row for each image that ingest kept; and its split, `data/split`.

Beside it in `data/raw`:

`images/`              the kept images byte for byte, packed in zip files (see cxr/dataset/shards.py); DICOM images
                       without their patient; `./run unpack FOLDER` unpacks them
`statistics.parquet`   grey-level statistics of each image, same rows
`duplicates.csv`       `source, path, sha256, kind, kept_image_id, correlation`: files left out as duplicates of a kept
                       image; `kind` is "exact" (same bytes) or "near" (nearly the same thumbnail)
`near_duplicates.csv`  `image_id_a, image_id_b, correlation`: pairs of kept images that must be in the same split
`quarantine.csv`       `source, path, reason, detail`: rejected files; `path` is relative to the set's folder
`corrections.csv`      `image_id, source, path, label_was, label, reviewer`: labels that labels-corrected.csv decided
`ingest.json`          counts of all files by result and source, layout and published size of each source, and the
                       SHA-256 of the manifest and of each table (readers: cxr/dataset/ingest_record.py)
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cxr.common.artifacts import damaged, read_csv, read_parquet, read_record

MANIFEST_FILE = "manifest.parquet"

MANIFEST_COLUMNS: dict[str, str] = {
    "image_id": "str",
    "source": "str",
    "official_split": "str",
    "path": "str",
    "label": "str",
    "patient_id": "str",
    "sha256": "str",
    "phash": "str",
    "width": "int32",
    "height": "int32",
    "mode": "str",
    "bytes": "int64",
    "acquisition_series": "str",
    "acquisition_number": "Int64",
}
"""Column -> dtype.

image_id        unique, stable between runs: source and the first 16 digits of the SHA-256
source          name of the source in params.yaml, "kermany", "covid19"
official_split  the part of its set: "train", "val", "test"; of a labelled folder any name
path            of the image in the shards of data/raw/images, and below the folder that tasks.unpack writes
label           one of cxr.common.classes.LABELS
patient_id      groups the images of one patient; holds source and part
phash           64-bit perceptual hash, 16 hexadecimal digits
width, height   pixels as stored
mode            "L" (8-bit grey), "L16" (16-bit grey), "RGB" or "RGBA"
bytes           size of the file
acquisition_number  grows with the time of acquisition within source and `acquisition_series`; both are missing where
                the raw set says nothing about the order
"""

STATISTICS_COLUMNS: dict[str, str] = {
    "image_id": "str",
    "grey_mean": "float32",
    "grey_std": "float32",
    "grey_p01": "float32",
    "grey_p99": "float32",
    "saturated_share": "float32",
}
"""Column -> dtype; grey levels on the 8-bit scale 0 to 255, shares 0 to 1."""

SPLITS_FILE, SPLIT_RECORD_FILE = "splits.csv", "split.json"
SPLITS_COLUMNS = {"image_id": "str", "split": "str", "fold": "int64", "label": "str", "patient_id": "str"}


def write_table(table: pd.DataFrame, columns: dict[str, str], path: Path) -> None:
    """Write the columns `columns` of `table` as Parquet, in their order and with their dtypes."""
    table[list(columns)].astype(columns).to_parquet(path, index=False)


def read_manifest(raw: Path, *names: str) -> pd.DataFrame:
    """Read columns of the manifest in the folder `raw`, by default all of MANIFEST_COLUMNS. Raises DataError."""
    columns = {name: MANIFEST_COLUMNS[name] for name in names or MANIFEST_COLUMNS}
    return read_parquet(raw / MANIFEST_FILE, columns, stage="ingest")


def sha256_of_test_set(table: pd.DataFrame) -> str:
    """Return the SHA-256 of the lines `image_id,label` of the test set, sorted by image.

    Equal means the same test set: the same images with the same labels.

    Args:
        table: columns image_id, split, label, as in splits.csv and predictions.csv.
    """
    test = table[table["split"] == "test"].sort_values("image_id")
    lines = [f"{image_id},{label}" for image_id, label in zip(test["image_id"], test["label"], strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class SplitRecord(TypedDict):
    """The keys of split.json that later stages read.

    blocks           parts of the order of acquisition by which reports slice
    counts, patients of each split; counts also of each class
    notes            sentences about images that the protocol could not use
    manifest_sha256  of the manifest that was split
    splits_sha256    of splits.csv
    test_set_sha256  see sha256_of_test_set
    """

    protocol: str
    task: str
    classes: list[str]
    blocks: int
    counts: dict[str, dict[str, int]]
    patients: dict[str, int]
    leakage: str
    notes: list[str]
    manifest_sha256: str
    splits_sha256: str
    test_set_sha256: str
    synthetic: bool


@dataclass(frozen=True)
class Split:
    """The record, and `image_id, split, fold, label, patient_id` with one row per image."""

    record: SplitRecord
    table: pd.DataFrame

    def part(self, *names: str) -> pd.DataFrame:
        """Return the rows of some splits."""
        return self.table[self.table["split"].isin(names)]


def read_split(folder: Path) -> Split:
    """Read data/split.

    Raises:
        DataError: a file is missing or damaged, or splits.csv is not the one that split.json describes.
    """
    record = read_record(folder / SPLIT_RECORD_FILE, SplitRecord, stage="split")
    table = read_csv(folder / SPLITS_FILE, SPLITS_COLUMNS, stage="split", sha256=record["splits_sha256"])
    if (found := sha256_of_test_set(table)) != record["test_set_sha256"]:
        raise damaged(
            folder / SPLIT_RECORD_FILE,
            "split",
            expected=f"the test set of {SPLITS_FILE}, {found[:12]}",
            found=record["test_set_sha256"][:12],
        )
    return Split(record, table)


def read_divided_manifest(raw: Path, split: Split) -> pd.DataFrame:
    """Read the manifest that was split. Raises DataError where it is missing, or another one than then."""
    digest = split.record["manifest_sha256"]
    return read_parquet(raw / MANIFEST_FILE, MANIFEST_COLUMNS, stage="ingest", sha256=digest)
