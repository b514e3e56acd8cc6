"""Evaluate the champion on the present test images, so that the gate can compare a challenger image by image.

Reads   the champion from the registry; data/split, data/raw, and data/images where it is preprocessed alike
Writes  evaluation artifacts of this test set into the store, under the champion's run and by tags of its version

Needed when the test set has changed: the gate compares on the same images only. A version is not evaluated where the
present test set holds images it was trained or tuned on, or other images of their patients, or where its training
images are not known.

Exit code 0: the champion is evaluated on this test set, now or already; or needs no evaluation, because there is no
champion yet or it was trained on the synthetic sample. 11: it cannot be evaluated on it fairly.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from cxr.common.cli import answer_help, command_parser, run_command


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--version", metavar="N", default="champion", help="another version (%(default)s)")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

import pandas as pd

from cxr.common.errors import PromotionHeldError
from cxr.common.files import write_json
from cxr.common.params import Params, Paths, read_params
from cxr.dataset.blocks import acquisition_blocks
from cxr.dataset.image_array import ImageArray, read_image_array
from cxr.dataset.manifest import Split, SplitRecord, read_divided_manifest, read_split
from cxr.dataset.prepare import write_image_array
from cxr.dataset.shards import Shards
from cxr.evaluation.predictions import Predictions, predict
from cxr.evaluation.result_files import METRICS_FILE, PREDICTIONS_FILE
from cxr.evaluation.summary import Settings, summarize
from cxr.models.bundle import ModelSpec, read_bundle
from cxr.registry import versions
from cxr.registry.champion import aliases
from cxr.registry.evaluation_store import evaluation_of, store_evaluation, training_images
from cxr.registry.test_set_looks import record_look
from cxr.registry.versions import Version

log = logging.getLogger("cxr.reevaluate")


def reevaluate(params: Params, *, which: str) -> None:
    """Evaluate a version on the test images of data/split and store the artifacts.

    Args:
        params: of the project.
        which: a number, an alias, or "champion": the one of the audit log, with which the gate compares.

    Raises:
        PromotionHeldError: the version has seen some of the images, or that is not known, or its classes differ.
        RegistryError: there is no such version.
        DataError: a file is missing; the images are not those of the split.
    """
    named = aliases.standing().recorded if which == versions.CHAMPION else which
    if not named:
        log.info("reevaluate: there is no champion yet, so there is nothing to compare with")
        return
    version, paths = versions.get_version(named), params.paths
    divided = read_split(paths.split)
    split, images = divided.record, _test_images(paths, divided)
    test_set = split["test_set_sha256"]
    if version.tags.get("synthetic") == "true" and not split["synthetic"]:
        log.info("reevaluate: version %s was trained on the synthetic sample, real images need none", version.number)
        return
    known = evaluation_of(version, test_set)
    if known.test_set_sha256 == test_set and not known.problems():
        log.info("reevaluate: version %s is evaluated on the test set %s already", version.number, test_set[:12])
        return
    _require_unseen(version, images)
    model, spec = read_bundle(versions.fetch_bundle(version))
    if spec.classes != tuple(split["classes"]):
        raise PromotionHeldError(
            f"version {version.number} has the classes {', '.join(spec.classes)} and the present split "
            f"{', '.join(split['classes'])}: there is nothing to compare; a person decides"
        )
    with tempfile.TemporaryDirectory() as scratch:
        found = predict(model, spec, _preprocessed(spec, images, params, Path(scratch)), images)
        _keep(version, found, spec, split, params)


def _test_images(paths: Paths, split: Split) -> pd.DataFrame:
    """Return the test rows of splits.csv with source, path and block of each image."""
    manifest = read_divided_manifest(paths.raw, split)
    manifest["block"] = acquisition_blocks(manifest, blocks=split.record["blocks"])
    described = manifest[["image_id", "source", "path", "block"]]
    return split.part("test").merge(described, on="image_id", validate="one_to_one")


def _require_unseen(version: Version, images: pd.DataFrame) -> None:
    seen = training_images(version)
    if seen is None:
        raise PromotionHeldError(
            f"the training images of version {version.number} are not known, so all {len(images)} test images may be "
            "among them; it was not evaluated on them. A person decides"
        )
    same = images["image_id"].isin(seen["image_id"])
    of_patients = images["patient_id"].isin(seen["patient_id"]) & ~same
    if same.any() or of_patients.any():
        raise PromotionHeldError(
            f"version {version.number} was trained or tuned on {int(same.sum())} of the {len(images)} test images, and "
            f"on other images of the patients of {int(of_patients.sum())} more; it was not evaluated on them. "
            "A person decides"
        )


def _preprocessed(spec: ModelSpec, images: pd.DataFrame, params: Params, scratch: Path) -> ImageArray:
    """Return the images as this model takes them: from data/images, or preprocessed here where that differs."""
    if (params.paths.images / "preprocessing.json").is_file():
        packed = read_image_array(params.paths.images)
        if packed.preprocessing == spec.preprocessing:
            return packed
    log.info("reevaluate: %d images are preprocessed as this model's training images were", len(images))
    write_image_array(
        scratch,
        Shards(params.paths.raw / "images"),
        image_ids=images["image_id"].tolist(),
        paths=images["path"].tolist(),
        preprocessing=spec.preprocessing,
        workers=params.preprocess.workers,
    )
    return read_image_array(scratch)


def _keep(version: Version, found: Predictions, spec: ModelSpec, split: SplitRecord, params: Params) -> None:
    asked = params.evaluate
    settings = Settings(asked.bootstrap_resamples, asked.seed, asked.calibration_bins)
    calibration = {"temperature": spec.temperature, "bias": list(spec.bias)}
    metrics = summarize(found, calibration=calibration, split=split, settings=settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_json(folder / METRICS_FILE, metrics)
        found.to_table("test").to_csv(folder / PREDICTIONS_FILE, index=False, lineterminator="\n")
        test_set = split["test_set_sha256"]
        tags = store_evaluation(version.run_id, sorted(folder.iterdir()), test_set_sha256=test_set)
        versions.tag_version(version.number, tags)
    record_look(test_set, spec.weights_sha256)
    log.info(
        "reevaluate: version %s on the test set %s: accuracy %.3f of %d images",
        version.number,
        test_set[:12],
        metrics["accuracy"],
        metrics["n_test"],
    )


def main() -> None:
    """Read the command line and evaluate."""
    given = command_line().parse_args()
    reevaluate(read_params(given.params), which=given.version)


if __name__ == "__main__":
    run_command(main)
