"""Export the labels that readers gave in the web app, as a folder that ingest and `./run external` take.

    ./run feedback --images FOLDER --output readers
    ./run external --data readers

Reads   paths.feedback, the table that the web app writes: digests of images, and what readers said; and the images in
        --images, in any depth, which it finds by their SHA-256. Names do not matter
Writes  --output: the images, named by their digest, and labels.csv; all or nothing. It must not exist
Prints  how many images were found and how often readers agreed

An image counts once, by its last feedback. Such a set is what readers cared to label, not a sample of all images:
its scores say how the model does on those. DICOM images are copied with their tags, so the folder holds patients' data
if --images does.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from cxr.common.cli import answer_help, command_parser, run_command


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--images", metavar="FOLDER", type=Path, required=True, help="where the images are")
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="folder to write")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

import csv
import shutil

from cxr.common.errors import ParamsError, SourceError
from cxr.common.files import atomic_folder, sha256_of
from cxr.common.params import read_params
from cxr.inference.feedback import Feedback, last_of_each_image, read_feedback


def feedback(table: Path, images: Path, output: Path) -> int:
    """Write the folder; return the number of its images.

    Raises:
        ParamsError: the table is missing, empty or damaged.
        SourceError: none of the images in it is found.
    """
    said = last_of_each_image(read_feedback(table))
    if not said:
        raise ParamsError(f"{table} has no row: no reader has agreed with or corrected an answer in the web app")
    found = _found(images, said)
    if not found:
        raise SourceError(f"{images} has none of the {len(said)} images that readers labelled; name their folder")
    with atomic_folder(output) as partial:
        rows = [(_copy(path, sha256, partial), said[sha256].label) for sha256, path in sorted(found.items())]
        with (partial / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
    agreed = sum(said[sha256].agrees for sha256 in found)
    print(
        f"{len(found)} of {len(said)} labelled images found and written to {output}; readers agreed with "
        f"{agreed} answers and corrected {len(found) - agreed}"
    )
    return len(found)


def _found(images: Path, said: dict[str, Feedback]) -> dict[str, Path]:
    """Return the file of each labelled image that is found, by digest."""
    if not images.is_dir():
        raise SourceError(f"{images} is not a folder; name the one that holds the images")
    files = sorted(path for path in images.rglob("*") if path.is_file())
    digests = ((sha256_of(path), path) for path in files)
    return {sha256: path for sha256, path in digests if sha256 in said}


def _copy(path: Path, sha256: str, folder: Path) -> str:
    name = f"{sha256[:32]}{path.suffix.lower()}"
    shutil.copyfile(path, folder / name)
    return name


def main() -> None:
    """Read the command line and export."""
    given = command_line().parse_args()
    if given.output.exists():
        raise ParamsError(f"{given.output} exists; remove it, or name another --output")
    feedback(read_params(given.params).paths.feedback, given.images, given.output)


if __name__ == "__main__":
    run_command(main)
