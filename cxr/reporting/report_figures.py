"""Which figures a report shows, from its tables; cxr/reporting/figures.py draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr.audit.trust import decision_scores
from cxr.evaluation.calibration import reliability_table
from cxr.evaluation.metrics import roc_curves
from cxr.evaluation.predictions import Predictions
from cxr.reporting import figures

if TYPE_CHECKING:
    import pandas as pd


def draw_figures(
    test: Predictions, metrics: Mapping[str, Any], *, curves: pd.DataFrame, best_epoch: int
) -> dict[str, str]:
    """Return the figures as SVG by name; `curves` is the table curves.csv."""
    bins, classes = metrics["calibration"]["bins"], test.classes
    before, after = (reliability_table(test.labels, p, bins=bins) for p in (test.uncalibrated, test.calibrated))
    return {
        "training_curves": figures.training_curves(
            {str(name): curves[name].tolist() for name in curves}, best_epoch=best_epoch
        ),
        "confusion_matrix": figures.confusion_matrix(metrics["confusion_matrix"], classes),
        "roc": figures.roc(
            roc_curves(test.labels, test.calibrated, classes), metrics["per_class"], metrics["ci95"]["per_class"]
        ),
        "reliability": figures.reliability(before, after),
        "probabilities": figures.probability_histogram(test.labels, test.calibrated, classes),
    }


def trust_figures(trust: Mapping[str, Any], test: Predictions) -> dict[str, str]:
    """Return the figures of trust.json as SVG by name; a figure without data is left out."""
    drawn = {"abstention": figures.abstention(trust["referral"]["curve"], trust["referral"]["found"])}
    if trust["decisions"]:
        drawn["decisions"] = figures.decision_curves(trust["decisions"])
    decision = decision_scores(test, "pneumonia")
    if decision is not None and trust["operating_points"]["points"]:
        scores, positive = decision
        pair = np.stack([1 - scores, scores], axis=1)
        curves = roc_curves(positive.astype(np.int64), pair, ("normal", "pneumonia"))
        if curves:
            drawn["operating_points"] = figures.operating_points(
                curves["pneumonia"], trust["operating_points"]["points"]
            )
    return drawn


def audit_figures(audit: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures of an audit as SVG by name: `audit_views`, the scores with a part of each image removed."""
    rows = {view["title"]: view for view in audit["views"].values()}
    return {"audit_views": figures.scores_with_intervals(rows)}
