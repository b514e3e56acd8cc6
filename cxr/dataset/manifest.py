"""The manifest: one row for each image that ingest kept, in `data/raw/manifest.parquet`.

Beside it in `data/raw`:

`images/`              the kept files, byte for byte as they came, packed in zips (see cxr/dataset/shards.py);
                      `python -m tasks.unpack FOLDER` makes a tree of them for people
`statistics.parquet`  grey-level statistics of each image, same rows
`duplicates.csv`      files left out because a kept image is the same picture
`near_duplicates.csv`      pairs of kept images so alike that a split must not part them
`quarantine.csv`      files left out, with the reason
`ingest.json`         the count of every file that came in, and how each source is laid out
"""

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
}
"""Column -> dtype.

image_id        unique, stable between runs: source and the first 16 digits of the SHA-256
source          name of the source in params.yaml, "kermany", "covid19"
official_split  the part of its own set the image came from: "train", "val", "test"
path            of the image in the shards of data/raw/images, and below the folder that tasks.unpack fills
label           one of cxr.common.classes.LABELS
patient_id      groups images of one person; holds source and part, since numbers restart there
phash           64-bit perceptual hash, 16 hexadecimal digits
width, height   pixels as stored
mode            "L" (8-bit grey), "L16" (16-bit grey), "RGB" or "RGBA"
bytes           size of the file
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
    """Write `table` as Parquet with exactly `columns`, in their order and dtypes."""
    table[list(columns)].astype(columns).to_parquet(path, index=False)


def read_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Read a Parquet table and check that it has `columns`.

    Raises:
        DataError: the file is missing, or a column is missing from it.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; run `dvc repro` to make it")
    table = pd.read_parquet(path)
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; run `dvc repro --force` to make it anew")
    return table[list(columns)]


def read_manifest(raw: Path) -> pd.DataFrame:
    """Read the manifest in the folder `raw` (see MANIFEST_COLUMNS)."""
    return read_table(raw / "manifest.parquet", MANIFEST_COLUMNS)


def read_splits(folder: Path) -> pd.DataFrame:
    """Read the assignment of images to splits: `image_id, split, fold, label, patient_id`, a row an image.

    Raises:
        DataError: the file is missing.
    """
    path = folder / "splits.csv"
    if not path.is_file():
        raise DataError(f"{path} is missing; run `dvc repro split` to make it")
    return pd.read_csv(path, dtype={"image_id": "str", "split": "str", "label": "str", "patient_id": "str"})
