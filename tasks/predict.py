"""Classify chest X-rays with the champion.

    python -m tasks.predict image.jpeg folder/ ...
    python -m tasks.predict - < image.dcm
    python -m tasks.predict folder/ --overlay looked/ --sr reports/

Reads   image files, and folders of them (jpg, jpeg, png, bmp, tif, tiff, dcm, dicom) down to the last subfolder; `-`
        is one image from standard input
Prints  a table; with --json one object a line: path, predicted_class, probabilities, refer, warning, model_version,
        and for a file that cannot be read `error` in place of the prediction. `refer`: a reader should see the image,
        for the model is not sure enough of it; null where the model has no threshold for that. `warning`: why the
        answer may mean nothing; null when all is well
Writes  --overlay FOLDER: <image>.overlay.png, where the model looked
        --sr FOLDER: <image>.sr.dcm, a Structured Report for each DICOM image; with --overlay also <image>.overlay.dcm, a
        Secondary Capture. Both hold the patient's tags of their image, for they belong to its study

Preprocessing, classes and calibration are those saved with the model. Answers are to the bit those of the evaluation;
with --fast they come from the exported network, several times sooner, within the bounds that the version's tags name.

Exit codes  0 every image was answered; 2 the command cannot be carried out as it is written; 3 a folder has no images;
            4 an image could not be read, or its report not be made (all others were answered); 7 the model's files are
            damaged; 9 the registry has no such version or does not answer; 130 interrupted
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import ImageError, ParamsError
from cxr.common.notices import notice

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from cxr.inference.classifier import Answer, Classifier
    from cxr.inference.outputs import AnswerFiles
    from cxr.models.bundle import ModelSpec

STANDARD_INPUT = Path("-")


@dataclass(frozen=True)
class Image:
    """An image to be read: `path` as it is told, `name` of the files that are written for it."""

    path: Path
    name: str


@dataclass(frozen=True)
class Prepared:
    """An image as it was read: an image, or an error and none; `dicom` holds the file where a report is asked for."""

    file: Image
    image: NDArray[np.uint8] | None = None
    dicom: bytes | None = None
    error: str | None = None


@dataclass(frozen=True)
class Told:
    """What is told of one image: an `answer`, an `error`, or both where its files could not be written."""

    path: str
    answer: Answer | None = None
    error: str | None = None

    def to_json(self, version: str) -> str:
        """Return one line of JSON."""
        said: dict[str, Any] = {"path": self.path}
        if self.answer is not None:
            said |= {
                "predicted_class": self.answer.predicted_class,
                "probabilities": dict(self.answer.probabilities),
                "refer": self.answer.refer,
                "warning": self.answer.warning,
            }
        if self.error is not None:
            said["error"] = self.error
        return json.dumps(said | {"model_version": version})


def predict(
    paths: list[Path], *, model: str, as_json: bool, fast: bool, overlays: Path | None, reports: Path | None
) -> None:
    """Classify images and print the answers as they come, a batch at a time.

    Raises:
        ImageError: at the end, when an image could not be read.
        SourceError: a folder has no images.
        ParamsError: two images would write one file, or a folder to write into lies among those that are read.
        RegistryError, WeightsError: there is no such version, or it is not as it was registered.
    """
    images = _images(paths, [folder for folder in (overlays, reports) if folder is not None])
    from tqdm import tqdm

    from cxr.inference.classifier import load_classifier
    from cxr.inference.outputs import AnswerFiles
    from cxr.registry.versions import fetch_bundle, get_version

    version = get_version(model)
    classifier = load_classifier(fetch_bundle(version), number=version.number, fast=fast)
    spec, width = classifier.spec, max(len(str(image.path)) for image in images)
    failed = 0
    with tqdm(total=len(images), unit=" images", leave=False, disable=None if len(images) > 1 else True) as bar:
        if not as_json:
            bar.write(f"{_title(classifier)}\n{_heading(spec, width)}")
        for told in _classified(images, classifier, AnswerFiles(overlays, reports)):
            failed += told.error is not None
            bar.write(told.to_json(version.number) if as_json else _row(told, spec, width))
            bar.update()
    if not as_json:
        print(notice(synthetic=spec.synthetic))
    if failed:
        raise ImageError(
            f"{failed} of {len(images)} files could not be read; the lines above say why", reason="not an image"
        )


def _images(paths: list[Path], targets: list[Path]) -> list[Image]:
    """Return the images to read; refuse what would write one file twice, or among the images."""
    from cxr.inference.image_source import images_below

    for folder, target in [(path, target) for path in paths if path.is_dir() for target in targets]:
        if target.resolve().is_relative_to(folder.resolve()):
            raise ParamsError(
                f"{target} lies in {folder}, where images are read: what is written there would be taken for images the "
                "next time; name a folder outside"
            )
    images = [Image(file, _name(file, path)) for path in paths for file in images_below(path)]
    of_name = {image.name: image.path for image in images}
    for image in images if targets else []:
        if of_name[image.name].resolve() != image.path.resolve():
            raise ParamsError(
                f"{image.path} and {of_name[image.name]} would write the same files; ask for them one after the other, "
                "with folders of their own"
            )
    if sum(image.path == STANDARD_INPUT for image in images) > 1:
        raise ParamsError("standard input holds one image; name - once")
    return images


def _name(file: Path, given: Path) -> str:
    """Return the way of an image below the folder that was given, or its name."""
    if file == STANDARD_INPUT:
        return "image"
    return file.name if file == given else file.relative_to(given).as_posix()


def _classified(images: list[Image], classifier: Classifier, files: AnswerFiles) -> Iterator[Told]:
    """Yield what is told of each image, in order; a few batches of images are in memory at a time."""
    import numpy as np

    from cxr.inference.prefetch import prepared_batches
    from cxr.models.forward import BATCH_SIZE

    prepare = partial(_prepared, classifier, files)
    with closing(
        prepared_batches(images, prepare, batch_size=BATCH_SIZE, workers=min(os.cpu_count() or 1, len(images)))
    ) as batches:
        for batch in batches:
            pixels = [one.image for one in batch if one.image is not None]
            answers = iter(classifier.answer(np.stack(pixels)) if pixels else ())
            for one in batch:
                if one.image is None:
                    yield Told(str(one.file.path), error=one.error)
                else:
                    yield _written(one, one.image, next(answers), classifier, files)


def _prepared(classifier: Classifier, files: AnswerFiles, image: Image) -> Prepared:
    """Return the image as the model takes it, or why it cannot be read."""
    from cxr.imaging.decode import is_dicom

    shown = "standard input" if image.path == STANDARD_INPUT else str(image.path)
    try:
        data = _bytes_of(image.path, shown, classifier.spec.preprocessing.max_pixels)
        pixels = classifier.read(data, name=shown)
        return Prepared(image, pixels, data if files.reports is not None and is_dicom(data) else None)
    except ImageError as error:
        return Prepared(image, error=str(error))
    except FileNotFoundError:
        return Prepared(image, error=f"{shown} does not exist; check the path")
    except OSError as error:
        return Prepared(image, error=f"{shown} cannot be opened: {error.strerror}")


def _bytes_of(path: Path, shown: str, max_pixels: int) -> bytes:
    """Return a whole file, never more of it than an image that may be read can have."""
    from cxr.imaging.decode import max_file_bytes

    limit = max_file_bytes(max_pixels)
    if path == STANDARD_INPUT:
        data = sys.stdin.buffer.read(limit + 1)
    else:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise ImageError(
            f"{shown} has more than {limit} bytes, the most that an image of {max_pixels} pixels can have; export it "
            "smaller",
            reason="larger than the pixel limit",
        )
    return data


def _written(
    one: Prepared, image: NDArray[np.uint8], answer: Answer, classifier: Classifier, files: AnswerFiles
) -> Told:
    """Write the files that are asked for and return what is told."""
    try:
        files.write(one.file.name, image, answer, classifier, dicom=one.dicom)
    except ImageError as error:
        return Told(str(one.file.path), answer, str(error))
    return Told(str(one.file.path), answer)


def _title(classifier: Classifier) -> str:
    said = f"chest-xray-pneumonia, version {classifier.number}"
    if classifier.runtime:
        said += f", {classifier.engine}"
    return said


def _heading(spec: ModelSpec, width: int) -> str:
    return "  ".join([f"{'file':<{width}}", f"{'class':<{_class_width(spec)}}", *spec.classes, "refer"])


def _row(told: Told, spec: ModelSpec, width: int) -> str:
    if told.answer is None:
        return f"{told.path:<{width}}  error: {told.error}"
    shares = [f"{told.answer.probabilities[name]:>{len(name)}.3f}" for name in spec.classes]
    refer = {True: "yes", False: "no", None: "-"}[told.answer.refer]
    said = "  ".join([f"{told.path:<{width}}", f"{told.answer.predicted_class:<{_class_width(spec)}}", *shares, refer])
    notes = [("warning", told.answer.warning), ("error", told.error)]
    return said + "".join(f"\n{'':<{width}}  {kind}: {text}" for kind, text in notes if text)


def _class_width(spec: ModelSpec) -> int:
    return max(len(name) for name in spec.classes)


def main() -> None:
    """Read the command line and classify."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="image file, folder, or - (standard input)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--model", default="champion", help="alias or version number (%(default)s)")
    parser.add_argument("--fast", action="store_true", help="by the exported network, within its bounds of torch")
    parser.add_argument("--overlay", metavar="FOLDER", type=Path, help="write where the model looked")
    parser.add_argument("--sr", metavar="FOLDER", type=Path, help="write Structured Reports of DICOM images")
    given = parser.parse_args()
    predict(
        given.paths,
        model=given.model,
        as_json=given.json,
        fast=given.fast,
        overlays=given.overlay,
        reports=given.sr,
    )


if __name__ == "__main__":
    run_command(main)
