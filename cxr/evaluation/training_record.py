"""Read what train leaves beside the bundle in models/trained: `training.json` and `curves.csv`."""

from pathlib import Path
from typing import Any

import pandas as pd
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cxr.common.artifacts import damaged, read_csv, read_record

RECORD_FILE, CURVES_FILE, VALIDATION_FILE = "training.json", "curves.csv", "validation.csv"
STAGE = "train"
CURVES_COLUMNS = {
    "epoch": "int64",
    **dict.fromkeys(
        ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "validation_macro_f1"), "float64"
    ),
}
"""Column -> dtype of what reports and runs need of a row an epoch; see cxr.training.results.Epoch."""


class TrainingRecord(TypedDict):
    """The keys of training.json that later stages read.

    run_id    of the MLflow run
    seconds   of all epochs
    weights   see cxr.models.factory.WeightsReport
    params    the section `train` of params.yaml as it was
    """

    run_id: str
    seconds: float
    images_per_second: float
    device: str
    precision: str
    hardware: str
    epochs_run: int
    best_epoch: int
    weights: dict[str, Any]
    params: dict[str, Any]


def read_training_record(model: Path) -> TrainingRecord:
    """Read training.json in the folder `model`. Raises DataError."""
    return read_record(model / RECORD_FILE, TrainingRecord, stage=STAGE)


def read_curves(model: Path, record: TrainingRecord) -> pd.DataFrame:
    """Read a row per epoch of the training that `record` describes; columns as in CURVES_COLUMNS.

    Raises:
        DataError: the file is missing or damaged, lacks a column as that of an older release does, or an epoch.
    """
    path = model / CURVES_FILE
    curves = read_csv(path, CURVES_COLUMNS, stage=STAGE)
    if len(curves) < record["epochs_run"] or curves[list(CURVES_COLUMNS)].isna().to_numpy().any():
        raise damaged(path, STAGE, expected=f"{record['epochs_run']} whole epochs", found=f"{len(curves)} lines")
    return curves
