"""Labelled answers to a set that the model has never seen, measured as the evaluation measures the test set.

Nothing is chosen here: thresholds and calibration are those that came with the model.

A set may name the model's classes, or only tell `pneumonia` from `normal`. Whatever it names, `pneumonia` in the result
measures normal against all other labels, by the sum of the probabilities of all classes but normal. The scores at the
top are of the model's classes, or, where no label names a kind of pneumonia that the model knows, of normal and
pneumonia.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.dataset.blocks import NO_BLOCK
from cxr.dataset.external_set import PNEUMONIA
from cxr.evaluation.bootstrap import Resampling
from cxr.evaluation.clinical_utility import abstention_curve, operating_point, rates, refer
from cxr.evaluation.predictions import Predictions
from cxr.evaluation.rates import Floats
from cxr.evaluation.summary import Settings, measured_scores, pair_scores, slice_scores

NORMAL = "normal"
BINARY = (NORMAL, PNEUMONIA)
_NO_GROUP = "not said"  # "none" may be a group, as of devices in an image
SCORED = ("accuracy", "macro_f1", "macro_auroc", "per_class", "confusion_matrix", "calibration", "ci95", "bootstrap")
"""Of metrics.json, at the top of the result; None where the labels do not define them."""


@dataclass(frozen=True)
class CarriedThresholds:
    """The model's thresholds, chosen on its validation images: (target specificity, threshold) and the referral."""

    operating_points: Sequence[tuple[float, float]]
    refer_below: float | None


def of_classes(table: pd.DataFrame, classes: Sequence[str]) -> Predictions | None:
    """Return the images whose label is a class of the model; None where those of all ill images are not.

    The normal images alone would say that a model is right which calls everybody normal.

    Args:
        table: a row an answered and labelled image: path, label, patient, p_<class>.
        classes: of the model.
    """
    known = table[table["label"].isin(classes)]
    only_normal = set(known["label"]) <= {NORMAL}
    if known.empty or (only_normal and len(known) < len(table)):
        return None
    return _predictions(known, tuple(classes), _probabilities(known, classes))


def of_pneumonia(table: pd.DataFrame, classes: Sequence[str]) -> Predictions | None:
    """Return all images as normal or pneumonia; None for a model without the class normal. See of_classes."""
    if NORMAL not in classes or table.empty:
        return None
    normal = _probabilities(table, classes)[:, list(classes).index(NORMAL)]
    binary = table.assign(label=np.where(table["label"] == NORMAL, NORMAL, PNEUMONIA))
    return _predictions(binary, BINARY, np.stack([normal, 1 - normal], axis=1))


def measure_labelled(
    table: pd.DataFrame, classes: Sequence[str], thresholds: CarriedThresholds, settings: Settings
) -> dict[str, Any]:
    """Return every figure of the answered and labelled images.

    Args:
        table: see of_classes; also predicted_class, and a column `group:<kind>` for each kind of group, "" for none.
        classes: of the model.
        thresholds: of the model.
        settings: of intervals and calibration.
    """
    kinds, binary = of_classes(table, classes), of_pneumonia(table, classes)
    scored = kinds or binary
    scores = {} if scored is None else measured_scores(scored, settings)
    return {
        "classes": list(scored.classes) if scored else [],
        **{name: scores.get(name) for name in SCORED},
        "n_test": scores.get("n_test", 0),
        "n_patients": scores.get("n_patients", 0),
        "labels_left_out": _left_out(table, kinds, scored),
        "pneumonia": None if binary is None else _pneumonia(table, binary, thresholds, settings),
        "referral": None if scored is None else _referral(table, scored, thresholds, settings),
        "per_pair": {} if scored is None else pair_scores(scored, settings),
        "slices": {} if scored is None else _slices(table, scored, settings),
    }


def _left_out(table: pd.DataFrame, kinds: Predictions | None, scored: Predictions | None) -> dict[str, int]:
    """Count the labels of images that the scores at the top do not cover."""
    if scored is not None and kinds is None:
        return {}
    covered = set() if scored is None else set(scored.classes)
    counts = table["label"].value_counts()
    return {str(label): int(count) for label, count in counts.items() if label not in covered}


def _pneumonia(
    table: pd.DataFrame, binary: Predictions, thresholds: CarriedThresholds, settings: Settings
) -> dict[str, Any]:
    scores, positive = binary.calibrated[:, 1], binary.labels == 1
    draws = _draws(binary, settings)
    called = (table["predicted_class"] != NORMAL).to_numpy()
    sensitivity, specificity, accuracy = rates(
        [(called, positive), (~called, ~positive), (called == positive, np.ones(len(called), bool))], draws
    )
    points = [
        operating_point(scores, positive, threshold=threshold, target_specificity=target, draws=draws).to_json()
        for target, threshold in thresholds.operating_points
    ]
    return {
        **measured_scores(binary, settings),
        "classes": list(BINARY),
        "n_normal": int((~positive).sum()),
        "n_pneumonia": int(positive.sum()),
        "as_called": {
            "sensitivity": sensitivity.to_json(),
            "specificity": specificity.to_json(),
            "accuracy": accuracy.to_json(),
        },
        "operating_points": points,
    }


def _referral(
    table: pd.DataFrame, scored: Predictions, thresholds: CarriedThresholds, settings: Settings
) -> dict[str, Any]:
    """Return the effect of the model's own referral threshold, and accuracy over coverage.

    The confidence is that of the model's own answer, also where the labels tell only pneumonia from normal.
    """
    rows = table.set_index("path").loc[scored.image_ids.tolist()]
    called = rows["predicted_class"].to_numpy(object)
    if scored.classes == BINARY:
        called = np.where(called == NORMAL, NORMAL, PNEUMONIA)
    right = called == np.array(scored.classes, object)[scored.labels]
    confidence = rows["confidence"].to_numpy(np.float64)
    draws = _draws(scored, settings)
    found = None
    if thresholds.refer_below is not None:
        found = refer(confidence, right, threshold=thresholds.refer_below, draws=draws).to_json()
    return {"found": found, "curve": [point.to_json() for point in abstention_curve(confidence, right, draws)]}


def _slices(table: pd.DataFrame, scored: Predictions, settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the scores of each group of each kind; a kind with one group says no more than the whole."""
    rows = table.set_index("path").loc[scored.image_ids.tolist()]
    found = {}
    for column in (str(name) for name in rows if str(name).startswith("group:")):
        groups = rows[column].to_numpy(object)
        if len(names := sorted(set(groups))) > 1:
            kind = column.removeprefix("group:")
            found[kind] = {name or _NO_GROUP: slice_scores(scored.where(groups == name), settings) for name in names}
    return found


def _predictions(table: pd.DataFrame, classes: tuple[str, ...], probabilities: Floats) -> Predictions:
    return Predictions(
        classes=classes,
        image_ids=table["path"].to_numpy(object),
        sources=np.full(len(table), "", object),
        blocks=np.full(len(table), NO_BLOCK, np.int64),
        patients=table["patient"].to_numpy(object),
        labels=np.array([classes.index(label) for label in table["label"]], np.int64),
        uncalibrated=probabilities,
        calibrated=probabilities,
    )


def _probabilities(table: pd.DataFrame, classes: Sequence[str]) -> Floats:
    values: NDArray[np.float64] = table[[f"p_{name}" for name in classes]].to_numpy(np.float64)
    return values


def _draws(images: Predictions, settings: Settings) -> Resampling:
    return Resampling(images.patients, settings.resamples, settings.seed)


def share_of(flags: NDArray[np.bool_], patients: NDArray[Any], settings: Settings) -> Mapping[str, Any]:
    """Return the share of images (N,) that are flagged, with its interval over patients."""
    draws = Resampling(patients, settings.resamples, settings.seed)
    return rates([(flags, np.ones(len(flags), bool))], draws)[0].to_json()
