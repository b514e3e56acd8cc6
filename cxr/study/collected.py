"""From the outputs of a packed trial (cxr.training.packed) to a run in the tracking store, like one trained here.

The run has the parameters, curves, predictions and test metrics of a trial that ran here. It has no model, which stays
where it was trained, and so no report: audits and saliency maps need one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.common.errors import DataError
from cxr.common.files import read_json, sha256_of, write_json
from cxr.common.params import EvaluateParams
from cxr.evaluation.headline import ERRORS, SCORES
from cxr.evaluation.predictions import fit_calibration, make_predictions
from cxr.evaluation.result_files import METRICS_FILE, PREDICTIONS_FILE
from cxr.evaluation.summary import Settings, calibration_summary, summarize
from cxr.imaging.preprocess import Preprocessing
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.bundle import ModelSpec
from cxr.models.forward import softmax_with_temperature
from cxr.registry import runs
from cxr.training.packed import DIGESTS_KEY, OUTPUTS_FILE, TRAINING_FILE, UNREADABLE, read_arrays

RECORD_FILE, IMAGES_FILE = "record.json", "images.csv"
TRAINING_TAG = "packed_training"
"""On a run: the SHA-256 of the training.json that it was made from."""
_TRAINING_COLUMNS = ("image_id", "fold", "label", "patient_id", "source")
_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class TrialRecord:
    """What stays here of a packed trial.

    digest       of the trial's settings when it was packed
    tags         of its run: commit, digests, protocol
    config       parameters of its run, by section: train, split, preprocess
    packed       digests of its files as they were packed, which training.json repeats; none from an earlier release
    """

    digest: str
    tags: Mapping[str, str]
    config: Mapping[str, Any]
    packed: Mapping[str, str] = field(default_factory=dict)


def write_record(folder: Path, record: TrialRecord, images: pd.DataFrame) -> None:
    """Write what stays here of a trial: FOLDER/records/<trial>.

    Args:
        folder: FOLDER/records/<trial>.
        record: of the trial.
        images: validation, then test images: image_id, split, fold, label, patient_id, source, block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images.to_csv(folder / IMAGES_FILE, index=False, lineterminator="\n")
    write_json(folder / RECORD_FILE, vars(record))


def read_record(folder: Path) -> TrialRecord:
    """Read the record of a trial. Raises DataError where it is missing or damaged."""
    try:
        return TrialRecord(**read_json(folder / RECORD_FILE))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{folder / RECORD_FILE} cannot be read ({error}); collect where the trials were packed, or pack them again"
        ) from error


def collect(root: Path, name: str, *, tested: bool, params: EvaluateParams) -> str:
    """Record a trial that is done; return the id of its run. What an interrupted call has begun goes on in its run.

    Args:
        root: the folder that was packed.
        name: of the trial's folders.
        tested: whether the test images count, or only those for validation.
        params: resamples and seed of the intervals, and whether biases are fitted.

    Raises:
        DataError: a file is missing or damaged, or the outputs are of an earlier packing or of other images.
        RegistryError: the store does not answer.
    """
    record, trial = read_record(root / "records" / name), root / "trials" / name
    training, curves, torch_version = _read_training(trial / TRAINING_FILE)
    if training.get(DIGESTS_KEY) != record.packed:
        raise DataError(
            f"{trial / TRAINING_FILE} is of another packing, or of an earlier release, which cannot be checked: pack "
            "the trial again, train it there from that FOLDER and copy FOLDER/trials back"
        )
    images, logits = _read_outputs(root / "records" / name / IMAGES_FILE, trial / OUTPUTS_FILE)
    training_digest = sha256_of(trial / TRAINING_FILE)
    tags = {**record.tags, "torch_version": torch_version, TRAINING_TAG: training_digest}
    begun = runs.find_run(TRAINING_TAG, training_digest)
    run_id = runs.start_run(run_id=begun, name=f"{name}-packed", tags=tags)
    at_ms = runs.started_ms(run_id)  # the same when a figure is sent again, so that it stays one
    runs.log_params(run_id, record.config)
    for row in curves.to_dict("records"):
        metrics = {str(key): float(value) for key, value in row.items() if key != "epoch"}
        runs.log_metrics(run_id, metrics, step=int(row["epoch"]), at_ms=at_ms)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_json(folder / TRAINING_FILE, {"run_id": run_id, **training})
        _validation_table(record, images, logits).to_csv(folder / "validation.csv", index=False, lineterminator="\n")
        curves.to_csv(folder / "curves.csv", index=False, lineterminator="\n")
        runs.log_files(run_id, sorted(folder.iterdir()), runs.TRAINING_FOLDER)
    if tested:
        measured = _log_test(run_id, record, images, logits, params)
        runs.log_metrics(run_id, measured, at_ms=at_ms)
    runs.finish_run(run_id, "FINISHED")
    return run_id


def _read_training(path: Path) -> tuple[dict[str, Any], pd.DataFrame, str]:
    """Return training.json, a row per epoch (the mean over the members that trained so long), and torch's version."""
    try:
        training: dict[str, Any] = read_json(path)
        epochs = pd.DataFrame([epoch for member in training.pop("history") for epoch in member])
        return training, epochs.groupby("epoch", as_index=False).mean(), str(training["torch_version"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy FOLDER/trials back again") from error


def _read_outputs(table: Path, outputs: Path) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """Return the images of validation and test, and their logits (N, C) in the same order."""
    try:
        images = pd.read_csv(table, dtype={"image_id": str, "patient_id": str, "label": str})
        parts = list(read_arrays(outputs, _SPLITS).values())
    except UNREADABLE as error:
        raise DataError(f"{table} or {outputs} cannot be read ({error}); copy FOLDER/trials back again") from error
    expected = [int((images["split"] == name).sum()) for name in _SPLITS]
    if [len(part) for part in parts] != expected:
        found = " and ".join(str(len(part)) for part in parts)
        raise DataError(
            f"{outputs} holds {found} outputs, {table} lists {expected[0]} validation and {expected[1]} test images: "
            "they are of two packings; pack and train again"
        )
    return images, np.concatenate([part for part in parts if len(part)]).astype(np.float32)


def _classes(record: TrialRecord) -> tuple[str, ...]:
    return tuple(record.config["split"]["classes"])


def _validation_table(record: TrialRecord, images: pd.DataFrame, logits: NDArray[np.float32]) -> pd.DataFrame:
    is_validation = (images["split"] == "validation").to_numpy()
    probabilities = softmax_with_temperature(logits[is_validation], 1.0)
    columns = {f"p_{name}": values for name, values in zip(_classes(record), probabilities.T, strict=True)}
    return images.loc[is_validation, list(_TRAINING_COLUMNS)].assign(**columns)


def _log_test(
    run_id: str, record: TrialRecord, images: pd.DataFrame, logits: NDArray[np.float32], params: EvaluateParams
) -> dict[str, float]:
    """Calibrate on the validation images, measure the test images, and add files of both to the run; return metrics."""
    train, classes = record.config["train"], _classes(record)
    spec = ModelSpec(
        backbone=train["backbone"],
        head=train["head"],
        members=train["members"],
        classes=classes,
        preprocessing=Preprocessing(**record.config["preprocess"]),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        temperature=1.0,
        bias=(0.0,) * len(classes),
        synthetic=record.config["split"]["synthetic"],
    )
    spec = fit_calibration(spec, logits, images, fit_bias=params.fit_bias)
    predictions = make_predictions(spec, logits, images)
    is_test = (images["split"] == "test").to_numpy()
    validation, test = predictions.where(~is_test), predictions.where(is_test)
    settings = Settings(params.bootstrap_resamples, params.seed, params.calibration_bins)
    calibration = calibration_summary(validation, test, temperature=spec.temperature, bias=spec.bias, settings=settings)
    metrics = summarize(test, calibration=calibration, split=record.config["split"], settings=settings)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_json(folder / METRICS_FILE, metrics)
        tables = pd.concat([validation.to_table("validation"), test.to_table("test")])
        tables.to_csv(folder / PREDICTIONS_FILE, index=False, lineterminator="\n")
        runs.log_files(run_id, sorted(folder.iterdir()), "evaluation")
    measured = {f"test_{metric.name}": metric.value_in(metrics) for metric in (*SCORES, *ERRORS)}
    return {name: value for name, value in measured.items() if value is not None}
