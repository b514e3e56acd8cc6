"""The gate before the alias `champion` moves: evaluation artifacts and thresholds in, a decision with reasons out.

PROMOTE  every check passed
REJECT   evaluated, and not good enough: a floor, the calibration bound, a class's recall, or worse than the champion
HOLD     the artifacts do not decide it, so a person has to look: something is missing, changed or of other images, or
         the images are too few. A person may overrule a HOLD, never a REJECT

Nothing here reads the registry; see tasks.promote. Recalls are counted from predictions.csv, image by image, and
metrics.json must agree with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cxr.common.command_params import PromoteParams
from cxr.common.errors import DataError
from cxr.evaluation.comparison import Difference, compare
from cxr.evaluation.headline import BY_NAME, check_gate
from cxr.evaluation.result_files import METRICS_FILE, PREDICTIONS_FILE
from cxr.registry.audit_log import Move
from cxr.registry.evaluation_artifacts import EvaluationArtifacts
from cxr.registry.lineage import NONE

Outcome = Literal["passed", "held", "failed"]
Verdict = Literal["PROMOTE", "HOLD", "REJECT"]

LINEAGE_TAGS = (
    "code_sha256",
    "dvc_lock_sha256",
    "git_commit",
    "manifest_sha256",
    "params_sha256",
    "protocol",
    "test_set_sha256",
    "uv_lock_sha256",
    "weights_sha256",
)
OTHER_TEST_SET = "test set"
"""Name of the check that the two versions were evaluated on the same images."""
_REEVALUATE = "`./run reevaluate` evaluates the champion on the present test images"
_ROUNDING = 1e-9  # in floating point 0.95 - 0.05 is more than 0.9: a drop of exactly the margin passes


@dataclass(frozen=True)
class Check:
    """One condition of the gate: what was observed and what is required, in words."""

    name: str
    outcome: Outcome
    observed: str
    required: str

    def __str__(self) -> str:
        """Return the check as a clause: name, observed, required."""
        return f"{self.name}: {self.observed}, required {self.required}"


@dataclass(frozen=True)
class Decision:
    """The verdict; `reasons` are all checks, whatever their outcome."""

    reasons: tuple[Check, ...]

    @property
    def decision(self) -> Verdict:
        """One failed check rejects; else one undecided check holds."""
        outcomes = {check.outcome for check in self.reasons}
        return "REJECT" if "failed" in outcomes else "HOLD" if "held" in outcomes else "PROMOTE"

    @property
    def against(self) -> tuple[Check, ...]:
        """The checks that made the verdict: the failed ones of a REJECT, the undecided ones of a HOLD."""
        wanted = {"REJECT": "failed", "HOLD": "held", "PROMOTE": ""}[self.decision]
        return tuple(check for check in self.reasons if check.outcome == wanted)


def decide(
    challenger: EvaluationArtifacts,
    champion: EvaluationArtifacts | None,
    params: PromoteParams,
    *,
    rolled_back: Move | None = None,
    broken_bundle: str = "",
    external: Sequence[Mapping[str, Any] | None] = (),
) -> Decision:
    """Decide whether the challenger becomes champion.

    Args:
        challenger: its evaluation artifacts.
        champion: the present champion's, of the challenger's test set where there are such; None where there is no
            champion yet, then only the floors count.
        params: thresholds.
        rolled_back: the rollback that took the challenger out of service, where there was one.
        broken_bundle: what is wrong with the challenger's files in the store; "" where they are as registered.
        external: the challenger's external tests (cxr.registry.evaluation_store); None for one that is lost or changed.

    Raises:
        ParamsError: `params` names a metric that there is not.
    """
    check_gate(params)
    checks = [_artifacts_are_complete(challenger), _lineage_is_complete(challenger), _bundle_is_whole(broken_bundle)]
    checks += _floors(challenger, params)
    checks += _external_floors(external, params)
    if champion is not None:
        checks += _against_champion(challenger, champion, params)
    if rolled_back is not None:
        checks.append(_was_rolled_back(rolled_back))
    return Decision(tuple(checks))


def _artifacts_are_complete(artifacts: EvaluationArtifacts) -> Check:
    found = artifacts.problems()
    required = f"{METRICS_FILE} and {PREDICTIONS_FILE} as registered, agreeing with each other"
    return Check("evaluation artifacts", "held" if found else "passed", "; ".join(found) or "complete", required)


def _lineage_is_complete(artifacts: EvaluationArtifacts) -> Check:
    """Require every digest; of a model of the synthetic sample, which serves no patients, no commit."""
    tags = artifacts.tags
    wanted = [name for name in LINEAGE_TAGS if name != "git_commit" or not artifacts.synthetic]
    found = [f"{name} missing" for name in wanted if tags.get(name, NONE) in {"", NONE}]
    if tags.get("git_dirty") == "true" and not artifacts.synthetic:
        found.append("the code differed from git_commit, so it is in no commit")
    return Check("lineage", "held" if found else "passed", "; ".join(found) or "complete", ", ".join(wanted))


def _bundle_is_whole(broken: str) -> Check:
    return Check("stored model", "held" if broken else "passed", broken or "as registered", "the registered digests")


def _floors(artifacts: EvaluationArtifacts, params: PromoteParams) -> list[Check]:
    floors = {name: (artifacts.metric(name), floor) for name, floor in sorted(params.floors.items())}
    floors |= {f"recall of {name}": (artifacts.recall(name), params.min_class_recall) for name in artifacts.classes}
    ceilings = {name: (artifacts.metric(name), ceiling) for name, ceiling in sorted(params.ceilings.items())}
    return [
        *(
            _measured(name, value, f"at least {floor:.3f}", good=value is not None and value >= floor)
            for name, (value, floor) in floors.items()
        ),
        *(
            _measured(name, value, f"at most {ceiling:.3f}", good=value is not None and value <= ceiling)
            for name, (value, ceiling) in ceilings.items()
        ),
    ]


def _external_floors(external: Sequence[Mapping[str, Any] | None], params: PromoteParams) -> list[Check]:
    """Require the floors on every labelled external set; copies of training images do not count."""
    if not params.external_floors:
        return []
    if None in external:
        return [Check("external tests", "held", "one is lost or was changed", "as stored; run `./run external` again")]
    labelled = [result for result in external if result and result["classes"]]
    if not labelled:
        return [Check("external tests", "held", "none with labels", "one or more: `./run external --data FOLDER`")]
    checks = []
    for result in labelled:
        unseen = result["without_training_duplicates"] or result
        for name, floor in sorted(params.external_floors.items()):
            value = BY_NAME[name].stored_in(unseen)
            good = value is not None and value >= floor
            checks.append(_measured(f"{name} on {result['set']['name']}", value, f"at least {floor:.3f}", good=good))
    return checks


def _measured(name: str, value: float | None, required: str, *, good: bool) -> Check:
    if value is None:
        return Check(name, "held", "missing or not a finite number", required)
    return Check(name, "passed" if good else "failed", f"{value:.3f}", required)


def _against_champion(
    challenger: EvaluationArtifacts, champion: EvaluationArtifacts, params: PromoteParams
) -> list[Check]:
    if champion.synthetic and not challenger.synthetic:
        observed = "the champion was trained on the synthetic sample, so it is no comparison on real images"
        return [Check(OTHER_TEST_SET, "passed", observed, "the champion's, or a champion from the synthetic sample")]
    if missing := champion.problems():
        return [Check("champion's evaluation artifacts", "held", "; ".join(missing), "complete, to compare with")]
    if challenger.test_set_sha256 != champion.test_set_sha256:
        observed = challenger.test_set_sha256[:12] or "missing"
        required = f"the champion's, {champion.test_set_sha256[:12]}; {_REEVALUATE}"
        return [Check(OTHER_TEST_SET, "held", observed, required)]
    same = Check(OTHER_TEST_SET, "passed", challenger.test_set_sha256[:12], "the champion's")
    recalls = [_recall_kept(name, challenger, champion, params) for name in champion.classes]
    return [same, *recalls, *_paired(challenger, champion, params)]


def _recall_kept(
    name: str, challenger: EvaluationArtifacts, champion: EvaluationArtifacts, params: PromoteParams
) -> Check:
    new, old = challenger.recall(name), champion.recall(name)
    title = f"recall of {name} against the champion"
    if new is None or old is None:
        return Check(title, "held", "no test image of this class", "images of each class, to compare")
    least = old - params.max_recall_drop
    kept = new >= least - _ROUNDING
    return Check(title, "passed" if kept else "failed", f"{new:.3f}", f"at least {least:.3f} (champion {old:.3f})")


def _paired(challenger: EvaluationArtifacts, champion: EvaluationArtifacts, params: PromoteParams) -> list[Check]:
    """Compare image by image, by a bootstrap over patients; see cxr.evaluation.comparison."""
    if challenger.images is None or champion.images is None:
        return []
    try:
        found = compare(challenger.images, champion.images, resamples=params.resamples, seed=params.seed)
    except DataError as error:
        return [Check("paired comparison", "held", str(error), "the same images, patients and classes")]
    return [
        _no_worse(name, found.differences[name], margin)
        for name, margin in sorted(params.non_inferiority_margin.items())
    ]


def _no_worse(name: str, difference: Difference, margin: float) -> Check:
    """Pass where a loss beyond the margin is ruled out, fail where the loss is certain, hold in between."""
    title, required = f"{name} against the champion", f"no loss beyond {margin:.3f}, at 95%"
    if difference.interval is None:
        return Check(title, "held", f"{difference.value:+.3f}, too few patients for an interval", required)
    low, high = difference.interval.low, difference.interval.high
    observed = f"{difference.value:+.3f} ({low:+.3f} to {high:+.3f})"
    least_gain, most_gain = (low, high) if BY_NAME[name].higher_is_better else (-high, -low)
    if least_gain >= -margin - _ROUNDING:
        return Check(title, "passed", observed, required)
    return Check(title, "failed" if most_gain < 0 else "held", observed, required)


def _was_rolled_back(move: Move) -> Check:
    return Check(
        "audit log", "held", f"rolled back on {move.time} by {move.approved_by} ({move.reason})", "never rolled back"
    )


def sentence(checks: Sequence[Check]) -> str:
    """Return checks as one line of text."""
    return "; ".join(map(str, checks))
