"""How pictures that are no chest X-ray, and held-out chest X-rays, are answered: rejected, with a warning, or neither.

Run   ./run benchmarks.unfit_pictures PROJECT [--images 120] [--model champion]

PROJECT is a project after `make run`: its images, split and store are read, nothing is changed. The limits of a warning
come from its validation images only, so that its test images are held out from training and limits alike. The version
in the store has limits from validation and test images together.

rejected   an error with its reason, no answer
warned     an answer with a warning, referred to a reader
silent     an answer like any other

The other pictures are shipped with scikit-image, scikit-learn, matplotlib and pydicom, are drawn, or are --images
of the test images with a defect.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest
from tqdm import tqdm

from benchmarks.projects import enter_project
from benchmarks.unfit_sets import Files, changed_images, drawn_sets, shipped_sets
from cxr.common.errors import ImageError
from cxr.dataset.manifest import read_manifest, read_split
from cxr.dataset.shards import Shards
from cxr.imaging.decode import decode_grey
from cxr.inference.classifier import Classifier, load_classifier
from cxr.models.forward import BATCH_SIZE, calibrated, predict_with_features
from cxr.models.reference import MEASURES, Reference, image_measures, make_reference
from cxr.registry.versions import fetch_bundle, get_version

_TRAINING_IMAGES = 500


@dataclass(frozen=True)
class Rates:
    """The counts of a set of pictures."""

    rejected: int
    warned: int
    silent: int
    reasons: Counter[str]

    @property
    def pictures(self) -> int:
        """The number of pictures."""
        return self.rejected + self.warned + self.silent

    def __add__(self, other: Rates) -> Rates:
        return Rates(
            self.rejected + other.rejected,
            self.warned + other.warned,
            self.silent + other.silent,
            self.reasons + other.reasons,
        )


def main() -> None:
    """Read the command line, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--model", default="champion")
    given = parser.parse_args()
    enter_project(given.project)
    version = get_version(given.model)
    stored = load_classifier(fetch_bundle(version), number=version.number)
    images = _images(Path("data"))
    shards = Shards(Path("data/raw/images"))
    classifier = replace(stored, reference=_reference(stored, images[images["split"] == "validation"], shards))
    _print_real(classifier, images, shards)
    _print_others(classifier, _others(images[images["split"] == "test"], shards, given.images))


def _images(data: Path) -> pd.DataFrame:
    return read_manifest(data / "raw").merge(read_split(data / "split").table[["image_id", "split"]], on="image_id")


def _reference(classifier: Classifier, images: pd.DataFrame, shards: Shards) -> Reference:
    """Return the reference of these images only."""
    spec = classifier.spec
    read = [classifier.read(shards.read(path), name=path) for path in tqdm(images["path"], desc="validation")]
    pixels, logits, features = np.stack(read), [], []
    for start in tqdm(range(0, len(pixels), BATCH_SIZE), desc="reference"):
        answer = predict_with_features(
            classifier.network, pixels[start : start + BATCH_SIZE], mean=spec.mean, std=spec.std
        )
        logits.append(answer[0])
        features.append(answer[1])
    measured = image_measures(pixels)
    return make_reference(
        classes=spec.classes,
        images=np.column_stack([measured[name] for name in MEASURES if name in measured]),
        features=np.concatenate(features),
        probabilities=calibrated(np.concatenate(logits), spec),
        patients=images["patient_id"].to_numpy(),
    )


def _others(test: pd.DataFrame, shards: Shards, count: int) -> dict[str, Files]:
    drawn = test.sample(min(count, len(test)), random_state=0)
    images: dict[str, NDArray[np.uint8]] = {
        str(image): decode_grey(shards.read(path), name=path, max_pixels=50_000_000)
        for image, path in zip(drawn["image_id"], drawn["path"], strict=True)
    }
    return shipped_sets() | drawn_sets() | changed_images(images)


def _print_real(classifier: Classifier, images: pd.DataFrame, shards: Shards) -> None:
    print("| images | images | rejected, % (95%) | warned, % (95%) | why |\n|---|---|---|---|---|")
    held_out = images[images["split"].isin(("test", "unused"))]
    of_all = Rates(0, 0, 0, Counter())
    for (split, source, label), group in held_out.groupby(["split", "source", "label"]):
        rates = rates_of(classifier, _bytes_of(group, shards))
        _print_rates(f"{split}, {source}, {label}", rates)
        of_all = of_all + rates if split == "test" else of_all
    _print_rates("**all test images**", of_all)
    trained_on = images[images["split"] == "train"]
    drawn = trained_on.sample(min(_TRAINING_IMAGES, len(trained_on)), random_state=0)
    _print_rates("training images, for comparison", rates_of(classifier, _bytes_of(drawn, shards)))


def _bytes_of(images: pd.DataFrame, shards: Shards) -> Files:
    return {path: shards.read(path) for path in images["path"]}


def _print_rates(name: str, rates: Rates) -> None:
    rejected, warned = (_share(count, rates.pictures) for count in (rates.rejected, rates.warned))
    print(f"| {name} | {rates.pictures} | {rejected} | {warned} | {_reasons(rates)} |", flush=True)


def _print_others(classifier: Classifier, sets: dict[str, Files]) -> None:
    print("\n| pictures | pictures | rejected | warned | silent | why |\n|---|---|---|---|---|---|")
    for name, files in sets.items():
        rates = rates_of(classifier, files)
        print(
            f"| {name} | {rates.pictures} | {rates.rejected} | {rates.warned} | {rates.silent} | {_reasons(rates)} |",
            flush=True,
        )


def _reasons(rates: Rates) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in rates.reasons.most_common(4))


def rates_of(classifier: Classifier, files: Files) -> Rates:
    """Classify each file and count the outcomes."""
    reasons: Counter[str] = Counter()
    read = []
    for name, data in files.items():
        try:
            read.append(classifier.read(data, name=name))
        except ImageError as error:
            reasons[error.reason] += 1
    rejected = sum(reasons.values())
    answers = classifier.answer(np.stack(read)) if read else []
    warned = [answer.warning for answer in answers if answer.warning]
    reasons.update(warning.split(",")[0].split(":")[0][:38] for warning in warned)
    return Rates(rejected, len(warned), len(answers) - len(warned), reasons)


def _share(count: int, of: int) -> str:
    """Return a share with its exact interval (Clopper and Pearson 1934)."""
    interval = binomtest(count, of).proportion_ci(method="exact")
    return f"{100 * count / of:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


if __name__ == "__main__":
    main()
