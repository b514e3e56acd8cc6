"""The summary of an evaluation: from predictions to metrics.json, calibration.json and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from cxr.dataset.blocks import NO_BLOCK
from cxr.evaluation.bootstrap import Intervals, bootstrap_intervals
from cxr.evaluation.calibration import measure_calibration, reliability_table
from cxr.evaluation.calibration_line import calibration_lines
from cxr.evaluation.headline import ERRORS, SCORES
from cxr.evaluation.metrics import Metrics, measure, roc_curves
from cxr.evaluation.predictions import Predictions

_OF_A_SLICE = tuple(metric.name for metric in SCORES if metric.by_source)
_OF_THE_SPLIT = ("protocol", "task", "classes", "synthetic", "test_set_sha256")


@dataclass(frozen=True)
class Settings:
    """Settings of intervals and calibration."""

    resamples: int
    seed: int
    bins: int


def calibration_summary(
    validation: Predictions, test: Predictions, *, temperature: float, bias: Sequence[float], settings: Settings
) -> dict[str, Any]:
    """Return calibration.json: temperature, bias, and the errors before and after them on both splits."""

    def errors(of: Predictions) -> dict[str, Any] | None:
        if not len(of.labels):
            return None
        return {
            name: measure_calibration(of.labels, probabilities, bins=settings.bins).to_json()
            for name, probabilities in (("before", of.uncalibrated), ("after", of.calibrated))
        }

    return {
        "temperature": temperature,
        "bias": list(bias),
        "n_validation": len(validation.labels),
        "bins": settings.bins,
        "validation": errors(validation),
        "test": errors(test),
    }


def summarize(
    test: Predictions, *, calibration: Mapping[str, Any], split: Mapping[str, Any], settings: Settings
) -> dict[str, Any]:
    """Return metrics.json: every metric of the test images from calibrated probabilities, with 95% intervals.

    Args:
        test: the test images.
        calibration: from calibration_summary.
        split: split.json.
        settings: seed, resamples and bins.

    Raises:
        DataError: there are no test images.
    """
    scores = measured_scores(test, settings)
    return {
        **scores,
        "calibration": {
            **scores["calibration"],
            "temperature": calibration["temperature"],
            "bias": calibration["bias"],
        },
        **{key: split[key] for key in _OF_THE_SPLIT},
        "seed": settings.seed,
        "per_source": {
            str(source): slice_scores(test.where(test.sources == source), settings)
            for source in np.unique(test.sources)
        },
        "blocks": split["blocks"],
        "per_block": _by_block(test, settings),
        "per_pair": pair_scores(test, settings),
    }


def measured_scores(images: Predictions, settings: Settings) -> dict[str, Any]:
    """Return what metrics.json says of any labelled images: every metric and its 95% interval, and the calibration.

    Raises:
        DataError: there are no images.
    """
    measured, intervals = _measured(images, settings)
    lines = calibration_lines(images.classes, images.labels, images.calibrated, images.patients)
    shown = {name: None if line is None else line.to_json() for name, line in lines.items()}
    return {
        **{key: value for key, value in measured.to_json().items() if key != "n"},
        "calibration": {
            **measure_calibration(images.labels, images.calibrated, bins=settings.bins).to_json(),
            "bins": settings.bins,
            "lines": shown,
        },
        "ci95": intervals.to_json(),
        "bootstrap": {"resamples": intervals.resamples, "resamples_missing_a_class": intervals.incomplete},
        "n_test": measured.n,
        "n_patients": intervals.patients,
    }


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the defined numbers of metrics.json by the names that the tracking store shows."""
    flat = {f"test_{metric.name}": metric.value_in(metrics) for metric in (*SCORES, *ERRORS)}
    for name, values in metrics["per_class"].items():
        flat |= {f"test_{name}_{figure}": value for figure, value in values.items() if figure != "support"}
    trust = metrics["trust"]
    for point in trust["operating_points"]:
        flat[f"test_sensitivity_at_specificity_{point['target_specificity']:g}"] = point["sensitivity"]["value"]
    if trust["refer"]:
        flat |= {f"test_refer_{name}": trust["refer"][name]["value"] for name in ("coverage", "accuracy_on_kept")}
    if trust["attention"]["heat_inside_thorax"]:
        flat["test_heat_inside_thorax"] = trust["attention"]["heat_inside_thorax"]["value"]
    return {name: value for name, value in flat.items() if value is not None}


def plot_tables(test: Predictions, *, bins: int) -> dict[str, pd.DataFrame]:
    """Return the tables that `./run dvc plots` draws: confusion, roc and reliability."""
    names = np.array(test.classes, dtype=object)
    curves = roc_curves(test.labels, test.calibrated, test.classes)
    roc = [
        pd.DataFrame({"class": name, "fpr": curve.false_positive_rate, "tpr": curve.true_positive_rate})
        for name, curve in curves.items()
    ]
    return {
        "confusion": pd.DataFrame({"actual": names[test.labels], "predicted": names[test.calibrated.argmax(axis=1)]}),
        "roc": pd.concat(roc) if roc else pd.DataFrame(columns=["class", "fpr", "tpr"]),
        "reliability": pd.DataFrame([vars(row) for row in reliability_table(test.labels, test.calibrated, bins=bins)]),
    }


def _measured(images: Predictions, settings: Settings) -> tuple[Metrics, Intervals]:
    return measure(images.labels, images.calibrated, images.classes), bootstrap_intervals(
        images.labels,
        images.calibrated,
        images.patients.tolist(),
        images.classes,
        resamples=settings.resamples,
        seed=settings.seed,
        bins=settings.bins,
    )


def _by_block(test: Predictions, settings: Settings) -> dict[str, Any]:
    """Return the metrics by block of the order of acquisition, "none" without; empty if no image has an order."""
    if (test.blocks == NO_BLOCK).all():
        return {}
    titles = {int(block): "none" if block == NO_BLOCK else str(block) for block in np.unique(test.blocks)}
    return {title: slice_scores(test.where(test.blocks == block), settings) for block, title in titles.items()}


def pair_scores(test: Predictions, settings: Settings) -> dict[str, Any]:
    """Return the metrics of each two classes, from their images alone and as if there were no other class."""
    pairs = {
        f"{test.classes[first]}/{test.classes[second]}": test.between(first, second)
        for first, second in combinations(range(len(test.classes)), 2)
    }
    every = [metric.name for metric in SCORES]
    return {name: slice_scores(images, settings, every) for name, images in pairs.items() if len(images.labels)}


def slice_scores(images: Predictions, settings: Settings, names: Sequence[str] = _OF_A_SLICE) -> dict[str, Any]:
    """Return the metrics `names` of some of the images; averages are over the classes they have."""
    measured, intervals = _measured(images, settings)
    ci95 = intervals.to_json()
    return {
        "n": measured.n,
        "patients": intervals.patients,
        **{name: measured.overall[name] for name in names},
        "missing_classes": list(measured.missing_classes),
        "ci95": {name: ci95.get(name) for name in names},
    }
