"""The gate before the alias `champion` moves: evidence and thresholds in, a decision with its reasons out.

Nothing here reads the registry; see tasks.promote. Recalls are counted from predictions.csv, film by film, and
metrics.json must agree with them: a number alone carries no promotion.
"""

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cxr.ledger import Move
from cxr.lineage import NONE
from cxr.params import PromoteParams

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.csv"
LINEAGE_TAGS = ("code_sha256", "manifest_sha256", "params_sha256", "protocol", "test_set_sha256", "weights_sha256")
_AGREEMENT = 1e-3  # between accuracies in metrics.json and from predictions.csv: printed digits, not another result


@dataclass(frozen=True)
class TestFilm:
    """One film of the test set: what it is and what the model called it."""

    __test__ = False  # not a test class of pytest's

    image_id: str
    label: str
    predicted_class: str


@dataclass(frozen=True)
class Evidence:
    """What speaks for a version: its test metrics and predictions as logged, its tags. None: not there."""

    metrics: Mapping[str, Any] | None
    test_films: Sequence[TestFilm] | None
    tags: Mapping[str, str]
    changed: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in order; empty without metrics."""
        return tuple(self.metrics.get("classes", ())) if self.metrics else ()

    @property
    def synthetic(self) -> bool:
        """Trained and tested on phantom films."""
        return self.tags.get("synthetic") == "true"

    @property
    def test_set_sha256(self) -> str:
        """Digest of the test films and their labels, as splits are named by; "" without predictions."""
        if not self.test_films:
            return ""
        rows = sorted(f"{film.image_id},{film.label}" for film in self.test_films)
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def metric(self, *names: str) -> float | None:
        """Return a metric by its path of keys; None where it is missing or not a finite number."""
        value: Any = self.metrics
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)

    def recall(self, label: str) -> float | None:
        """Return the share of a class's test films that were called right; None without any."""
        called = [film.predicted_class == label for film in self.test_films or () if film.label == label]
        return sum(called) / len(called) if called else None


@dataclass(frozen=True)
class Check:
    """One condition of the gate, in words."""

    name: str
    passed: bool
    observed: str
    required: str

    def __str__(self) -> str:
        """Return the check as a sentence's part: name, what was seen, what is needed."""
        return f"{self.name}: {self.observed}, required {self.required}"


@dataclass(frozen=True)
class Decision:
    """The verdict; `reasons` are all checks, passed or not."""

    decision: Literal["PROMOTE", "REJECT"]
    reasons: tuple[Check, ...]

    @property
    def refusals(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.reasons if not check.passed)


def read_evidence(folder: Path | None, tags: Mapping[str, str]) -> Evidence:
    """Read metrics.json and predictions.csv in `folder`, as far as they are there and can be read."""
    metrics, films = None, None
    if folder and (folder / METRICS_FILE).is_file():
        metrics = _read_metrics(folder / METRICS_FILE)
    if folder and (folder / PREDICTIONS_FILE).is_file():
        films = _read_test_films(folder / PREDICTIONS_FILE)
    changed = bool(folder) and evidence_digest(folder) != tags.get("evidence_sha256")
    return Evidence(metrics, films, tags, changed=changed)


def evidence_digest(folder: Path | None) -> str:
    """Return one SHA-256 over metrics.json and predictions.csv; a version's tag keeps it."""
    digest = hashlib.sha256()
    for name in (METRICS_FILE, PREDICTIONS_FILE):
        path = folder / name if folder else None
        digest.update(name.encode() + (path.read_bytes() if path and path.is_file() else b""))
    return digest.hexdigest()


def _read_metrics(path: Path) -> Mapping[str, Any] | None:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return metrics if isinstance(metrics, dict) else None


def _read_test_films(path: Path) -> Sequence[TestFilm] | None:
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return tuple(
                TestFilm(row["image_id"], row["label"], row["predicted_class"])
                for row in csv.DictReader(file)
                if row["split"] == "test"
            )
        except KeyError:
            return None


def decide(
    challenger: Evidence, champion: Evidence | None, params: PromoteParams, *, rolled_back: Move | None = None
) -> Decision:
    """Decide whether the challenger becomes champion.

    Args:
        challenger: its evidence.
        champion: the present champion's; None where there is none yet, then only the floors count.
        params: thresholds.
        rolled_back: the rollback that took the challenger out of service, where there was one.

    Returns:
        PROMOTE when every check passed.
    """
    checks = [_evidence_is_whole(challenger), _lineage_is_complete(challenger), *_floors(challenger, params)]
    if champion is not None:
        checks += _against_champion(challenger, champion, params)
    if rolled_back is not None:
        checks.append(_was_rolled_back(rolled_back))
    passed = all(check.passed for check in checks)
    return Decision("PROMOTE" if passed else "REJECT", tuple(checks))


def _evidence_is_whole(evidence: Evidence) -> Check:
    found = _problems(evidence)
    required = f"{METRICS_FILE} and {PREDICTIONS_FILE} as registered, agreeing with each other"
    return Check("evidence", not found, "; ".join(found) or "complete", required)


def _problems(evidence: Evidence) -> list[str]:
    found = []
    if evidence.metrics is None:
        found.append(f"{METRICS_FILE} is missing or not JSON")
    if evidence.test_films is None:
        found.append(f"{PREDICTIONS_FILE} is missing or not a table of predictions")
    elif not evidence.test_films:
        found.append(f"{PREDICTIONS_FILE} has no test films")
    if found:
        return found
    if evidence.changed:
        found.append("the files were changed after registration")
    if evidence.metric("n_test") != len(evidence.test_films or ()):
        found.append(f"{METRICS_FILE} counts other test films than {PREDICTIONS_FILE}")
    if not evidence.classes:
        found.append(f"{METRICS_FILE} names no classes")
    if (evidence.metrics or {}).get("test_set_sha256") != evidence.test_set_sha256:
        found.append(f"{PREDICTIONS_FILE} is of another test set than {METRICS_FILE}")
    return found + _contradiction(evidence)


def _contradiction(evidence: Evidence) -> list[str]:
    films = evidence.test_films or ()
    counted = sum(film.label == film.predicted_class for film in films) / len(films)
    claimed = evidence.metric("accuracy")
    if claimed is None or abs(claimed - counted) <= _AGREEMENT:
        return []  # a missing metric fails its floor
    return [f"{METRICS_FILE} says accuracy {claimed:.3f}, {PREDICTIONS_FILE} gives {counted:.3f}"]


def _lineage_is_complete(evidence: Evidence) -> Check:
    missing = [name for name in LINEAGE_TAGS if evidence.tags.get(name, NONE) in {"", NONE}]
    observed = f"{', '.join(missing)} missing" if missing else "complete"
    return Check("lineage", not missing, observed, f"{', '.join(LINEAGE_TAGS)}")


def _floors(evidence: Evidence, params: PromoteParams) -> list[Check]:
    checks = [_at_least(name, evidence.metric(name), floor) for name, floor in sorted(params.floors.items())]
    checks += [
        _at_least(f"recall of {name}", evidence.recall(name), params.min_class_recall) for name in evidence.classes
    ]
    ece = evidence.metric("calibration", "ece")
    checks.append(
        Check(
            "calibration error", ece is not None and ece <= params.max_ece, _shown(ece), f"at most {params.max_ece:.3f}"
        )
    )
    return checks


def _at_least(name: str, value: float | None, floor: float) -> Check:
    return Check(name, value is not None and value >= floor, _shown(value), f"at least {floor:.3f}")


def _shown(value: float | None) -> str:
    return "missing or not a finite number" if value is None else f"{value:.3f}"


def _against_champion(challenger: Evidence, champion: Evidence, params: PromoteParams) -> list[Check]:
    if champion.synthetic and not challenger.synthetic:
        observed = "the champion was trained on the synthetic sample, which is no evidence on real films"
        return [Check("test set", True, observed, "the champion's, or a champion from the synthetic sample")]
    missing = _problems(champion)
    if missing:
        return [Check("champion's evidence", False, "; ".join(missing), "complete, to compare with")]
    same = challenger.test_set_sha256 == champion.test_set_sha256
    check = Check(
        "test set",
        same,
        challenger.test_set_sha256[:12] or "missing",
        f"the champion's, {champion.test_set_sha256[:12]}",
    )
    return [check, *(_recall_kept(name, challenger, champion, params) for name in champion.classes if same)]


def _recall_kept(name: str, challenger: Evidence, champion: Evidence, params: PromoteParams) -> Check:
    new, old = challenger.recall(name), champion.recall(name)
    title = f"recall of {name} against the champion"
    if old is None:
        return Check(title, True, _shown(new), "no test film of this class: nothing to compare")
    # In floating point 0.95 - 0.05 is more than 0.9: a drop of exactly the margin passes.
    kept = new is not None and new >= old - params.max_recall_drop - 1e-9
    return Check(title, kept, _shown(new), f"at least {old - params.max_recall_drop:.3f} (champion {old:.3f})")


def _was_rolled_back(move: Move) -> Check:
    observed = f"rolled back on {move.time} by {move.who} ({move.why})"
    required = f"never rolled back, or named by --version {move.before}"
    return Check("record", False, observed, required)
