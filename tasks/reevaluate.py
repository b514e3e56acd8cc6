"""Measure the champion on the present test images, so that a challenger can be compared with it image by image.

Reads   the champion from the registry; data/split, data/raw, and data/images where it prepares images alike
Writes  evidence of this test set into the store, under the champion's run and by tags of its version

Needed when the test set has changed: the gate compares on the same images alone. Images that the champion was trained
or tuned on are no test of it: where the present test set holds such images, or other images of their patients, or
where it is not known what the champion was trained on, nothing is measured.

Exit code 0: the champion has evidence of this test set, now or already; or needs none, because there is no champion
yet or it learnt from the synthetic sample. 11: it cannot be measured on it fairly.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import DataError, ImageError, PromotionHeldError

if TYPE_CHECKING:
    import pandas as pd

    from cxr.common.params import Params, Paths
    from cxr.dataset.image_array import ImageArray
    from cxr.evaluation.predictions import Predictions
    from cxr.models.bundle import ModelSpec
    from cxr.registry.versions import Version

log = logging.getLogger("cxr.reevaluate")


def reevaluate(params: Params, *, which: str) -> None:
    """Measure a version on the test images of data/split and keep the evidence.

    Raises:
        PromotionHeldError: the version has seen some of them, or nobody knows, or it tells other classes apart.
        RegistryError: there is no such version.
        DataError: a file is missing; the images are not those of the split.
    """
    from cxr.evaluation.predictions import predict_as_served
    from cxr.models.bundle import read_bundle
    from cxr.registry.evaluation_store import evaluation_of
    from cxr.registry.versions import CHAMPION, champion, fetch_bundle, get_version

    if which == CHAMPION and champion() is None:
        log.info("reevaluate: there is no champion yet, so there is nothing to compare with")
        return
    version, paths = get_version(which), params.paths
    split, images = _split(paths), _test_images(paths)
    test_set = str(split["test_set_sha256"])
    if version.tags.get("synthetic") == "true" and not split["synthetic"]:
        log.info("reevaluate: version %s learnt from the synthetic sample, no match for real images", version.number)
        return
    known = evaluation_of(version, test_set)
    if known.test_set_sha256 == test_set and not known.problems():
        log.info("reevaluate: version %s is measured on the test set %s already", version.number, test_set[:12])
        return
    _require_unseen(version, images)
    model, spec = read_bundle(fetch_bundle(version))
    if spec.classes != tuple(split["classes"]):
        raise PromotionHeldError(
            f"version {version.number} tells {', '.join(spec.classes)} apart and the present split "
            f"{', '.join(split['classes'])}: there is nothing to compare; a person decides"
        )
    with tempfile.TemporaryDirectory() as scratch:
        found = predict_as_served(model, spec, _prepared(spec, images, params, Path(scratch)), images)
        _keep(version, found, spec, split, params)


def _split(paths: Paths) -> dict[str, Any]:
    from cxr.common.files import read_json

    path = paths.split / "split.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; run `dvc repro split` to make it")
    return dict(read_json(path))


def _test_images(paths: Paths) -> pd.DataFrame:
    """Return the test rows of splits.csv with source and path of each image."""
    from cxr.dataset.manifest import read_manifest, read_splits

    table = read_splits(paths.split)
    test = table[table["split"] == "test"]
    manifest = read_manifest(paths.raw)[["image_id", "source", "path"]]
    images = test.merge(manifest, on="image_id", how="left", validate="one_to_one")
    if lost := int(images["path"].isna().sum()):
        raise DataError(f"{lost} test images of {paths.split} are not in {paths.raw}; run `dvc repro split`")
    return images


def _require_unseen(version: Version, images: pd.DataFrame) -> None:
    from cxr.registry.evaluation_store import training_images

    seen = training_images(version)
    if seen is None:
        raise PromotionHeldError(
            f"it is not known which images version {version.number} was trained on, so all {len(images)} test images may "
            "be among them; it was not measured on them. A person decides"
        )
    same = images["image_id"].isin(seen["image_id"])
    of_patients = images["patient_id"].isin(seen["patient_id"]) & ~same
    if same.any() or of_patients.any():
        raise PromotionHeldError(
            f"version {version.number} was trained or tuned on {int(same.sum())} of the {len(images)} test images, and "
            f"on other images of the patients of {int(of_patients.sum())} more; it was not measured on them. "
            "A person decides"
        )


def _prepared(spec: ModelSpec, images: pd.DataFrame, params: Params, scratch: Path) -> ImageArray:
    """Return the images as this model takes them: from data/images, or prepared again where that differs."""
    from cxr.dataset.image_array import read_image_array

    if (params.paths.images / "preprocessing.json").is_file():
        packed = read_image_array(params.paths.images)
        if packed.preprocessing == spec.preprocessing:
            return packed
    log.info("reevaluate: %d images are prepared again, as this model was trained on them", len(images))
    return _prepare_again(spec, images, params, scratch)


def _prepare_again(spec: ModelSpec, images: pd.DataFrame, params: Params, scratch: Path) -> ImageArray:
    import os
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from tqdm import tqdm

    from cxr.dataset.image_array import ImageArray
    from cxr.dataset.shards import Shards
    from cxr.imaging.decode import image_from_bytes

    names, size = images["path"].tolist(), spec.preprocessing.image_size_px
    shards = Shards(params.paths.raw / "images")
    pixels = np.lib.format.open_memmap(
        scratch / "images.npy", mode="w+", dtype=np.uint8, shape=(len(names), size, size)
    )

    def fill_row(row: int) -> None:
        pixels[row] = image_from_bytes(shards.read(names[row]), spec.preprocessing, name=names[row])

    workers = params.preprocess.workers or os.cpu_count() or 1
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(names), unit=" images", desc="prepare", disable=None) as bar,
    ):
        try:
            for _ in pool.map(fill_row, range(len(names))):
                bar.update()
        except ImageError as error:
            raise DataError(f"a test image cannot be prepared for this model: {error}") from error
    return ImageArray(pixels, images["image_id"].tolist(), spec.preprocessing)


def _keep(version: Version, found: Predictions, spec: ModelSpec, split: dict[str, Any], params: Params) -> None:
    from cxr.common.files import write_json
    from cxr.evaluation.calibration import measure_calibration
    from cxr.evaluation.summary import Settings, summarize
    from cxr.registry.evaluation_artifacts import METRICS_FILE, PREDICTIONS_FILE
    from cxr.registry.evaluation_store import store_evaluation
    from cxr.registry.versions import tag_version

    asked = params.evaluate
    settings = Settings(asked.bootstrap_resamples, asked.seed, asked.calibration_bins)
    errors = measure_calibration(found.labels, found.calibrated, bins=settings.bins).to_json()
    calibration = {"test": {"after": errors}, "temperature": spec.temperature, "bias": list(spec.bias)}
    metrics = summarize(found, calibration=calibration, split=split, settings=settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_json(folder / METRICS_FILE, metrics)
        found.to_table("test").to_csv(folder / PREDICTIONS_FILE, index=False, lineterminator="\n")
        test_set = str(split["test_set_sha256"])
        tag_version(
            version.number, store_evaluation(version.run_id, sorted(folder.iterdir()), test_set_sha256=test_set)
        )
    log.info(
        "reevaluate: version %s on the test set %s: accuracy %.3f, macro-F1 %.3f of %d images",
        version.number,
        test_set[:12],
        metrics["accuracy"],
        metrics["macro_f1"],
        metrics["n_test"],
    )


def main() -> None:
    """Read the command line and measure."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--version", metavar="N", default="champion", help="another version (%(default)s)")
    given = parser.parse_args()

    from cxr.common.params import read_params

    reevaluate(read_params(given.params), which=given.version)


if __name__ == "__main__":
    run_command(main)
