"""Register the trained and measured model as the challenger.

Reads   models/trained, reports/metrics.json, reports/report.html, reports/evaluation, data/split/split.json, and the
        validation images in data/images
Writes  reports/registration.json, the receipt
Store   a version of `chest-xray-pneumonia` with its lineage as tags, the alias `challenger`, in its run the evidence
        and the list of its training images

The network is exported for fast answers on a CPU, and the export goes with the version where on the validation images
it stays within `runtime_bounds` of torch; else the tag `runtime` says why not, and torch alone answers.

The same weights with the same calibration never make a second version, so this can be run again at any time:
also where DVC restored the receipt from a cache and this store has no such version yet. A version that has an export
keeps it; one of earlier days, or one that was refused, is tried again.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.common.cli import run_step
from cxr.common.errors import CxrError, DataError, WeightsError

if TYPE_CHECKING:
    from cxr.common.params import Paths, RegisterParams, RuntimeBounds
    from cxr.inference.openvino_export import Judged
    from cxr.models.bundle import ModelSpec

RESTORED_TAG = "restored_from"

log = logging.getLogger("cxr.register")


def register(params: RegisterParams, paths: Paths) -> None:
    """Register the model of models/trained and write the receipt."""
    from cxr.common.files import write_json
    from cxr.registry import tracking_store, versions

    metrics, calibration = _read(paths.metrics), _read(paths.evaluation / "calibration.json")
    split, training = _read(paths.split / "split.json"), _read(paths.model / "training.json")
    _check_same_test_set(metrics, split, paths)
    with tempfile.TemporaryDirectory() as scratch:
        spec = _final_bundle(paths.model, calibration, Path(scratch))
        _add_reference(paths.evaluation, Path(scratch))
        run_id = _run_of(training, spec, paths)
        runtime = _add_runtime(params.runtime_bounds, spec, paths, Path(scratch))
        evidence = _log_evidence(run_id, paths) | _scores(metrics) | runtime
        lineage = {**params.tags, **_lineage(run_id, spec, split, training), **_training_images(run_id, paths)}
        version, is_new = versions.register_version(
            Path(scratch), spec, run_id=run_id, lineage=lineage, evidence=evidence
        )
    if is_new:
        test_metrics = {f"test_{name}": float(value) for name, value in _scores(metrics).items()}
        versions.log_test_metrics(version, test_metrics, test_set_sha256=split["test_set_sha256"])
    log.info("register: version %s is %s and challenger", version.number, "new" if is_new else "registered already")
    write_json(
        paths.registration,
        {
            "name": versions.MODEL,
            "version": version.number,
            "run_id": version.run_id,
            "weights_sha256": spec.weights_sha256,
            "alias": versions.CHALLENGER,
            "tracking_uri": tracking_store.public_uri(),
        },
    )


def _read(path: Path) -> Any:
    from cxr.common.files import read_json

    if not path.is_file():
        raise DataError(f"{path} is missing; run `dvc repro` to make it")
    try:
        return read_json(path)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); run `dvc repro --force` to make it anew") from error


def _check_same_test_set(metrics: dict[str, Any], split: dict[str, Any], paths: Paths) -> None:
    measured, present = metrics.get("test_set_sha256"), split.get("test_set_sha256")
    if measured != present:
        raise DataError(
            f"{paths.metrics} was measured on the test set {str(measured)[:12]}, {paths.split / 'split.json'} has "
            f"{str(present)[:12]}; run `dvc repro evaluate`"
        )


def _final_bundle(model: Path, calibration: dict[str, Any], folder: Path) -> ModelSpec:
    """Copy the model into `folder` with its temperature, bias and referral; the weights' hash is checked on the way."""
    from cxr.models.bundle import SPEC_FILE, WEIGHTS_FILE, read_spec, write_spec

    spec = read_spec(model)
    if not (model / WEIGHTS_FILE).is_file():
        raise WeightsError(f"{model / WEIGHTS_FILE} is missing; run `dvc repro train`")
    shutil.copy2(model / WEIGHTS_FILE, folder)
    fitted = replace(
        spec,
        temperature=float(calibration["temperature"]),
        bias=tuple(calibration["bias"]),
        refer_below=calibration["refer_below"],
    )
    final = write_spec(folder, fitted)
    if final.weights_sha256 != spec.weights_sha256:
        raise WeightsError(
            f"{model / WEIGHTS_FILE} has been changed: its SHA-256 is {final.weights_sha256[:12]}, {SPEC_FILE} says "
            f"{spec.weights_sha256[:12]}; it was not registered. Run `dvc repro --force train`"
        )
    return final


def _add_reference(evidence: Path, folder: Path) -> None:
    """Copy what images of today measure into `folder`; it is read before, so that what is registered can be used."""
    from cxr.models.reference import REFERENCE_FILE, read_reference

    read_reference(evidence / REFERENCE_FILE)
    shutil.copy2(evidence / REFERENCE_FILE, folder)


def _add_runtime(bounds: RuntimeBounds, spec: ModelSpec, paths: Paths, folder: Path) -> dict[str, str]:
    """Export the network of the bundle in `folder` beside it; return tags that say what came of it.

    A model is registered without an export rather than not at all.
    """
    from cxr.inference.openvino_export import Agreement, accept_runtime, export_runtime, remove_runtime, tags_of
    from cxr.models.bundle import read_bundle
    from cxr.registry import versions

    known = versions.find_version(spec)
    if known and versions.has_runtime(known):
        return {}
    most = Agreement(**bounds.model_dump())
    try:
        judged = _validation_images(spec, paths)
        network, _ = read_bundle(folder)
        export_runtime(network, spec, folder)
        tags = tags_of(accept_runtime(folder, spec, judged, most), most)
    except CxrError as error:
        tags = {"runtime": f"none: {error}"}
    log.info(
        "register: exported network: %s; %s", tags["runtime"], tags.get("runtime_agreement", "torch alone answers")
    )
    if tags["runtime"].startswith("none"):
        remove_runtime(folder)
    return tags


def _validation_images(spec: ModelSpec, paths: Paths) -> Judged:
    """Return the packed validation images and what the evaluation said of them."""
    import numpy as np
    import pandas as pd

    from cxr.dataset.image_array import read_image_array
    from cxr.inference.openvino_export import Judged
    from cxr.registry.evaluation_artifacts import PREDICTIONS_FILE

    packed = read_image_array(paths.images)
    if packed.preprocessing != spec.preprocessing:
        raise DataError(
            f"{paths.images} is prepared in another way than the model was trained on; run `dvc repro train`"
        )
    table = pd.read_csv(paths.evaluation / PREDICTIONS_FILE, dtype={"image_id": "str"})
    images = table[table["split"] == "validation"]
    return Judged(
        images=packed.images,
        rows=packed.rows(images["image_id"].tolist()),
        labels=np.array([spec.classes.index(label) for label in images["label"]], np.int64),
        probabilities=images[[f"p_{name}" for name in spec.classes]].to_numpy(np.float64),
    )


def _run_of(training: dict[str, Any], spec: ModelSpec, paths: Paths) -> str:
    """Return the training's run, or one that stands for it where the training came from DVC's cache."""
    from cxr.registry import runs, versions

    known = versions.find_version(spec)
    for run_id in (known.run_id if known else None, training["run_id"]):
        if runs.run_exists(run_id):
            _complete(str(run_id), paths)
            return str(run_id)
    found = runs.find_run(RESTORED_TAG, training["run_id"]) or _start_restored_run(training)
    _complete(found, paths)
    return found


def _start_restored_run(training: dict[str, Any]) -> str:
    """Begin a run for a training that this store has not seen."""
    from cxr.registry import runs

    tags = {RESTORED_TAG: str(training["run_id"])}
    run_id = runs.start_run(run_id=None, name="restored training", tags=tags)
    runs.log_params(run_id, {"train": training["params"]})
    log.info("register: the training's run %s is not in this store; run %s stands for it", *tags.values(), run_id)
    return run_id


def _complete(run_id: str, paths: Paths) -> None:
    """Give a run that is still open what the training's files know: the store was away as the training ended."""
    import csv

    from cxr.registry import runs

    if runs.is_finished(run_id):
        return
    with (paths.model / "curves.csv").open(encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    epochs = {int(row.pop("epoch")): row for row in rows}
    files = [paths.model / name for name in ("curves.csv", "training.json", "validation.csv")]
    runs.complete_run(run_id, epochs, [file for file in files if file.is_file()])


def _log_evidence(run_id: str, paths: Paths) -> dict[str, str]:
    """Put the evidence into the run, under a name of its own for each measurement; return the tags that find it."""
    from cxr.registry.evaluation_artifacts import METRICS_FILE, PREDICTIONS_FILE
    from cxr.registry.evaluation_store import store_evaluation

    files = [paths.evaluation / PREDICTIONS_FILE, paths.evaluation / "calibration.json", paths.split / "split.json"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy2(paths.metrics, folder / METRICS_FILE)
        for file in files:
            if not file.is_file():
                raise DataError(f"{file} is missing; run `dvc repro evaluate`")
            shutil.copy2(file, folder)
        if paths.report.is_file():
            shutil.copy2(paths.report, folder)
        return store_evaluation(run_id, sorted(folder.iterdir()))


def _training_images(run_id: str, paths: Paths) -> dict[str, str]:
    from cxr.dataset.manifest import read_splits
    from cxr.registry.evaluation_store import keep_training_images

    return keep_training_images(run_id, read_splits(paths.split))


def _scores(metrics: dict[str, Any]) -> dict[str, str]:
    """Return the headline metrics as tags; an undefined one is left out."""
    named = {name: metrics.get(name) for name in ("accuracy", "macro_f1", "macro_auroc")}
    named["ece"] = metrics.get("calibration", {}).get("ece")
    return {name: f"{value:.4f}" for name, value in named.items() if isinstance(value, int | float)}


def _lineage(run_id: str, spec: ModelSpec, split: dict[str, Any], training: dict[str, Any]) -> dict[str, str]:
    """Return where the model comes from: the project as it stood when the training began, where that is known."""
    from cxr.registry import runs
    from cxr.registry.lineage import lineage

    now = lineage(Path())
    then = runs.run_tags(run_id)
    return {
        **{name: then.get(name, value) for name, value in now.items()},
        **{name: str(split[name]) for name in ("protocol", "task", "manifest_sha256", "test_set_sha256")},
        "synthetic": str(spec.synthetic).lower(),
        "backbone": spec.backbone,
        "classes": ",".join(spec.classes),
        "starting_weights": str(training.get("weights", {}).get("source", "")),
    }


if __name__ == "__main__":
    run_step(register)
