"""The gate: every reason to reject or hold a version."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from cxr.common.command_params import PromoteParams
from cxr.dataset.manifest import sha256_of_test_set
from cxr.registry.audit_log import Move
from cxr.registry.champion.promotion import LINEAGE_TAGS, Decision, decide
from cxr.registry.evaluation_artifacts import EvaluationArtifacts

CLASSES = ("normal", "viral", "bacterial")
PARAMS = PromoteParams(
    floors={"accuracy": 0.6, "macro_f1": 0.6, "macro_auroc": 0.75},
    min_class_recall=0.3,
    max_recall_drop=0.1,
    ceilings={"ece": 0.2},
    external_floors={},
    non_inferiority_margin={"accuracy": 0.3, "macro_f1": 0.3},
    resamples=400,
    seed=1,
)
TAGS = {**dict.fromkeys(LINEAGE_TAGS, "x"), "synthetic": "false", "git_dirty": "false"}


def _images(wrong: dict[str, int], per_class: int = 10) -> pd.DataFrame:
    """Return images, a patient each, of which the first `wrong[label]` of a class are called something else."""
    others = {"normal": "viral", "viral": "bacterial", "bacterial": "normal"}
    rows = []
    for label in CLASSES:
        for n in range(per_class):
            called = others[label] if n < wrong.get(label, 0) else label
            sure = {f"p_{name}": 0.9 if name == called else 0.05 for name in CLASSES}
            rows.append(
                {
                    "image_id": f"{label}{n}",
                    "split": "test",
                    "patient_id": f"{label}{n}",
                    "label": label,
                    "predicted_class": called,
                    **sure,
                }
            )
    return pd.DataFrame(rows)


def _of(images: pd.DataFrame, *, tags: dict[str, str] = TAGS, **metrics: Any) -> EvaluationArtifacts:
    """Return artifacts of these images whose metrics.json agrees with them, but for what is given."""
    accuracy = float((images["label"] == images["predicted_class"]).mean())
    agreeing = {
        "accuracy": accuracy,
        "macro_f1": accuracy,
        "macro_auroc": 0.95,
        "calibration": {"ece": 0.05},
        "classes": list(CLASSES),
        "n_test": len(images),
        "test_set_sha256": sha256_of_test_set(images),
    }
    return EvaluationArtifacts(agreeing | metrics, images, tags)


def _artifacts(
    wrong: dict[str, int] | None = None, *, tags: dict[str, str] = TAGS, per_class: int = 10, **metrics: Any
) -> EvaluationArtifacts:
    return _of(_images(wrong or {}, per_class), tags=tags, **metrics)


def _without(artifacts: EvaluationArtifacts, name: str) -> EvaluationArtifacts:
    assert artifacts.metrics is not None
    return replace(artifacts, metrics={key: value for key, value in artifacts.metrics.items() if key != name})


def _against(decision: Decision) -> dict[str, str]:
    """Return what was observed by the checks that made the verdict, by their names."""
    return {check.name: check.observed for check in decision.against}


def test_without_a_champion_the_floors_alone_decide() -> None:
    decision = decide(_artifacts(), None, PARAMS)
    assert decision.decision == "PROMOTE"
    assert [check.name for check in decision.reasons] == [
        "evaluation artifacts",
        "lineage",
        "stored model",
        "accuracy",
        "macro_auroc",
        "macro_f1",
        "recall of normal",
        "recall of viral",
        "recall of bacterial",
        "ece",
    ]


UNDECIDED: list[tuple[str, Callable[[], EvaluationArtifacts], str, str]] = [
    (
        "no metrics",
        lambda: replace(_artifacts(), metrics=None),
        "evaluation artifacts",
        "metrics.json is missing",
    ),
    (
        "no predictions",
        lambda: replace(_artifacts(), images=None),
        "evaluation artifacts",
        "predictions.csv is missing",
    ),
    (
        "no test images",
        lambda: replace(_artifacts(), images=_images({}).iloc[:0]),
        "evaluation artifacts",
        "no test images",
    ),
    (
        "changed",
        lambda: replace(_artifacts(), changed=True),
        "evaluation artifacts",
        "changed after registration",
    ),
    (
        "other count",
        lambda: _artifacts(n_test=7),
        "evaluation artifacts",
        "different number of test images",
    ),
    (
        "no classes",
        lambda: _without(_artifacts(), "classes"),
        "evaluation artifacts",
        "no classes",
    ),
    (
        "other test set",
        lambda: _artifacts(test_set_sha256="0" * 64),
        "evaluation artifacts",
        "another test set",
    ),
    (
        "inflated accuracy",
        lambda: _artifacts({"normal": 3}, accuracy=0.99),
        "evaluation artifacts",
        "0.900",
    ),
    (
        "inflated classes",
        lambda: _of(_images({"normal": 3}).assign(predicted_class=_images({})["label"])),
        "evaluation artifacts",
        "3 images",
    ),
    (
        "no probabilities",
        lambda: _of(_images({}).drop(columns=[f"p_{name}" for name in CLASSES])),
        "evaluation artifacts",
        "no probabilities",
    ),
    *(
        (
            f"no {name}",
            lambda name=name: _artifacts(tags={**TAGS, name: "none"}),
            "lineage",
            f"{name} missing",
        )
        for name in LINEAGE_TAGS
    ),
    (
        "code in no commit",
        lambda: _artifacts(tags={**TAGS, "git_dirty": "true"}),
        "lineage",
        "git_commit",
    ),
    (
        "missing metric",
        lambda: _without(_artifacts(), "macro_auroc"),
        "macro_auroc",
        "missing",
    ),
    (
        "NaN metric",
        lambda: _artifacts(macro_f1=float("nan")),
        "macro_f1",
        "not a finite number",
    ),
    (
        "metric that is no number",
        lambda: _artifacts(macro_f1=True),
        "macro_f1",
        "not a finite number",
    ),
    (
        "a class without test images",
        lambda: _of(_images({}).query("label != 'viral'")),
        "recall of viral",
        "missing",
    ),
    (
        "calibration not measured",
        lambda: _without(_artifacts(), "calibration"),
        "ece",
        "missing",
    ),
]

REJECTED: list[tuple[str, Callable[[], EvaluationArtifacts], str, str]] = [
    ("below a floor", lambda: _artifacts(macro_f1=0.5), "macro_f1", "0.500"),
    ("blind to a class", lambda: _artifacts({"viral": 8}), "recall of viral", "0.200"),
    (
        "uncalibrated",
        lambda: _artifacts(calibration={"ece": 0.3}),
        "ece",
        "0.300",
    ),
]


@pytest.mark.parametrize(
    ("challenger", "check", "observed"), [row[1:] for row in UNDECIDED], ids=[row[0] for row in UNDECIDED]
)
def test_what_is_missing_or_contradictory_holds(
    challenger: Callable[[], EvaluationArtifacts], check: str, observed: str
) -> None:
    decision = decide(challenger(), None, PARAMS)
    assert decision.decision == "HOLD"
    assert observed in _against(decision)[check]


@pytest.mark.parametrize(
    ("challenger", "check", "observed"), [row[1:] for row in REJECTED], ids=[row[0] for row in REJECTED]
)
def test_a_rejection_names_check_and_value(
    challenger: Callable[[], EvaluationArtifacts], check: str, observed: str
) -> None:
    decision = decide(challenger(), None, PARAMS)
    assert decision.decision == "REJECT"
    assert observed in _against(decision)[check]


def test_a_failed_check_rejects_although_another_is_undecided() -> None:
    decision = decide(replace(_artifacts(macro_f1=0.5), changed=True), None, PARAMS)
    assert decision.decision == "REJECT"
    assert _against(decision) == {"macro_f1": "0.500"}


def _external(accuracy: float, *, unseen: float | None = None) -> dict[str, Any]:
    """Return an external test, with another accuracy where copies of training images are left out."""
    scored = {"classes": list(CLASSES), "accuracy": accuracy}
    without = None if unseen is None else scored | {"accuracy": unseen}
    return scored | {"set": {"name": "clinic-a"}, "without_training_duplicates": without}


@pytest.mark.parametrize(
    ("external", "verdict", "observed"),
    [
        ([_external(0.9)], "PROMOTE", None),
        ([_external(0.9), _external(0.7)], "REJECT", {"accuracy on clinic-a": "0.700"}),
        ([_external(0.9, unseen=0.7)], "REJECT", {"accuracy on clinic-a": "0.700"}),
        ([], "HOLD", {"external tests": "none with labels"}),
        ([{"classes": []}], "HOLD", {"external tests": "none with labels"}),
        ([_external(0.9), None], "HOLD", {"external tests": "one is lost or was changed"}),
    ],
)
def test_floors_hold_on_every_external_set_without_copies_of_training_images(
    external: list[dict[str, Any] | None], verdict: str, observed: dict[str, str] | None
) -> None:
    asked = PARAMS.model_copy(update={"external_floors": {"accuracy": 0.8}})
    decision = decide(_artifacts(), None, asked, external=external)
    assert decision.decision == verdict
    assert observed is None or _against(decision) == observed
    assert decide(_artifacts(), None, PARAMS, external=external).decision == "PROMOTE"


def test_a_model_of_the_sample_needs_no_commit() -> None:
    tags = {**TAGS, "synthetic": "true", "git_commit": "none", "git_dirty": "none"}
    assert decide(_artifacts(tags=tags), None, PARAMS).decision == "PROMOTE"
    without_lock = decide(_artifacts(tags={**tags, "dvc_lock_sha256": "none"}), None, PARAMS)
    assert [check.observed for check in without_lock.against] == ["dvc_lock_sha256 missing"]


def test_a_model_that_the_store_has_lost_is_held() -> None:
    decision = decide(_artifacts(), None, PARAMS, broken_bundle="the store has lost model.safetensors")
    assert decision.decision == "HOLD"
    assert _against(decision) == {"stored model": "the store has lost model.safetensors"}


def test_a_worse_viral_recall_is_rejected_although_accuracy_rises() -> None:
    champion, challenger = _artifacts({"normal": 6}), _artifacts({"viral": 2})
    decision = decide(challenger, champion, PARAMS)
    assert decision.decision == "REJECT"
    assert _against(decision) == {"recall of viral against the champion": "0.800"}


def test_a_drop_of_exactly_the_margin_passes() -> None:
    assert decide(_artifacts({"viral": 3}), _artifacts({"viral": 2}), PARAMS).decision == "PROMOTE"


def _compared(challenger: EvaluationArtifacts, champion: EvaluationArtifacts, margin: float) -> Decision:
    """Decide with a margin for the paired comparison and a recall that may drop as far as it likes."""
    loose = PARAMS.model_copy(
        update={
            "non_inferiority_margin": {"accuracy": margin, "macro_f1": margin},
            "max_recall_drop": 1.0,
            "min_class_recall": 0.0,
        }
    )
    return decide(challenger, champion, loose)


def test_the_paired_comparison_rejects_a_certain_loss_beyond_the_margin() -> None:
    champion, challenger = _artifacts(per_class=40), _artifacts(dict.fromkeys(CLASSES, 8), per_class=40)
    decision = _compared(challenger, champion, 0.05)
    assert decision.decision == "REJECT"
    assert [check.name for check in decision.against] == [
        "accuracy against the champion",
        "macro_f1 against the champion",
    ]
    assert decision.against[0].observed.startswith("-0.200 (-0.2")
    assert decision.against[0].required == "no loss beyond 0.050, at 95%"


def test_the_paired_comparison_passes_where_a_loss_beyond_the_margin_is_ruled_out() -> None:
    champion, challenger = _artifacts(per_class=40), _artifacts(dict.fromkeys(CLASSES, 8), per_class=40)
    assert _compared(challenger, champion, 0.35).decision == "PROMOTE"
    assert _compared(champion, champion, 0.0).decision == "PROMOTE"


def test_the_paired_comparison_holds_where_the_images_are_too_few_to_tell() -> None:
    champion = _artifacts({"normal": 3})
    challenger = _artifacts({"viral": 4})
    decision = _compared(challenger, champion, 0.05)
    assert decision.decision == "HOLD"
    assert [check.name for check in decision.against] == [
        "accuracy against the champion",
        "macro_f1 against the champion",
    ]


def test_images_of_too_few_patients_allow_no_comparison() -> None:
    few = _of(_images({}).assign(patient_id="one"))
    decision = _compared(few, few, 0.05)
    assert decision.decision == "HOLD"
    assert [check.observed for check in decision.against] == ["+0.000, too few patients for an interval"] * 2


def test_patients_that_differ_between_the_two_are_no_comparison() -> None:
    other = _of(_images({}).assign(patient_id=lambda images: "x" + images["patient_id"]))
    decision = decide(_artifacts(), other, PARAMS)
    assert decision.decision == "HOLD"
    assert "30 images have another patient_id" in decision.against[0].observed


def test_a_champion_evaluated_on_other_images_is_no_comparison() -> None:
    challenger = _artifacts()
    other = _of(_images({}).replace({"image_id": {"normal0": "another"}}))
    decision = decide(challenger, other, PARAMS)
    assert decision.decision == "HOLD"
    assert _against(decision) == {"test set": challenger.test_set_sha256[:12]}
    assert "./run reevaluate" in decision.against[0].required


def test_a_champion_without_evaluation_artifacts_is_no_comparison() -> None:
    champion = replace(_artifacts(), metrics=None)
    decision = decide(_artifacts(), champion, PARAMS)
    assert decision.decision == "HOLD"
    assert list(_against(decision)) == ["champion's evaluation artifacts"]


def test_a_synthetic_champion_is_replaced_by_a_model_of_real_images() -> None:
    champion = _artifacts(tags={**TAGS, "synthetic": "true"}, test_set_sha256="0" * 64)
    decision = decide(_artifacts(), champion, PARAMS)
    assert decision.decision == "PROMOTE"
    assert "synthetic sample" in decision.reasons[-1].observed


def test_a_synthetic_challenger_does_not_replace_a_champion_of_real_images() -> None:
    challenger = _artifacts(tags={**TAGS, "synthetic": "true"})
    assert decide(challenger, _of(_images({}).iloc[3:]), PARAMS).decision == "HOLD"


def test_a_version_that_was_rolled_back_is_held() -> None:
    move = Move(3, "2026-01-02T03:04:05+00:00", "rollback", "2", "1", "ann", "misses effusions", "")
    decision = decide(_artifacts(), None, PARAMS, rolled_back=move)
    assert decision.decision == "HOLD"
    assert _against(decision) == {"audit log": "rolled back on 2026-01-02T03:04:05+00:00 by ann (misses effusions)"}
