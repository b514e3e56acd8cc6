"""Classify chest films with the champion.

    python -m tasks.predict film.jpeg folder/ ...

Reads   image files, and folders of them (jpg, jpeg, png, bmp, tif, tiff, dcm, dicom) down to the last subfolder
Prints  a table; with --json one object a line: path, predicted_class, probabilities, refer, model_version, and for a
        file that cannot be read `error` in place of the prediction. `refer`: a reader should see the film, for the
        model is not sure enough of it; null where the model has no threshold for that

Preprocessing, classes and calibration are those saved with the model. Exit code 4 when a file could not be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.command import command_parser, run_command
from cxr.errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cxr.bundle import ModelSpec
    from cxr.classifier import Answer, Classifier

DISCLAIMER = "Research software, not for clinical use."


@dataclass(frozen=True)
class Told:
    """What is told of one file: an `answer`, or an `error` and none."""

    path: str
    answer: Answer | None = None
    error: str | None = None

    def to_json(self, version: str) -> str:
        """Return one line of JSON."""
        said: dict[str, Any] = {"path": self.path}
        if self.answer is None:
            said["error"] = self.error
        else:
            said |= {
                "predicted_class": self.answer.predicted_class,
                "probabilities": dict(self.answer.probabilities),
                "refer": self.answer.refer,
            }
        return json.dumps(said | {"model_version": version})


def predict(paths: list[Path], *, model: str, as_json: bool) -> None:
    """Classify files and print the answers as they come, a batch at a time.

    Raises:
        ImageError: at the end, when a file could not be read.
        SourceError: a folder has no images.
        RegistryError: there is no such version.
    """
    from cxr.locations import films_below

    files = [file for path in paths for file in films_below(path)]
    from tqdm import tqdm

    from cxr.classifier import load_classifier
    from cxr.registry import fetch_bundle, get_version

    version = get_version(model)
    classifier = load_classifier(fetch_bundle(version), number=version.number)
    spec, width = classifier.spec, max(len(str(file)) for file in files)
    failed = 0
    with tqdm(total=len(files), unit=" films", leave=False, disable=None if len(files) > 1 else True) as bar:
        if not as_json:
            bar.write(f"chest-xray-pneumonia, version {version.number}{_synthetic(spec)}\n{_heading(spec, width)}")
        for told in _classified(files, classifier):
            failed += told.answer is None
            bar.write(told.to_json(version.number) if as_json else _row(told, spec, width))
            bar.update()
    if not as_json:
        print(DISCLAIMER)
    if failed:
        raise ImageError(
            f"{failed} of {len(files)} files could not be read; the lines above say why", reason="not an image"
        )


def _classified(files: list[Path], classifier: Classifier) -> Iterator[Told]:
    """Yield what is told of each file, in order; a batch of films is in memory at a time."""
    import numpy as np

    from cxr.inference import BATCH_SIZE

    for start in range(0, len(files), BATCH_SIZE):
        batch = [(file, *_prepared(file, classifier)) for file in files[start : start + BATCH_SIZE]]
        images = [image for _, image, _ in batch if image is not None]
        answers = iter(classifier.answer(np.stack(images)) if images else ())
        for file, image, error in batch:
            yield Told(str(file), error=error) if image is None else Told(str(file), next(answers))


def _prepared(file: Path, classifier: Classifier) -> tuple[NDArray[np.uint8] | None, str | None]:
    """Return the film as the model takes it, or why it cannot be read."""
    try:
        return classifier.read(file.read_bytes(), name=str(file)), None
    except ImageError as error:
        return None, str(error)
    except FileNotFoundError:
        return None, f"{file} does not exist; check the path"
    except OSError as error:
        return None, f"{file} cannot be opened: {error.strerror}"


def _synthetic(spec: ModelSpec) -> str:
    return ", trained on synthetic films: its answers say nothing about patients" if spec.synthetic else ""


def _heading(spec: ModelSpec, width: int) -> str:
    return "  ".join([f"{'file':<{width}}", f"{'class':<{_class_width(spec)}}", *spec.classes, "refer"])


def _row(told: Told, spec: ModelSpec, width: int) -> str:
    if told.answer is None:
        return f"{told.path:<{width}}  error: {told.error}"
    shares = [f"{told.answer.probabilities[name]:>{len(name)}.3f}" for name in spec.classes]
    refer = {True: "yes", False: "no", None: "-"}[told.answer.refer]
    return "  ".join([f"{told.path:<{width}}", f"{told.answer.predicted_class:<{_class_width(spec)}}", *shares, refer])


def _class_width(spec: ModelSpec) -> int:
    return max(len(name) for name in spec.classes)


def main() -> None:
    """Read the command line and classify."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="image file or folder")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--model", default="champion", help="alias or version number (%(default)s)")
    given = parser.parse_args()
    predict(given.paths, model=given.model, as_json=given.json)


if __name__ == "__main__":
    run_command(main)
