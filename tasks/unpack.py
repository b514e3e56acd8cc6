"""Unpack the kept images from the shards of data/raw to a folder of files.

Reads   data/raw (manifest and packed images), and with --split data/split
Writes  FOLDER/images/<source>/<path in its set>, after checking each image's SHA-256; prints the path of each

    ./run unpack data/unpacked                           all images
    ./run unpack data/unpacked --first 1                 the first image of the manifest
    ./run unpack data/unpacked --split test --labels     the test images; after each path a tab and the true label
    ./run unpack data/unpacked kermany-0123...           the images with these image_ids
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from cxr.common.cli import answer_help, command_parser, number_within, run_command


def command_line() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("folder", type=Path)
    parser.add_argument("image_ids", nargs="*", metavar="IMAGE_ID")
    parser.add_argument("--first", type=number_within(int, 0, 1_000_000_000), metavar="N", help="at most N images")
    parser.add_argument("--split", choices=("train", "validation", "test"), help="only images of this split")
    parser.add_argument("--labels", action="store_true", help="print the true label after each path")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

import pandas as pd
from tqdm import tqdm

from cxr.common.errors import DataError
from cxr.common.params import read_params
from cxr.dataset.manifest import read_manifest, read_split
from cxr.dataset.shards import Shards


def unpack(images: pd.DataFrame, raw: Path, folder: Path, *, labels: bool = False) -> None:
    """Write the images, rows of the manifest in `raw`, below `folder`; existing files are replaced.

    Prints the path of each, and with `labels` a tab and its true label.

    Raises:
        DataError: an image is missing, its shard is damaged, or its SHA-256 is not that of the manifest.
    """
    shards = Shards(raw / "images")
    rows = zip(images["path"], images["sha256"], images["label"], strict=True)
    for path, sha256, label in tqdm(rows, total=len(images), desc="unpack", unit="image", disable=None):
        target = folder / path
        if not target.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{raw}: the image {path} is outside {folder}; run `./run dvc repro --force ingest`")
        data = shards.read(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{path} does not have the SHA-256 of the manifest; run `./run dvc repro --force ingest`")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        print(f"{target}\t{label}" if labels else target)


def _chosen(manifest: pd.DataFrame, image_ids: list[str]) -> pd.DataFrame:
    unknown = sorted(set(image_ids) - set(manifest["image_id"]))
    if unknown:
        raise DataError(f"the manifest has no image {', '.join(unknown)}; see its column image_id")
    return manifest[manifest["image_id"].isin(image_ids)]


def main() -> None:
    """Read the command line and unpack the images it names."""
    arguments = command_line().parse_args()
    paths = read_params(arguments.params).paths
    raw = paths.raw
    if arguments.folder.resolve().is_relative_to(raw.resolve()):
        raise DataError(f"{arguments.folder} is inside {raw}, which DVC tracks; name another folder")
    manifest = read_manifest(raw)
    if arguments.image_ids:
        manifest = _chosen(manifest, arguments.image_ids)
    if arguments.split:
        wanted = read_split(paths.split).part(arguments.split)["image_id"]
        manifest = manifest[manifest["image_id"].isin(wanted)]
    unpack(manifest.iloc[: arguments.first], raw, arguments.folder, labels=arguments.labels)


if __name__ == "__main__":
    run_command(main)
