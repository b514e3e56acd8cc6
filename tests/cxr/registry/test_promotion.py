"""The gate: every way to be refused or held, in the words that a person reads."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from cxr.common.params import PromoteParams
from cxr.registry.audit_log import Move
from cxr.registry.evaluation_artifacts import EvaluationArtifacts
from cxr.registry.promotion import LINEAGE_TAGS, Decision, decide

CLASSES = ("normal", "viral", "bacterial")
PARAMS = PromoteParams(
    floors={"accuracy": 0.6, "macro_f1": 0.6, "macro_auroc": 0.75},
    min_class_recall=0.3,
    max_recall_drop=0.1,
    max_ece=0.2,
    non_inferiority_margin={"accuracy": 0.3, "macro_f1": 0.3},
    resamples=400,
    seed=1,
)
TAGS = {**dict.fromkeys(LINEAGE_TAGS, "x"), "synthetic": "false", "git_dirty": "false"}
FILES = "metrics.json and predictions.csv as registered, agreeing with each other"


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
                    "patient_id": f"{label}{n}",
                    "label": label,
                    "predicted_class": called,
                    **sure,
                }
            )
    return pd.DataFrame(rows)


def _of(images: pd.DataFrame, *, tags: dict[str, str] = TAGS, **metrics: Any) -> EvaluationArtifacts:
    """Return evidence of these images whose metrics.json agrees with them, but for what is given."""
    accuracy = float((images["label"] == images["predicted_class"]).mean())
    told = {
        "accuracy": accuracy,
        "macro_f1": accuracy,
        "macro_auroc": 0.95,
        "calibration": {"ece": 0.05},
        "classes": list(CLASSES),
        "n_test": len(images),
        "test_set_sha256": EvaluationArtifacts({}, images, tags).test_set_sha256,
    }
    return EvaluationArtifacts(told | metrics, images, tags)


def _evidence(
    wrong: dict[str, int] | None = None, *, tags: dict[str, str] = TAGS, per_class: int = 10, **metrics: Any
) -> EvaluationArtifacts:
    return _of(_images(wrong or {}, per_class), tags=tags, **metrics)


def _without(evidence: EvaluationArtifacts, name: str) -> EvaluationArtifacts:
    assert evidence.metrics is not None
    return replace(evidence, metrics={key: value for key, value in evidence.metrics.items() if key != name})


def _against(decision: Decision) -> list[str]:
    return [str(check) for check in decision.against]


def test_good_evidence_and_no_champion_is_promoted_on_the_floors_alone() -> None:
    decision = decide(_evidence(), None, PARAMS)
    assert decision.decision == "PROMOTE"
    assert [check.name for check in decision.reasons] == [
        "evidence",
        "lineage",
        "stored model",
        "accuracy",
        "macro_auroc",
        "macro_f1",
        "recall of normal",
        "recall of viral",
        "recall of bacterial",
        "calibration error",
    ]


UNDECIDED: list[tuple[str, Callable[[], EvaluationArtifacts], str]] = [
    (
        "no metrics",
        lambda: replace(_evidence(), metrics=None),
        f"evidence: metrics.json is missing or not JSON, required {FILES}",
    ),
    (
        "no predictions",
        lambda: replace(_evidence(), images=None),
        f"evidence: predictions.csv is missing or not a table of predictions, required {FILES}",
    ),
    (
        "no test images",
        lambda: replace(_evidence(), images=_images({}).iloc[:0]),
        f"evidence: predictions.csv has no test images, required {FILES}",
    ),
    (
        "changed",
        lambda: replace(_evidence(), changed=True),
        f"evidence: the files were changed after registration, required {FILES}",
    ),
    (
        "other count",
        lambda: _evidence(n_test=7),
        f"evidence: metrics.json counts other test images than predictions.csv, required {FILES}",
    ),
    (
        "no classes",
        lambda: _without(_evidence(), "classes"),
        f"evidence: metrics.json names no classes, required {FILES}",
    ),
    (
        "other test set",
        lambda: _evidence(test_set_sha256="0" * 64),
        f"evidence: predictions.csv is of another test set than metrics.json, required {FILES}",
    ),
    (
        "embellished accuracy",
        lambda: _evidence({"normal": 3}, accuracy=0.99),
        f"evidence: metrics.json says accuracy 0.990, predictions.csv gives 0.900, required {FILES}",
    ),
    (
        "embellished classes",
        lambda: _of(_images({"normal": 3}).assign(predicted_class=_images({})["label"])),
        f"evidence: predictions.csv calls 3 images other than their most probable class, required {FILES}",
    ),
    (
        "no probabilities",
        lambda: _of(_images({}).drop(columns=[f"p_{name}" for name in CLASSES])),
        f"evidence: predictions.csv has no probabilities, required {FILES}",
    ),
    *(
        (
            f"no {name}",
            lambda name=name: _evidence(tags={**TAGS, name: "none"}),
            f"lineage: {name} missing, required {', '.join(LINEAGE_TAGS)}",
        )
        for name in LINEAGE_TAGS
    ),
    (
        "code in no commit",
        lambda: _evidence(tags={**TAGS, "git_dirty": "true"}),
        f"lineage: the tree differed from git_commit, so its code is in no commit, required {', '.join(LINEAGE_TAGS)}",
    ),
    (
        "missing metric",
        lambda: _without(_evidence(), "macro_auroc"),
        "macro_auroc: missing or not a finite number, required at least 0.750",
    ),
    (
        "NaN metric",
        lambda: _evidence(macro_f1=float("nan")),
        "macro_f1: missing or not a finite number, required at least 0.600",
    ),
    (
        "metric that is no number",
        lambda: _evidence(macro_f1=True),
        "macro_f1: missing or not a finite number, required at least 0.600",
    ),
    (
        "a class without test images",
        lambda: _of(_images({}).query("label != 'viral'")),
        "recall of viral: missing or not a finite number, required at least 0.300",
    ),
    (
        "calibration not measured",
        lambda: _without(_evidence(), "calibration"),
        "calibration error: missing or not a finite number, required at most 0.200",
    ),
]

REFUSED: list[tuple[str, Callable[[], EvaluationArtifacts], str]] = [
    ("below a floor", lambda: _evidence(macro_f1=0.5), "macro_f1: 0.500, required at least 0.600"),
    ("blind to a class", lambda: _evidence({"viral": 8}), "recall of viral: 0.200, required at least 0.300"),
    (
        "uncalibrated",
        lambda: _evidence(calibration={"ece": 0.3}),
        "calibration error: 0.300, required at most 0.200",
    ),
]


@pytest.mark.parametrize(("challenger", "reason"), [row[1:] for row in UNDECIDED], ids=[row[0] for row in UNDECIDED])
def test_what_is_missing_or_contradictory_holds_and_says_so(
    challenger: Callable[[], EvaluationArtifacts], reason: str
) -> None:
    decision = decide(challenger(), None, PARAMS)
    assert decision.decision == "HOLD"
    assert reason in _against(decision)


@pytest.mark.parametrize(("challenger", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_refusal_says_what_was_seen_and_what_is_required(
    challenger: Callable[[], EvaluationArtifacts], reason: str
) -> None:
    decision = decide(challenger(), None, PARAMS)
    assert decision.decision == "REJECT"
    assert reason in _against(decision)


def test_what_is_not_good_enough_is_refused_though_something_else_is_undecided() -> None:
    decision = decide(replace(_evidence(macro_f1=0.5), changed=True), None, PARAMS)
    assert decision.decision == "REJECT"
    assert _against(decision) == ["macro_f1: 0.500, required at least 0.600"]


def test_a_model_of_the_sample_needs_no_commit() -> None:
    tags = {**TAGS, "synthetic": "true", "git_commit": "none", "git_dirty": "none"}
    assert decide(_evidence(tags=tags), None, PARAMS).decision == "PROMOTE"
    without_lock = decide(_evidence(tags={**tags, "dvc_lock_sha256": "none"}), None, PARAMS)
    assert [check.observed for check in without_lock.against] == ["dvc_lock_sha256 missing"]


def test_a_model_that_the_store_has_lost_is_held() -> None:
    decision = decide(_evidence(), None, PARAMS, broken_bundle="the store has lost model.safetensors")
    assert decision.decision == "HOLD"
    assert _against(decision) == ["stored model: the store has lost model.safetensors, required the registered digests"]


def test_a_worse_viral_recall_is_refused_with_that_reason_though_accuracy_rises() -> None:
    champion, challenger = _evidence({"normal": 6}), _evidence({"viral": 2})
    decision = decide(challenger, champion, PARAMS)
    assert decision.decision == "REJECT"
    assert _against(decision) == [
        "recall of viral against the champion: 0.800, required at least 0.900 (champion 1.000)"
    ]


def test_a_drop_of_exactly_the_margin_passes() -> None:
    assert decide(_evidence({"viral": 3}), _evidence({"viral": 2}), PARAMS).decision == "PROMOTE"


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


def test_the_paired_comparison_refuses_a_certain_loss_beyond_the_margin() -> None:
    champion, challenger = _evidence(per_class=40), _evidence(dict.fromkeys(CLASSES, 8), per_class=40)
    decision = _compared(challenger, champion, 0.05)
    assert decision.decision == "REJECT"
    assert [check.name for check in decision.against] == [
        "accuracy against the champion",
        "macro_f1 against the champion",
    ]
    assert decision.against[0].observed.startswith("-0.200 (-0.2")
    assert decision.against[0].required == "no loss beyond 0.050, at 95%"


def test_the_paired_comparison_passes_where_a_loss_beyond_the_margin_is_ruled_out() -> None:
    champion, challenger = _evidence(per_class=40), _evidence(dict.fromkeys(CLASSES, 8), per_class=40)
    assert _compared(challenger, champion, 0.35).decision == "PROMOTE"
    assert _compared(champion, champion, 0.0).decision == "PROMOTE"


def test_the_paired_comparison_holds_where_the_images_are_too_few_to_tell() -> None:
    champion = _evidence({"normal": 3})
    challenger = _evidence({"viral": 4})
    decision = _compared(challenger, champion, 0.05)
    assert decision.decision == "HOLD"
    assert [check.name for check in decision.against] == [
        "accuracy against the champion",
        "macro_f1 against the champion",
    ]


def test_images_of_too_few_patients_carry_no_comparison() -> None:
    few = _of(_images({}).assign(patient_id="one"))
    decision = _compared(few, few, 0.05)
    assert decision.decision == "HOLD"
    assert [check.observed for check in decision.against] == ["+0.000, too few patients for an interval"] * 2


def test_patients_that_differ_between_the_two_are_no_comparison() -> None:
    other = _of(_images({}).assign(patient_id=lambda images: "x" + images["patient_id"]))
    decision = decide(_evidence(), other, PARAMS)
    assert decision.decision == "HOLD"
    assert "30 images have another patient_id" in decision.against[0].observed


def test_a_champion_measured_on_other_images_is_no_comparison() -> None:
    challenger = _evidence()
    other = _of(_images({}).replace({"image_id": {"normal0": "another"}}))
    decision = decide(challenger, other, PARAMS)
    assert decision.decision == "HOLD"
    assert _against(decision) == [
        f"test set: {challenger.test_set_sha256[:12]}, required the champion's, {other.test_set_sha256[:12]}; "
        "`python -m tasks.reevaluate` measures the champion on the present test images"
    ]


def test_a_champion_without_evidence_is_no_comparison() -> None:
    champion = replace(_evidence(), metrics=None)
    decision = decide(_evidence(), champion, PARAMS)
    assert decision.decision == "HOLD"
    assert _against(decision) == [
        "champion's evidence: metrics.json is missing or not JSON, required complete, to compare with"
    ]


def test_a_synthetic_champion_gives_way_to_real_images_and_the_record_says_why() -> None:
    champion = _evidence(tags={**TAGS, "synthetic": "true"}, test_set_sha256="0" * 64)
    decision = decide(_evidence(), champion, PARAMS)
    assert decision.decision == "PROMOTE"
    assert decision.reasons[-1].observed == (
        "the champion was trained on the synthetic sample, which is no evidence on real images"
    )


def test_a_synthetic_challenger_does_not_replace_a_champion_of_real_images() -> None:
    challenger = _evidence(tags={**TAGS, "synthetic": "true"})
    assert decide(challenger, _of(_images({}).iloc[3:]), PARAMS).decision == "HOLD"


def test_a_version_that_was_rolled_back_is_held() -> None:
    move = Move(3, "2026-01-02T03:04:05+00:00", "rollback", "2", "1", "ann", "misses effusions", "")
    decision = decide(_evidence(), None, PARAMS, rolled_back=move)
    assert decision.decision == "HOLD"
    assert _against(decision) == [
        "record: rolled back on 2026-01-02T03:04:05+00:00 by ann (misses effusions), required never rolled back"
    ]
