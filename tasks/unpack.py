"""Unpack the kept images for people to look at: from the shards of data/raw to a tree of files.

Reads   data/raw (manifest and packed images)
Writes  FOLDER/images/<source>/<as in its set>, every image checked against its SHA-256; prints the path of each

    python -m tasks.unpack data/unpacked                    all images
    python -m tasks.unpack data/unpacked --first 1          the first of the manifest
    python -m tasks.unpack data/unpacked kermany-0123...    those with these image_ids
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def main() -> None:
    """Unpack what the arguments name."""
    arguments = _arguments()

    from cxr.common.params import read_params
    from cxr.dataset.manifest import read_manifest

    raw = read_params(arguments.params).paths.raw
    if arguments.folder.resolve().is_relative_to(raw.resolve()):
        raise DataError(f"{arguments.folder} lies in {raw}, which DVC tracks as it is; name another folder")
    manifest = read_manifest(raw)
    if arguments.image_ids:
        manifest = _chosen(manifest, arguments.image_ids)
    unpack(manifest.iloc[: arguments.first], raw, arguments.folder)


def unpack(images: pd.DataFrame, raw: Path, folder: Path) -> None:
    """Write the images, rows of the manifest in `raw`, below `folder`; an image that is there already is written anew.

    Raises:
        DataError: an image is missing, its shard is damaged, or it is not the one the manifest describes.
    """
    import hashlib

    from tqdm import tqdm

    from cxr.dataset.shards import Shards

    shards = Shards(raw / "images")
    rows = zip(images["path"], images["sha256"], strict=True)
    for path, sha256 in tqdm(rows, total=len(images), desc="unpack", unit="image", disable=None):
        target = folder / path
        if not target.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{raw}: the image {path} would leave {folder}; run `dvc repro --force ingest`")
        data = shards.read(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{path} is not the image of the manifest; run `dvc repro --force ingest`")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        print(target)


def _chosen(manifest: pd.DataFrame, image_ids: list[str]) -> pd.DataFrame:
    unknown = sorted(set(image_ids) - set(manifest["image_id"]))
    if unknown:
        raise DataError(f"the manifest has no image {', '.join(unknown)}; image_ids stand in its column image_id")
    return manifest[manifest["image_id"].isin(image_ids)]


def _arguments() -> argparse.Namespace:
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("folder", type=Path)
    parser.add_argument("image_ids", nargs="*", metavar="IMAGE_ID")
    parser.add_argument("--first", type=int, metavar="N", help="no more than N images")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
