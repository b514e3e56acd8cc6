"""Read what evaluate wrote: `metrics.json`, `calibration.json`, `predictions.csv`, the report and the model card."""

from pathlib import Path

import pandas as pd
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cxr.common.artifacts import damaged, existing, read_record, read_text

METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.csv"
CALIBRATION_FILE, MODEL_CARD_FILE = "calibration.json", "model_card.md"
STAGE = "evaluate"
FACTORS = "\n## Factors"
"""The heading that follows the summary of a model card."""

TEXT_COLUMNS = ("image_id", "split", "patient_id", "label", "predicted_class")


class MetricsRecord(TypedDict):
    """The keys of metrics.json that register and the promotion gate need."""

    accuracy: float
    macro_f1: float
    macro_auroc: float | None
    calibration: dict[str, object]
    classes: list[str]
    n_test: int
    test_set_sha256: str


class CalibrationRecord(TypedDict):
    """The keys of calibration.json that become part of the model; see cxr.models.bundle.ModelSpec."""

    temperature: float
    bias: list[float]
    refer_below: float | None


def read_metrics(path: Path) -> MetricsRecord:
    """Read metrics.json. Raises DataError."""
    return read_record(path, MetricsRecord, stage=STAGE)


def read_calibration(evaluation: Path) -> CalibrationRecord:
    """Read calibration.json in the folder `evaluation`. Raises DataError."""
    return read_record(evaluation / CALIBRATION_FILE, CalibrationRecord, stage=STAGE)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read predictions.csv: TEXT_COLUMNS as text, and a probability `p_<class>` of each class.

    Raises:
        DataError: the file is missing, lacks a column, or a probability is not a number.
    """
    existing(path, STAGE)
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, "str"), keep_default_na=False)
        probabilities = [str(name) for name in table if str(name).startswith("p_")]
        table = table.astype(dict.fromkeys(probabilities, "float64"))
    except (ValueError, OverflowError) as error:  # pandas's own errors are ValueErrors
        raise damaged(path, STAGE, expected="a table of predictions", found=str(error)) from error
    if lacking := sorted(set(TEXT_COLUMNS) - set(table)):
        raise damaged(path, STAGE, expected=f"the columns {', '.join(TEXT_COLUMNS)}", found=f"no {', '.join(lacking)}")
    return table


def read_report(path: Path) -> str:
    """Read report.html. Raises DataError where it is missing or not a whole page."""
    return read_text(path, stage=STAGE, marks=("<!doctype html>", "</html>"))


def read_model_card(evaluation: Path) -> str:
    """Read model_card.md in the folder `evaluation`. Raises DataError where it is missing or not a model card."""
    return read_text(evaluation / MODEL_CARD_FILE, stage=STAGE, marks=("# Model card", FACTORS))
