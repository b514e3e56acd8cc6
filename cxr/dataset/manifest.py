"""The manifest, `data/raw/manifest.parquet`: one row for each image that ingest kept.

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
                       manifest's SHA-256
"""

import hashlib
from pathlib import Path

import pandas as pd

from cxr.common.errors import DataError

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


def write_table(table: pd.DataFrame, columns: dict[str, str], path: Path) -> None:
    """Write the columns `columns` of `table` as Parquet, in their order and with their dtypes."""
    table[list(columns)].astype(columns).to_parquet(path, index=False)


def read_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Read a Parquet table and check that it has `columns`.

    Raises:
        DataError: the file or one of its columns is missing.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; run `./run dvc repro ingest`")
    table = pd.read_parquet(path)
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; run `./run dvc repro --force ingest`")
    return table[list(columns)]


def read_manifest(raw: Path) -> pd.DataFrame:
    """Read the manifest in the folder `raw` (see MANIFEST_COLUMNS)."""
    return read_table(raw / "manifest.parquet", MANIFEST_COLUMNS)


def read_splits(folder: Path) -> pd.DataFrame:
    """Read the assignment of images to splits: `image_id, split, fold, label, patient_id`, one row per image.

    Raises:
        DataError: the file is missing.
    """
    path = folder / "splits.csv"
    if not path.is_file():
        raise DataError(f"{path} is missing; run `./run dvc repro split`")
    return pd.read_csv(path, dtype={"image_id": "str", "split": "str", "label": "str", "patient_id": "str"})


def sha256_of_test_set(table: pd.DataFrame) -> str:
    """Return the SHA-256 of the lines `image_id,label` of the test set, sorted by image.

    Equal means the same test set: the same images with the same labels.

    Args:
        table: columns image_id, split, label, as in splits.csv and predictions.csv.
    """
    test = table[table["split"] == "test"].sort_values("image_id")
    lines = [f"{image_id},{label}" for image_id, label in zip(test["image_id"], test["label"], strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
