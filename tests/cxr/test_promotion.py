"""The gate: every way to be refused, in the words that a person reads."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cxr.ledger import Move
from cxr.params import PromoteParams
from cxr.promotion import LINEAGE_TAGS, Decision, Evidence, TestFilm, decide, evidence_digest, read_evidence

CLASSES = ("normal", "viral", "bacterial")
PARAMS = PromoteParams(
    floors={"accuracy": 0.6, "macro_f1": 0.6, "macro_auroc": 0.75},
    min_class_recall=0.3,
    max_recall_drop=0.1,
    max_ece=0.2,
)
TAGS = {**dict.fromkeys(LINEAGE_TAGS, "x"), "synthetic": "false"}
FILES = "metrics.json and predictions.csv as registered, agreeing with each other"


def _films(wrong: dict[str, int], per_class: int = 10) -> tuple[TestFilm, ...]:
    """Return films of which the first `wrong[label]` of a class are called something else."""
    others = {"normal": "viral", "viral": "bacterial", "bacterial": "normal"}
    return tuple(
        TestFilm(f"{label}{n}", label, others[label] if n < wrong.get(label, 0) else label)
        for label in CLASSES
        for n in range(per_class)
    )


def _evidence(wrong: dict[str, int] | None = None, *, tags: dict[str, str] = TAGS, **metrics: Any) -> Evidence:
    films = _films(wrong or {})
    found = Evidence({}, films, tags)
    accuracy = sum(film.label == film.predicted_class for film in films) / len(films)
    told = {
        "accuracy": accuracy,
        "macro_f1": accuracy,
        "macro_auroc": 0.95,
        "calibration": {"ece": 0.05},
        "classes": list(CLASSES),
        "n_test": len(films),
        "test_set_sha256": found.test_set_sha256,
    }
    return replace(found, metrics=told | metrics)


def _without(evidence: Evidence, name: str) -> Evidence:
    assert evidence.metrics is not None
    return replace(evidence, metrics={key: value for key, value in evidence.metrics.items() if key != name})


def _refusals(decision: Decision) -> list[str]:
    return [str(check) for check in decision.refusals]


def test_good_evidence_and_no_champion_is_promoted_on_the_floors_alone() -> None:
    decision = decide(_evidence(), None, PARAMS)
    assert decision.decision == "PROMOTE"
    assert [check.name for check in decision.reasons] == [
        "evidence",
        "lineage",
        "accuracy",
        "macro_auroc",
        "macro_f1",
        "recall of normal",
        "recall of viral",
        "recall of bacterial",
        "calibration error",
    ]


REFUSED: list[tuple[str, Callable[[], Evidence], str]] = [
    (
        "no metrics",
        lambda: replace(_evidence(), metrics=None),
        f"evidence: metrics.json is missing or not JSON, required {FILES}",
    ),
    (
        "no predictions",
        lambda: replace(_evidence(), test_films=None),
        f"evidence: predictions.csv is missing or not a table of predictions, required {FILES}",
    ),
    (
        "no test films",
        lambda: replace(_evidence(), test_films=()),
        f"evidence: predictions.csv has no test films, required {FILES}",
    ),
    (
        "changed",
        lambda: replace(_evidence(), changed=True),
        f"evidence: the files were changed after registration, required {FILES}",
    ),
    (
        "other count",
        lambda: _evidence(n_test=7),
        f"evidence: metrics.json counts other test films than predictions.csv, required {FILES}",
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
        "no lineage",
        lambda: _evidence(tags={**TAGS, "params_sha256": "none", "protocol": ""}),
        f"lineage: params_sha256, protocol missing, required {', '.join(LINEAGE_TAGS)}",
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
    ("below a floor", lambda: _evidence(macro_f1=0.5), "macro_f1: 0.500, required at least 0.600"),
    ("blind to a class", lambda: _evidence({"viral": 8}), "recall of viral: 0.200, required at least 0.300"),
    (
        "uncalibrated",
        lambda: _evidence(calibration={"ece": 0.3}),
        "calibration error: 0.300, required at most 0.200",
    ),
    (
        "calibration not measured",
        lambda: _without(_evidence(), "calibration"),
        "calibration error: missing or not a finite number, required at most 0.200",
    ),
]


@pytest.mark.parametrize(("challenger", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_refusal_says_what_was_seen_and_what_is_required(challenger: Callable[[], Evidence], reason: str) -> None:
    decision = decide(challenger(), None, PARAMS)
    assert decision.decision == "REJECT"
    assert reason in _refusals(decision)


def test_a_class_without_test_films_is_refused() -> None:
    films = tuple(film for film in _films({}) if film.label != "viral")
    digest = Evidence({}, films, TAGS).test_set_sha256
    challenger = replace(_evidence(n_test=20, test_set_sha256=digest), test_films=films)
    expected = ["recall of viral: missing or not a finite number, required at least 0.300"]
    assert _refusals(decide(challenger, None, PARAMS)) == expected


def test_a_drop_of_one_class_beyond_the_margin_is_refused_though_accuracy_rises() -> None:
    champion, challenger = _evidence({"normal": 6}), _evidence({"viral": 2})
    assert _refusals(decide(challenger, champion, PARAMS)) == [
        "recall of viral against the champion: 0.800, required at least 0.900 (champion 1.000)"
    ]


def test_a_drop_of_exactly_the_margin_passes() -> None:
    assert decide(_evidence({"viral": 3}), _evidence({"viral": 2}), PARAMS).decision == "PROMOTE"


def test_a_champion_measured_on_other_films_is_no_comparison() -> None:
    champion = _evidence()
    assert champion.test_films is not None
    films = (*champion.test_films[1:], TestFilm("another", "normal", "normal"))
    other = replace(champion, test_films=films)
    assert champion.metrics is not None
    other = replace(other, metrics={**champion.metrics, "test_set_sha256": other.test_set_sha256})
    challenger = _evidence()
    assert _refusals(decide(challenger, other, PARAMS)) == [
        f"test set: {challenger.test_set_sha256[:12]}, required the champion's, {other.test_set_sha256[:12]}"
    ]


def test_a_champion_without_evidence_is_no_comparison() -> None:
    champion = replace(_evidence(), metrics=None)
    assert _refusals(decide(_evidence(), champion, PARAMS)) == [
        "champion's evidence: metrics.json is missing or not JSON, required complete, to compare with"
    ]


def test_a_synthetic_champion_gives_way_to_real_films_and_the_record_says_why() -> None:
    champion = _evidence(tags={**TAGS, "synthetic": "true"}, test_set_sha256="0" * 64)
    decision = decide(_evidence(), champion, PARAMS)
    assert decision.decision == "PROMOTE"
    assert decision.reasons[-1].observed == (
        "the champion was trained on the synthetic sample, which is no evidence on real films"
    )


def test_a_synthetic_challenger_does_not_replace_a_champion_of_real_films() -> None:
    challenger = _evidence(tags={**TAGS, "synthetic": "true"})
    champion = _evidence()
    assert champion.test_films is not None
    films = champion.test_films[3:]
    champion = replace(champion, test_films=films)
    assert champion.metrics is not None
    told = {**champion.metrics, "test_set_sha256": champion.test_set_sha256, "n_test": len(films)}
    assert decide(challenger, replace(champion, metrics=told), PARAMS).decision == "REJECT"


def test_a_class_that_only_the_champions_test_set_lacks_is_not_compared() -> None:
    films = tuple(film for film in _films({}) if film.label != "viral")
    digest = Evidence({}, films, TAGS).test_set_sha256
    both = replace(_evidence(n_test=20, test_set_sha256=digest), test_films=films)
    assert [check.name for check in decide(both, both, PARAMS).refusals] == ["recall of viral"]


def test_a_version_that_was_rolled_back_needs_to_be_named() -> None:
    move = Move(3, "2026-01-02T03:04:05+00:00", "rollback", "2", "1", "ann", "misses effusions", "")
    assert _refusals(decide(_evidence(), None, PARAMS, rolled_back=move)) == [
        "record: rolled back on 2026-01-02T03:04:05+00:00 by ann (misses effusions), "
        "required never rolled back, or named by --version 2"
    ]


def test_evidence_is_read_from_files_and_checked_against_the_tag(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"accuracy": 1.0}))
    (tmp_path / "predictions.csv").write_text(
        "image_id,split,label,predicted_class\na,test,normal,viral\nb,validation,normal,normal\n"
    )
    tags = {"evidence_sha256": evidence_digest(tmp_path)}
    evidence = read_evidence(tmp_path, tags)
    assert evidence.test_films == (TestFilm("a", "normal", "viral"),)
    assert evidence.metric("accuracy") == 1.0
    assert not evidence.changed
    (tmp_path / "metrics.json").write_text(json.dumps({"accuracy": 0.9}))
    assert read_evidence(tmp_path, tags).changed


@pytest.mark.parametrize("text", ["not json", "[1, 2]"])
def test_evidence_that_cannot_be_read_counts_as_missing(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    (tmp_path / "predictions.csv").write_text("a,b\n1,2\n")
    evidence = read_evidence(tmp_path, {})
    assert evidence.metrics is None
    assert evidence.test_films is None


def test_no_folder_is_no_evidence() -> None:
    evidence = read_evidence(None, {})
    assert (evidence.metrics, evidence.test_films, evidence.changed) == (None, None, False)
    assert evidence.classes == ()
    assert evidence.test_set_sha256 == ""
