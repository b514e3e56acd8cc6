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
    from torch import nn

    from cxr.bundle import ModelSpec

DISCLAIMER = "Research software, not for clinical use."


@dataclass(frozen=True)
class Answer:
    """What the model says of one file: `probabilities` by class and whether to `refer` it, or an `error` and none."""

    path: str
    probabilities: dict[str, float]
    refer: bool | None = None
    error: str | None = None

    @property
    def predicted_class(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def to_json(self, version: str) -> str:
        """Return one line of JSON."""
        said: dict[str, Any] = {"path": self.path}
        if self.error is None:
            said |= {
                "predicted_class": self.predicted_class,
                "probabilities": self.probabilities,
                "refer": self.refer,
            }
        else:
            said["error"] = self.error
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

    from cxr.bundle import read_bundle
    from cxr.inference import choose_device
    from cxr.registry import fetch_bundle, get_version

    version = get_version(model)
    network, spec = read_bundle(fetch_bundle(version))
    network.to(choose_device("auto"))
    width = max(len(str(file)) for file in files)
    failed = 0
    with tqdm(total=len(files), unit=" films", leave=False, disable=None if len(files) > 1 else True) as bar:
        if not as_json:
            bar.write(f"chest-xray-pneumonia, version {version.number}{_synthetic(spec)}\n{_heading(spec, width)}")
        for answer in _answers(files, network, spec):
            failed += answer.error is not None
            bar.write(answer.to_json(version.number) if as_json else _row(answer, spec, width))
            bar.update()
    if not as_json:
        print(DISCLAIMER)
    if failed:
        raise ImageError(
            f"{failed} of {len(files)} files could not be read; the lines above say why", reason="not an image"
        )


def _answers(files: list[Path], network: nn.Module, spec: ModelSpec) -> Iterator[Answer]:
    """Yield an answer a file, in order; a batch of films is in memory at a time."""
    import numpy as np

    from cxr.inference import BATCH_SIZE, classify, referred

    for start in range(0, len(files), BATCH_SIZE):
        batch = [(file, *_prepared(file, spec)) for file in files[start : start + BATCH_SIZE]]
        images = [image for _, image, _ in batch if image is not None]
        probabilities = classify(network, spec, np.stack(images)) if images else np.zeros((0, 0))
        answers = iter(zip(probabilities.tolist(), referred(probabilities, spec) if images else [], strict=True))
        for file, image, error in batch:
            if image is None:
                yield Answer(str(file), {}, error=error)
            else:
                shares, refer = next(answers)
                yield Answer(str(file), dict(zip(spec.classes, shares, strict=True)), refer)


def _prepared(file: Path, spec: ModelSpec) -> tuple[NDArray[np.uint8] | None, str | None]:
    """Return the film as the model takes it, or why it cannot be read."""
    from cxr.images import read_film

    try:
        return read_film(file, spec.preprocessing), None
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


def _row(answer: Answer, spec: ModelSpec, width: int) -> str:
    if answer.error is not None:
        return f"{answer.path:<{width}}  error: {answer.error}"
    told = [f"{answer.probabilities[name]:>{len(name)}.3f}" for name in spec.classes]
    refer = {True: "yes", False: "no", None: "-"}[answer.refer]
    return "  ".join([f"{answer.path:<{width}}", f"{answer.predicted_class:<{_class_width(spec)}}", *told, refer])


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
