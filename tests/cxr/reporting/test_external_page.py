"""The page of an external test says why there are no scores, and where labels that no class has are counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxr.evaluation.external import CarriedThresholds
from cxr.evaluation.summary import Settings
from cxr.monitoring.external import describe, set_facts
from cxr.reporting.external import render_external, summary_text

CLASSES = ("viral", "bacterial")
FIGURES = dict.fromkeys(("confusion_matrix", "roc", "reliability", "abstention"), "<svg></svg>")
NO_COPIES = pd.DataFrame({"path": []}, dtype=str)


def result_of(
    labels: list[str | None], *, classes: tuple[str, ...] = CLASSES, copies: pd.DataFrame = NO_COPIES
) -> dict[str, Any]:
    """Return external.json of a model, of viral against bacterial; the last image could not be read."""
    n = len(labels)
    shares = np.random.default_rng(0).dirichlet((1,) * len(classes), n)
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(n)],
            "error": [None] * (n - 1) + ["it is damaged"],
            "reason": [None] * (n - 1) + ["damaged"],
            "label": pd.Series(labels, dtype=object),
            "patient": [str(i) for i in range(n)],
            "patient_known": True,
            "warning": None,
            "refer": False,
            "sha256": [f"{i:064x}" for i in range(n)],
            "predicted_class": np.array(classes, object)[shares.argmax(axis=1)],
            "confidence": shares.max(axis=1),
            **{f"p_{name}": shares[:, c] for c, name in enumerate(classes)},
        }
    )
    settings = Settings(resamples=50, seed=1, bins=10)
    found = describe(table, classes, copies, thresholds=CarriedThresholds([], None), settings=settings)
    model = {"name": "m", "version": "1", "engine": "torch", "weights_sha256": "a", "classes": list(classes)}
    return found | {
        "drift": {"unavailable_because": "too few", "alarm": None},
        "model": model | {"synthetic": False, "refer_below": None},
        "set": {"name": "s", "part": None, "sha256": "b", "labelled_by": "table", **set_facts(table)},
        "looks": 1,
        "training_duplicates": {"n": 0, "exact": 0, "near": 0, "near_correlation": 0.98, "limits": ""},
    }


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([None] * 12, "the set has no labels"),
        (["normal"] * 12, "no label is a class of the model"),
        ([None] * 11 + ["viral"], "no image with a label was answered"),
    ],
)
def test_what_is_not_scored_has_its_own_reason(labels: list[str | None], why: str) -> None:
    result = result_of(labels)
    page = render_external(result, {}, [], origin={})
    assert f"Not measured: {why}." in page
    assert why.replace("the set has ", "") in summary_text(result, report=Path("report.html"))


def test_labels_left_out_are_not_said_to_count_where_nothing_counts_them() -> None:
    result = result_of(["normal", "viral", "bacterial"] * 5)
    assert result["labels_left_out"] == {"normal": 5}
    assert result["pneumonia"] is None
    page = render_external(result, FIGURES, [], origin={})
    assert "no class of this model" in page
    assert "they count in pneumonia against normal" not in page


def test_scores_without_copies_name_their_classes_where_these_are_others() -> None:
    """The only images whose kind is known are copies of training images."""
    labels = ["viral", "normal", "pneumonia"] + ["normal", "pneumonia"] * 6
    copies = pd.DataFrame({"path": ["0.png"]})
    result = result_of(labels, classes=("normal", "viral", "bacterial"), copies=copies)
    assert result["without_training_duplicates"]["classes"] == ["normal", "pneumonia"]
    page = render_external(result, FIGURES, [], origin={})
    assert "Of the classes normal, pneumonia." in page
