"""Classify chest X-rays with the champion.

    ./run predict image.jpeg folder/ ...
    ./run predict - < image.dcm
    ./run predict folder/ --overlay overlays/ --sr reports/

Reads   image files, and folders of them with their subfolders (jpg, jpeg, png, bmp, tif, tiff, dcm, dicom); `-` is one
        image from standard input
Prints  a table, in which an image with a warning has "no answer" for a class, then each warning with its images, and
        the count; as wide as the terminal, with colours there unless NO_COLOR is set. With --json one object a line:
        path, the fields of an answer (cxr/inference/answer.py), model_version, engine, refer_below (the threshold of
        `refer`), sha256 of the file, sop_instance_uid of a DICOM image. For a file that cannot be read, `error` stands
        in place of the answer. `refer` true: the model is not sure enough, or there is a warning, so a reader should
        see the image; null: the model has no threshold. `warning`: why the answer may mean nothing, else null
Writes  --overlay FOLDER: <image>.overlay.png, where the model looked
        --sr FOLDER: <image>.sr.dcm, a Structured Report for each image, which must be DICOM and name its study; with
        --overlay also <image>.overlay.dcm, a Secondary Capture, and <image>.heat.dcm, the values of its heat map as a
        Parametric Map. All hold the patient's tags of their image, as they belong to its study

Preprocessing, classes and calibration are those saved with the model. With --engine torch the answers are bit for bit
those of the evaluation. With --engine openvino the exported network answers, several times faster, within the bounds
that the version's tags name.

Exit codes  0 every image was answered; 2 the command line is wrong; 3 a folder has no images; 4 an image could not be
            read, or its report could not be made (all others were answered); 7 the model's files are damaged; 9 the
            registry has no such version or does not answer; 130 interrupted; 141 whoever reads the output has closed it
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cxr.common.cli import add_engine_argument, answer_help, command_parser, run_command

STANDARD_INPUT = Path("-")


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="image file, folder, or - (standard input)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--model", default="champion", help="alias or version number (%(default)s)")
    add_engine_argument(parser, "torch")
    parser.add_argument("--overlay", metavar="FOLDER", type=Path, help="write where the model looked")
    parser.add_argument("--sr", metavar="FOLDER", type=Path, help="write Structured Reports of DICOM images")
    return parser


_LOADING = "loading the model ..."

if __name__ == "__main__":
    answer_help(command_line())
    if sys.stderr.isatty():  # with torch what follows takes seconds
        print(_LOADING, end="\r", file=sys.stderr, flush=True)

from tqdm import tqdm

from cxr.common.engines import Engine, require_torch
from cxr.common.errors import ImageError, ParamsError
from cxr.common.notices import notice
from cxr.imaging.decode import max_file_bytes
from cxr.imaging.unattended import UNATTENDED_SECONDS
from cxr.inference.answer_table import Result, Style, Summary, Table
from cxr.inference.classifier import Classifier, load_classifier
from cxr.inference.decoding.decoders import Decoders
from cxr.inference.image_source import images_below
from cxr.inference.outputs import AnswerFiles
from cxr.inference.pipeline import AnsweredImage, ModelInput, PreparedImage, answered_batches, prepare_file
from cxr.registry.versions import MODEL, fetch_bundle, get_version


@dataclass(frozen=True)
class Image:
    """An image to read: its `path` as given, and the `name` of the files written for it."""

    path: Path
    name: str

    def __str__(self) -> str:
        return "standard input" if self.path == STANDARD_INPUT else str(self.path)


@dataclass(frozen=True)
class Kept:
    """What is kept of an image until it is answered: its `uid` ("" unless it is DICOM), and its bytes if needed.

    Files are made from the image as it is stored.
    """

    uid: str
    data: bytes | None


def predict(
    paths: list[Path], *, model: str, as_json: bool, engine: Engine, overlays: Path | None, reports: Path | None
) -> None:
    """Classify images and print each answer as soon as its batch is done.

    Raises:
        ImageError: at the end, when an image could not be read.
        SourceError: a folder has no images.
        ParamsError: two images would write one file, or a folder to write to lies among those that are read.
        RegistryError, WeightsError: there is no such version, or it is not as it was registered.
    """
    images = _images(paths, [folder for folder in (overlays, reports) if folder is not None])
    version = get_version(model)
    with Decoders(min(os.cpu_count() or 1, len(images)), seconds=UNATTENDED_SECONDS) as decoders:
        decoders.start()  # beside the loading of the model
        classifier = load_classifier(fetch_bundle(version), number=version.number, engine=engine)
        failed = _print_all(images, classifier, decoders, AnswerFiles(overlays, reports), as_json=as_json)
    if failed:
        raise ImageError(
            f"{failed} of {len(images)} files could not be read, or not be given a report; the lines above say why",
            reason="not an image",
        )


def _print_all(
    images: list[Image], classifier: Classifier, decoders: Decoders, files: AnswerFiles, *, as_json: bool
) -> int:
    """Print each answer as soon as its batch is done; return how many images had none."""
    style, failed = Style.of_output(), 0
    table, summary = Table(classifier.spec, [str(image.path) for image in images], style), Summary()
    with tqdm(total=len(images), unit=" images", leave=False, disable=None if len(images) > 1 else True) as bar:
        if sys.stderr.isatty():
            print(" " * len(_LOADING), end="\r", file=sys.stderr, flush=True)
        if not as_json:
            bar.write(f"{_title(classifier)}\n{table.heading()}")
        for result in _classified(images, classifier, decoders, files):
            failed += result.error is not None
            summary.add(result)
            bar.write(_json(result, classifier) if as_json else table.row(result))
            bar.update()
    if not as_json:
        print("\n".join([*summary.lines(style), notice(synthetic=classifier.spec.synthetic)]))
    return failed


def _json(result: Result, classifier: Classifier) -> str:
    """Return one line of JSON."""
    line: dict[str, Any] = {"path": result.path}
    if result.answer is not None:
        line |= result.answer.to_json()
    if result.error is not None:
        line["error"] = result.error
    facts = {
        "model_version": classifier.number,
        "engine": classifier.engine,
        "refer_below": classifier.spec.refer_below,
    }
    return json.dumps(line | facts | {"sha256": result.sha256, "sop_instance_uid": result.uid or None})


def _images(paths: list[Path], targets: list[Path]) -> list[Image]:
    """Return the images to read, after checking that no output overwrites another or lands among the inputs."""
    for folder, target in [(path, target) for path in paths if path.is_dir() for target in targets]:
        if target.resolve().is_relative_to(folder.resolve()):
            raise ParamsError(
                f"{target} lies in {folder}, where images are read: the next run would read what is written there as "
                "images; name a folder outside"
            )
    images = [Image(file, _name(file, path)) for path in paths for file in images_below(path)]
    of_name = {image.name: image.path for image in images}
    for image in images if targets else []:
        if of_name[image.name].resolve() != image.path.resolve():
            raise ParamsError(
                f"{image.path} and {of_name[image.name]} would write the same files; run the command once for each, "
                "with different folders"
            )
    if sum(image.path == STANDARD_INPUT for image in images) > 1:
        raise ParamsError("standard input holds one image; name - once")
    return images


def _name(file: Path, given: Path) -> str:
    """Return the path of an image below the folder that was given, or its name."""
    if file == STANDARD_INPUT:
        return "image"
    return file.name if file == given else file.relative_to(given).as_posix()


def _classified(
    images: list[Image], classifier: Classifier, decoders: Decoders, files: AnswerFiles
) -> Iterator[Result]:
    """Yield the result for each image, in order."""
    keeps_data = files.overlays is not None or files.reports is not None
    limit = max_file_bytes(classifier.spec.preprocessing.max_pixels) + 1  # one more, so that the excess is seen
    # Not in a thread, whose reading no signal ends: whoever gives no image would wait for ever.
    given = sys.stdin.buffer.read(limit) if any(image.path == STANDARD_INPUT for image in images) else b""
    read = partial(
        _prepared, classifier=classifier, decoders=decoders, standard_input=given, limit=limit, keeps_data=keeps_data
    )
    with closing(answered_batches(classifier, images, read, workers=decoders.count)) as batches:
        for batch in batches:
            for one in batch:
                yield _result(one, classifier, files)


def _prepared(
    image: Image,
    *,
    classifier: Classifier,
    decoders: Decoders,
    standard_input: bytes,
    limit: int,
    keeps_data: bool,
) -> PreparedImage[Image, Kept]:
    def read() -> bytes:
        if image.path == STANDARD_INPUT:
            return standard_input
        with image.path.open("rb") as file:
            return file.read(limit)

    def keep(data: bytes, decoded: ModelInput) -> Kept:
        uid = ""
        if decoded.format == "DICOM":
            (uid,) = decoders.tags(data, ["SOPInstanceUID"], name=str(image))
        return Kept(uid, data if keeps_data else None)

    return prepare_file(read, classifier, decode=decoders.model_input, key=image, name=str(image), keep=keep)


def _result(answered: AnsweredImage[Image, Kept], classifier: Classifier, files: AnswerFiles) -> Result:
    """Write the files that were asked for and return the result."""
    image, path = answered.image, str(answered.image.key.path)
    if answered.answer is None or image.pixels is None or image.kept is None:
        return Result(path, error=str(image.error), sha256=image.sha256)
    result = Result(path, answered.answer, sha256=image.sha256, uid=image.kept.uid)
    if image.kept.data is None:
        return result
    try:
        opened = classifier.open(image.kept.data, name=str(image.key))
        files.write(image.key.name, opened, image.pixels, answered.answer, classifier)
    except ImageError as error:
        return replace(result, error=str(error))
    if files.reports is not None and opened.header.format != "DICOM":
        return replace(result, error=f"{image.key} is no DICOM image, so it has no study for a report (--sr)")
    return result


def _title(classifier: Classifier) -> str:
    title = f"{MODEL}, version {classifier.number}"
    if classifier.runtime:
        title += f", {classifier.engine}"
    return title


def main() -> None:
    """Read the command line and classify."""
    given = command_line().parse_args()
    if given.overlay:
        require_torch()
    predict(
        given.paths,
        model=given.model,
        as_json=given.json,
        engine=given.engine,
        overlays=given.overlay,
        reports=given.sr,
    )


if __name__ == "__main__":
    run_command(main)
