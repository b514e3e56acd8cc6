"""Classify chest X-rays with the champion.

    ./run predict image.jpeg folder/ ...
    ./run predict - < image.dcm
    ./run predict folder/ --overlay overlays/ --sr reports/

Reads   image files, and folders of them with their subfolders (jpg, jpeg, png, bmp, tif, tiff, dcm, dicom); `-` is one
        image from standard input
Prints  a table, in which an image with a warning has "no answer" for a class; with --json one object a line: path, the
        fields of an answer (cxr/inference/answer.py) and model_version. For a file that cannot be read, `error` stands
        in place of the answer. `refer` true: the model is not sure enough, or there is a warning, so a reader should
        see the image; null: the model has no threshold. `warning`: why the answer may mean nothing, else null
Writes  --overlay FOLDER: <image>.overlay.png, where the model looked
        --sr FOLDER: <image>.sr.dcm, a Structured Report for each DICOM image; with --overlay also
        <image>.overlay.dcm, a Secondary Capture. Both hold the patient's tags of their image, as they belong to its
        study

Preprocessing, classes and calibration are those saved with the model. With --engine torch the answers are bit for bit
those of the evaluation. With --engine openvino the exported network answers, several times faster, within the bounds
that the version's tags name.

Exit codes  0 every image was answered; 2 the command line is wrong; 3 a folder has no images; 4 an image could not be
            read, or its report not be made (all others were answered); 7 the model's files are damaged; 9 the registry
            has no such version or does not answer; 130 interrupted
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
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


if __name__ == "__main__":
    answer_help(command_line())

from tqdm import tqdm

from cxr.common.engines import Engine, require_torch
from cxr.common.errors import ImageError, ParamsError
from cxr.common.notices import notice
from cxr.imaging.decode import EncodedImage, max_file_bytes
from cxr.inference.answer import NO_ANSWER, SHOWN_FIELDS, Answer, AnswerField
from cxr.inference.classifier import Classifier, load_classifier
from cxr.inference.image_source import images_below
from cxr.inference.outputs import AnswerFiles
from cxr.inference.pipeline import AnsweredImage, PreparedImage, answered_batches, prepare_file
from cxr.models.bundle import ModelSpec
from cxr.registry.versions import MODEL, fetch_bundle, get_version


@dataclass(frozen=True)
class Image:
    """An image to read: its `path` as given, and the `name` of the files written for it."""

    path: Path
    name: str

    def __str__(self) -> str:
        return "standard input" if self.path == STANDARD_INPUT else str(self.path)


@dataclass(frozen=True)
class Result:
    """The result for one image: an `answer`, an `error`, or both where its files could not be written."""

    path: str
    answer: Answer | None = None
    error: str | None = None

    def to_json(self, version: str) -> str:
        """Return one line of JSON."""
        line: dict[str, Any] = {"path": self.path}
        if self.answer is not None:
            line |= self.answer.to_json()
        if self.error is not None:
            line["error"] = self.error
        return json.dumps(line | {"model_version": version})


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
    classifier = load_classifier(fetch_bundle(version), number=version.number, engine=engine)
    table = Table(classifier.spec, max(len(str(image.path)) for image in images))
    failed = 0
    with tqdm(total=len(images), unit=" images", leave=False, disable=None if len(images) > 1 else True) as bar:
        if not as_json:
            bar.write(f"{_title(classifier)}\n{table.heading()}")
        for result in _classified(images, classifier, AnswerFiles(overlays, reports)):
            failed += result.error is not None
            bar.write(result.to_json(version.number) if as_json else table.row(result))
            bar.update()
    if not as_json:
        print(notice(synthetic=classifier.spec.synthetic))
    if failed:
        raise ImageError(
            f"{failed} of {len(images)} files could not be read; the lines above say why", reason="not an image"
        )


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


def _classified(images: list[Image], classifier: Classifier, files: AnswerFiles) -> Iterator[Result]:
    """Yield the result for each image, in order."""
    keep = None if files.overlays is None and files.reports is None else _opened
    read = partial(_prepared, classifier=classifier, keep=keep)
    workers = min(os.cpu_count() or 1, len(images))
    with closing(answered_batches(classifier, images, read, workers=workers)) as batches:
        for batch in batches:
            for one in batch:
                yield _result(one, classifier, files)


def _prepared(
    image: Image, *, classifier: Classifier, keep: Callable[[EncodedImage], EncodedImage] | None
) -> PreparedImage[Image, EncodedImage]:
    limit = max_file_bytes(classifier.spec.preprocessing.max_pixels) + 1  # one more, so that `prepare` sees the excess

    def read() -> bytes:
        if image.path == STANDARD_INPUT:
            return sys.stdin.buffer.read(limit)
        with image.path.open("rb") as file:
            return file.read(limit)

    return prepare_file(read, classifier, key=image, name=str(image), keep=keep)


def _opened(image: EncodedImage) -> EncodedImage:
    """Return what the files of an answer are made from: the image as it is stored, decoded again when it is drawn."""
    return image


def _result(answered: AnsweredImage[Image, EncodedImage], classifier: Classifier, files: AnswerFiles) -> Result:
    """Write the files that were asked for and return the result."""
    image, path = answered.image, str(answered.image.key.path)
    if answered.answer is None or image.pixels is None:
        return Result(path, error=str(image.error))
    if image.kept is None:
        return Result(path, answered.answer)
    try:
        files.write(image.key.name, image.kept, image.pixels, answered.answer, classifier)
    except ImageError as error:
        return Result(path, answered.answer, str(error))
    return Result(path, answered.answer)


def _title(classifier: Classifier) -> str:
    title = f"{MODEL}, version {classifier.number}"
    if classifier.runtime:
        title += f", {classifier.engine}"
    return title


class Table:
    """The results as lines for people: a column for each field of an answer; texts that may be missing stand below."""

    def __init__(self, spec: ModelSpec, width: int) -> None:
        """Lay out the table for a model; `width` is that of the column of paths, in characters."""
        self._width, self._classes = width, spec.classes
        self._notes = [one for one in SHOWN_FIELDS if one.type == "string" and one.nullable]
        self._cells = [one for one in SHOWN_FIELDS if one not in self._notes]

    def heading(self) -> str:
        """Return the first line."""
        return "  ".join([f"{'file':<{self._width}}", *(cell for one in self._cells for cell in self._heads(one))])

    def row(self, result: Result) -> str:
        """Return the line of an image, and below it what else is to be said."""
        if result.answer is None:
            return f"{result.path:<{self._width}}  error: {result.error}"
        answer = result.answer
        values = {one.name: getattr(answer, one.name) for one in self._cells} | {"predicted_class": answer.verdict}
        cells = [cell for one in self._cells for cell in self._values(one, values[one.name])]
        line = "  ".join([f"{result.path:<{self._width}}", *cells])
        notes = [(one.name, getattr(answer, one.name)) for one in self._notes] + [("error", result.error)]
        return line + "".join(f"\n{'':<{self._width}}  {name}: {text}" for name, text in notes if text)

    def _heads(self, one: AnswerField) -> list[str]:
        if one.prefix:
            return list(self._classes)
        return [f"{'class':<{self._class_width}}" if one.name == "predicted_class" else one.name]

    def _values(self, one: AnswerField, value: Any) -> list[str]:
        if one.prefix:
            return [f"{value[name]:>{len(name)}.3f}" for name in self._classes]
        if one.type == "string":
            return [f"{value:<{self._class_width}}"]
        shown = {True: "yes", False: "no", None: "-"}[value] if one.type == "boolean" else f"{value:.3f}"
        return [f"{shown:<{len(one.name)}}"]

    @property
    def _class_width(self) -> int:
        return max(len(name) for name in (*self._classes, NO_ANSWER))


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
