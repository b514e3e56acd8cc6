"""Register the trained and evaluated model as the challenger.

Reads   models/trained, reports/metrics.json, reports/report.html, reports/evaluation, data/split/split.json, and the
        validation images in data/images
Writes  reports/registration.json, the receipt
Store   a version of `chest-xray-pneumonia` with its lineage as tags, the alias `challenger`, and in its run the
        evaluation artifacts, the list of its training images and dvc.lock, which names its data in DVC's cache

The network is exported for fast answers on a CPU. The export is registered with the version if it stays within
`runtime_bounds` of torch on the validation images; else the tag `runtime` says why not, and torch alone answers.

The same weights with the same calibration never make a second version, so this can be run again at any time: also
where DVC restored the receipt from a cache and this store has no such version yet. A version that has an export keeps
it; a version without one, or whose export was rejected, gets another try.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cxr.common.cli import answer_help, run_step, step_parser

if __name__ == "__main__":
    answer_help(step_parser(sys.modules[__name__]))

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.common.artifacts import damaged, missing
from cxr.common.errors import CxrError, DataError, WeightsError
from cxr.common.files import write_json
from cxr.common.on_disk import take
from cxr.common.params import Paths, RegisterParams, RuntimeBounds
from cxr.dataset.image_array import ImageArray, read_image_array
from cxr.dataset.inspect import thumbnail_of
from cxr.dataset.manifest import Split, read_split
from cxr.evaluation.headline import HEADLINES
from cxr.evaluation.result_files import (
    CALIBRATION_FILE,
    FACTORS,
    METRICS_FILE,
    PREDICTIONS_FILE,
    CalibrationRecord,
    MetricsRecord,
    read_calibration,
    read_metrics,
    read_model_card,
    read_predictions,
    read_report,
)
from cxr.evaluation.training_record import (
    TrainingRecord,
    read_curves,
    read_training_record,
)
from cxr.inference.openvino.agreement import Agreement, ValidationAnswers, accept_runtime, tags_of
from cxr.models.bundle import SPEC_FILE, WEIGHTS_FILE, ModelSpec, read_bundle, read_spec, write_spec
from cxr.models.reference import REFERENCE_FILE, read_reference
from cxr.registry import registration, runs, tracking_store, versions
from cxr.registry.evaluation_artifacts import EvaluationArtifacts, test_images
from cxr.registry.evaluation_store import (
    keep_training_images,
    keep_training_thumbnails,
    seen_images,
    store_evaluation,
    training_images,
)
from cxr.registry.lineage import lineage
from cxr.registry.retention import keep_data_lock
from cxr.registry.run_metadata import log_images, run_page, shown_tags
from cxr.registry.stored_names import EVALUATION_TAG
from cxr.registry.training_run import complete_training
from cxr.registry.versions import Version

RESTORED_TAG = "restored_from"
_THUMBNAILS_AT_ONCE = 256

log = logging.getLogger("cxr.register")


@dataclass(frozen=True)
class Inputs:
    """What the earlier stages wrote, each file by its own reader."""

    metrics: MetricsRecord
    calibration: CalibrationRecord
    predictions: pd.DataFrame
    model_card: str
    split: Split
    training: TrainingRecord
    curves: pd.DataFrame


def register(params: RegisterParams, paths: Paths) -> None:
    """Register the model of models/trained and write the receipt."""
    found = _read_inputs(paths)
    split, metrics = found.split.record, found.metrics
    with tempfile.TemporaryDirectory() as scratch:
        spec = _final_bundle(paths.model, found.calibration, Path(scratch))
        _add_reference(paths.evaluation, Path(scratch))
        run_id = _run_of(found, spec, paths)
        runtime = _add_runtime(params.runtime_bounds, spec, found.predictions, paths, Path(scratch))
        evaluation = _log_evaluation(run_id, paths) | _scores(metrics) | runtime
        evaluation |= keep_data_lock(run_id, Path("dvc.lock"))
        origin = {**params.tags, **_lineage(run_id, spec, split, found.training)}
        origin |= keep_training_images(run_id, found.split.table)
        evaluation |= _keep_thumbnails(run_id, found.split.table, versions.find_version(spec), paths)
        version, is_new = registration.register_version(
            Path(scratch),
            spec,
            run_id=run_id,
            lineage=origin,
            evaluation=evaluation,
            description=_description(run_id, found, evaluation, paths),
        )
    test_metrics = {f"test/{name}": float(value) for name, value in _scores(metrics).items()}
    if lacking := registration.unrecorded(version, test_metrics):
        _log_test_images(run_id, found.split, paths)
        registration.log_test_metrics(version, lacking, test_set_sha256=split["test_set_sha256"])
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


def _read_inputs(paths: Paths) -> Inputs:
    """Read every file of the earlier stages, before the store is asked. Raises DataError."""
    read_report(paths.report)
    training = read_training_record(paths.model)
    found = Inputs(
        metrics=read_metrics(paths.metrics),
        calibration=read_calibration(paths.evaluation),
        predictions=read_predictions(paths.evaluation / PREDICTIONS_FILE),
        model_card=read_model_card(paths.evaluation),
        split=read_split(paths.split),
        training=training,
        curves=read_curves(paths.model, training),
    )
    _require_agreement(found, paths)
    return found


def _require_agreement(found: Inputs, paths: Paths) -> None:
    """Check that the metrics are of the present test set and of the predictions beside them. Raises DataError."""
    measured, present = found.metrics["test_set_sha256"], found.split.record["test_set_sha256"]
    if measured != present:
        raise DataError(
            f"{paths.metrics} was computed on the test set {measured[:12]}, {paths.split / 'split.json'} has "
            f"{present[:12]}; run `./run dvc repro evaluate`"
        )
    problems = EvaluationArtifacts(found.metrics, test_images(found.predictions), {}).problems()
    if problems:
        raise damaged(
            paths.evaluation / PREDICTIONS_FILE,
            "evaluate",
            expected=f"the predictions behind {paths.metrics}",
            found=problems[0],
        )


def _final_bundle(model: Path, calibration: CalibrationRecord, folder: Path) -> ModelSpec:
    """Copy the model into `folder` with temperature, bias and referral threshold; check the weights' hash."""
    spec = read_spec(model)
    if not (model / WEIGHTS_FILE).is_file():
        raise missing(model / WEIGHTS_FILE, "train")
    shutil.copy2(model / WEIGHTS_FILE, folder)
    fitted = replace(
        spec,
        temperature=calibration["temperature"],
        bias=tuple(calibration["bias"]),
        refer_below=calibration["refer_below"],
    )
    final = write_spec(folder, fitted)
    if final.weights_sha256 != spec.weights_sha256:
        raise WeightsError(
            f"{model / WEIGHTS_FILE} has been changed: its SHA-256 is {final.weights_sha256[:12]}, {SPEC_FILE} says "
            f"{spec.weights_sha256[:12]}; it was not registered; run `./run dvc repro -f -s train`"
        )
    return final


def _add_reference(evaluation: Path, folder: Path) -> None:
    """Copy the reference statistics into `folder`; they are read first, so that none are registered that cannot be."""
    read_reference(evaluation / REFERENCE_FILE)
    shutil.copy2(evaluation / REFERENCE_FILE, folder)


def _add_runtime(
    bounds: RuntimeBounds, spec: ModelSpec, predictions: pd.DataFrame, paths: Paths, folder: Path
) -> dict[str, str]:
    """Export the network of the bundle in `folder` beside it; return tags with the outcome.

    A model is registered without an export rather than not at all.
    """
    known = versions.find_version(spec)
    if known and versions.has_runtime(known):
        return {}
    from cxr.inference.openvino.export import export_runtime, remove_runtime  # torch, which only an export needs

    most = Agreement(**bounds.model_dump())
    try:
        judged = _validation_images(spec, predictions, paths)
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


def _validation_images(spec: ModelSpec, predictions: pd.DataFrame, paths: Paths) -> ValidationAnswers:
    """Return the packed validation images and the probabilities that the evaluation gave them."""
    packed = read_image_array(paths.images)
    if packed.preprocessing != spec.preprocessing:
        raise DataError(
            f"{paths.images} is preprocessed differently from the model's training images; run `./run dvc repro train`"
        )
    images = predictions[predictions["split"] == "validation"]
    return ValidationAnswers(
        images=packed.images,
        rows=packed.rows(images["image_id"].tolist()),
        labels=np.array([spec.classes.index(label) for label in images["label"]], np.int64),
        probabilities=images[[f"p_{name}" for name in spec.classes]].to_numpy(np.float64),
    )


def _keep_thumbnails(run_id: str, splits: pd.DataFrame, known: Version | None, paths: Paths) -> dict[str, str]:
    """Record thumbnails of what the model has seen, by which tasks.external finds copies of it; return their tags.

    They come from the prepared images, so that copies of another size or compression are alike. Without prepared
    images a model is registered without thumbnails rather than not at all.
    """
    seen = seen_images(splits)
    recorded = training_images(known) if known else seen
    if recorded is None or recorded["image_id"].tolist() != seen["image_id"].tolist():
        log.info(
            "register: no thumbnails of the training images: the version was trained on others than data/split has"
        )
        return {}
    try:
        packed = read_image_array(paths.images)
        rows = packed.rows(seen["image_id"].tolist())
    except DataError as error:
        log.info("register: no thumbnails of the training images: %s", error)
        return {}
    return keep_training_thumbnails(run_id, _thumbnails(packed, rows), len(rows))


def _thumbnails(packed: ImageArray, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(rows), _THUMBNAILS_AT_ONCE):
        images = take(packed.images, rows[start : start + _THUMBNAILS_AT_ONCE])
        yield np.stack([thumbnail_of(image) for image in images])


def _run_of(found: Inputs, spec: ModelSpec, paths: Paths) -> str:
    """Return the training's run, or one that stands for it where the training came from DVC's cache."""
    known, training = versions.find_version(spec), found.training
    for run_id in (known.run_id if known else None, training["run_id"]):
        if run_id and runs.run_exists(run_id):
            complete_training(run_id, found.curves, paths.model)
            return run_id
    restored = runs.find_run(RESTORED_TAG, training["run_id"]) or _start_restored_run(training)
    complete_training(restored, found.curves, paths.model)
    return restored


def _start_restored_run(training: TrainingRecord) -> str:
    """Start a run for a training that this store does not have."""
    original = training["run_id"]
    description = f"Stands for the training run `{original}` of another store."
    tags = {RESTORED_TAG: original, **shown_tags(description=description)}
    run_id = runs.start_run(run_id=None, name=f"restored-{original[:8]}", tags=tags)
    runs.log_params(run_id, {"train": training["params"]})
    log.info("register: the training's run %s is not in this store; run %s stands for it", original, run_id)
    return run_id


def _log_evaluation(run_id: str, paths: Paths) -> dict[str, str]:
    """Put the evaluation artifacts into the run, each evaluation under its own path; return the tags that find them."""
    files = [paths.evaluation / PREDICTIONS_FILE, paths.evaluation / CALIBRATION_FILE, paths.split / "split.json"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy2(paths.metrics, folder / METRICS_FILE)
        for file in [*files, paths.report]:
            shutil.copy2(file, folder)
        return store_evaluation(run_id, sorted(folder.iterdir()))


def _description(run_id: str, found: Inputs, evaluation: Mapping[str, str], paths: Paths) -> str:
    """Return the version's page: the headline metrics, one click to the report, and the head of the model card."""
    experiment, where = runs.experiment_id(), evaluation[EVALUATION_TAG].partition("/")[2]
    links = {
        "Report": run_page(experiment, run_id, f"{where}/{paths.report.name}"),
        "metrics": run_page(experiment, run_id, f"{where}/{METRICS_FILE}"),
        "run of the training": run_page(experiment, run_id),
    }
    scores = ", ".join(f"{name} {value}" for name, value in _scores(found.metrics).items())
    text = found.model_card.partition(FACTORS)[0]
    linked = " · ".join(f"[{name}]({address})" for name, address in links.items())
    return f"{linked}\n\nTest images: {scores}.\n\n{text}".strip()


def _log_test_images(run_id: str, split: Split, paths: Paths) -> None:
    tested = split.part("test")[["image_id", "label", "patient_id"]]
    manifest = paths.raw / "manifest.parquet"
    log_images(run_id, tested, context="test", source=manifest, sha256=split.record["test_set_sha256"])


def _scores(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the headline metrics as tags; an undefined one is left out."""
    values = {metric.name: metric.stored_in(metrics) for metric in HEADLINES}
    return {name: f"{value:.4f}" for name, value in values.items() if value is not None}


def _lineage(run_id: str, spec: ModelSpec, split: Mapping[str, Any], training: TrainingRecord) -> dict[str, str]:
    """Return where the model comes from: the project as it was when the training began, where that is known."""
    now = lineage(Path())
    then = runs.run_tags(run_id)
    return {
        **{name: then.get(name, value) for name, value in now.items()},
        **{name: str(split[name]) for name in ("protocol", "task", "manifest_sha256", "test_set_sha256")},
        "synthetic": str(spec.synthetic).lower(),
        "backbone": spec.backbone,
        "classes": ",".join(spec.classes),
        "starting_weights": str(training["weights"].get("source", "")),
    }


if __name__ == "__main__":
    run_step(register)
