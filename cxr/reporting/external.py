"""The page of an external test: one self-contained HTML file that shows external.json in words, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxr.common.notices import NOT_CLINICAL, SYNTHETIC, notice
from cxr.evaluation.calibration import reliability_table
from cxr.evaluation.headline import HEADLINES, SCORES, Headline
from cxr.evaluation.metrics import roc_curves
from cxr.evaluation.predictions import Predictions
from cxr.reporting import figures
from cxr.reporting.front_page import FrontPage, how_good, what_it_is, where_it_fails, with_contents
from cxr.reporting.report import GalleryItem
from cxr.reporting.templating import render


def render_external(
    result: Mapping[str, Any],
    drawn: Mapping[str, str],
    errors: Sequence[GalleryItem],
    *,
    origin: Mapping[str, str],
) -> str:
    """Return the page as HTML.

    Args:
        result: external.json, see tasks.external.
        drawn: of `external_figures`; empty without labels.
        errors: the most confident errors.
        origin: date, commit, version and role of the model, as the registry knows them.
    """
    content = {
        "result": result,
        "figures": drawn,
        "errors": errors,
        "front": _front_page(result, origin),
        "headlines": HEADLINES,
        "scores": SCORES,
        "not_clinical": NOT_CLINICAL,
        "synthetic_notice": SYNTHETIC,
    }
    return with_contents(render("external.html.j2", content))


def _front_page(result: Mapping[str, Any], origin: Mapping[str, str]) -> FrontPage:
    model, facts, scored = result["model"], result["set"], bool(result["classes"])
    unlike = result["out_of_distribution"]["n"]
    differ = f"Drift from the images it was tested on: {_drift(result)}."
    return FrontPage(
        sentences={
            "What it is": what_it_is(model["classes"], network="A network, tested here on a set from elsewhere,"),
            "How good it is": how_good(result) if scored else f"Not measured: {_why_not_scored(result)}.",
            "On whom": _on_whom(result),
            "Where it fails": where_it_fails(result) if scored else "Not known without scores.",
            "Do the images resemble its own": f"{unlike:,} of {facts['n_answered']:,} get a warning. {differ}",
        },
        facts={**origin, "Set": facts["name"], "Engine": model["engine"]},
    )


def _why_not_scored(result: Mapping[str, Any]) -> str:
    if not result["set"]["n_labelled"]:
        return "the set has no labels"
    return "no label is a class of the model" if result["labels_left_out"] else "no image with a label was answered"


def _on_whom(result: Mapping[str, Any]) -> str:
    facts, copies = result["set"], result["training_duplicates"]["n"]
    people = f" of {facts['n_patients']:,} patients" if facts["patients_known"] else ", whose patients are not known"
    known = f"{copies:,} are copies of images it was trained or tuned on" if copies else "it has seen no copy of them"
    return f"{facts['n_images']:,} images{people}; {known}."


def external_figures(
    scored: Predictions | None, pneumonia: Predictions | None, result: Mapping[str, Any]
) -> dict[str, str]:
    """Return the figures as SVG by name, as far as the labels allow them.

    Args:
        scored: the images of the scores at the top of the result.
        pneumonia: all images as normal or pneumonia.
        result: external.json.
    """
    if scored is None:
        return {}
    bins = reliability_table(scored.labels, scored.calibrated, bins=result["calibration"]["bins"])
    drawn = {
        "confusion_matrix": figures.confusion_matrix(result["confusion_matrix"], scored.classes),
        "roc": figures.roc(
            roc_curves(scored.labels, scored.calibrated, scored.classes),
            result["per_class"],
            result["ci95"]["per_class"],
        ),
        "reliability": figures.reliability((), bins),
        "abstention": figures.abstention(result["referral"]["curve"], result["referral"]["found"]),
    }
    if pneumonia is not None and result["pneumonia"]["operating_points"]:
        curves = roc_curves(pneumonia.labels.astype(np.int64), pneumonia.calibrated, pneumonia.classes)
        if "pneumonia" in curves:
            points = result["pneumonia"]["operating_points"]
            drawn["operating_points"] = figures.operating_points(curves["pneumonia"], points)
    return drawn


def summary_text(result: Mapping[str, Any], *, report: Path) -> str:
    """Return the headline metrics of external.json as lines for people; `report` is the page."""
    facts, model = result["set"], result["model"]
    lines = [f"{model['name']}, version {model['version']}, on {facts['name']}: {facts['n_answered']} images answered"]
    parts = {"": result, " without copies of training images": result["without_training_duplicates"]}
    for title, part in parts.items():
        if part and part["classes"]:
            lines.append(f"{', '.join(part['classes'])}; {part['n_test']} images{title}")
            lines += [f"  {metric.label:<26} {_shown(metric, part)}" for metric in HEADLINES]
    if not result["classes"]:
        lines.append(f"{_why_not_scored(result)}: answers are described and not scored (--labels names a table)")
    copies, odd = result["training_duplicates"], result["out_of_distribution"]["n"]
    lines.append(f"copies of training images {copies['n']}, out of distribution {odd}, drift: {_drift(result)}")
    return "\n".join([*lines, f"report: {report}", notice(synthetic=model["synthetic"])])


def _shown(metric: Headline, part: Mapping[str, Any]) -> str:
    value, interval = metric.value_in(part), metric.interval_in(part)
    limits = f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return "not defined" if value is None else f"{value:.3f}{limits}"


def _drift(result: Mapping[str, Any]) -> str:
    found = result["drift"]
    return str(found["unavailable_because"] or (", ".join(found["exceeded"]) if found["alarm"] else "none"))
