"""Ask the gate whether the challenger becomes champion, and make it so if it passes.

Reads   the versions' evidence in the tracking store; thresholds in params.yaml: promote
Writes  reports/promotion.json, the verdict as tags of the version, and on a pass the alias `champion`

Exit code 0: the version is champion, now or already. 10: rejected, measured and not good enough. 11: held, the evidence
does not decide it, or somebody else's promotion came first. The table says why.

A person who has looked may overrule what holds a version back, which goes on record; never a rejection:

    python -m tasks.promote --approve-held --who ann --why "read all 12 images that differ"
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import ParamsError, PromotionHeldError, PromotionRefusedError
from cxr.registry.audit_log import present_user

if TYPE_CHECKING:
    from cxr.common.params import PromoteParams
    from cxr.registry.evaluation_artifacts import EvaluationArtifacts
    from cxr.registry.promotion import Decision
    from cxr.registry.versions import Version

VERDICT_TAG = "promotion"

log = logging.getLogger("cxr.promote")


@dataclass(frozen=True)
class Request:
    """Who asks for what: `named` is a version other than the challenger."""

    who: str
    why: str
    named: str | None = None
    approve_held: bool = False
    dry_run: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class _Case:
    """A version before the gate: whom it is up against, what speaks for both, and the verdict."""

    version: Version
    champion: Version | None
    evidence: EvaluationArtifacts
    against: EvaluationArtifacts | None
    decision: Decision


def promote(params_file: Path, request: Request) -> None:
    """Decide about a version, the challenger unless another is named.

    Raises:
        PromotionRefusedError: it was measured and is not good enough; the champion stays.
        PromotionHeldError: the evidence does not decide it, or another move came first; the champion stays.
        RegistryError: there is no such version.
    """
    from cxr.common.params import read_params
    from cxr.registry import aliases, versions

    params = read_params(params_file)
    receipt = params.paths.registration.with_name("promotion.json")
    _settle(dry_run=request.dry_run)
    version, champion = versions.get_version(request.named or versions.CHALLENGER), versions.champion()
    _note_other_receipt(params.paths.registration, version)
    if champion and champion.number == version.number:
        _stay(version, receipt, request)
        return
    case = _judge(version, champion, params.promote)
    record = _record(case, request)
    print(json.dumps(record) if request.as_json else _table(case))
    if not request.dry_run:
        _keep(record, version, receipt)
    overruled = _overruled(case, request)
    if request.dry_run:
        log.info("dry run: version %s would become champion; nothing was changed", version.number)
        return
    aliases.move_champion(
        version.number,
        instead_of=champion.number if champion else "",
        kind="promote",
        who=request.who,
        why=request.why,
        overruled=overruled,
    )
    print(f"version {version.number} is champion")


def _settle(*, dry_run: bool) -> None:
    """Finish what a killed command has left half done; a dry run only says so."""
    from cxr.registry import aliases

    if not dry_run:
        aliases.settle()
    elif move := aliases.unfinished():
        log.warning(
            "entry %d of the record, version %s as champion, was cut off; the next command that moves the alias "
            "finishes it first",
            move.number,
            move.after,
        )


def _judge(version: Version, champion: Version | None, params: PromoteParams) -> _Case:
    from cxr.registry import aliases, audit_log
    from cxr.registry.evaluation_store import evaluation_of
    from cxr.registry.promotion import decide
    from cxr.registry.versions import bundle_fault

    evidence = evaluation_of(version)
    against = evaluation_of(champion, evidence.test_set_sha256) if champion else None
    decision = decide(
        evidence,
        against,
        params,
        rolled_back=audit_log.rolled_back_by(aliases.history(), version.number),
        broken_bundle=bundle_fault(version),
    )
    return _Case(version, champion, evidence, against, decision)


def _overruled(case: _Case, request: Request) -> str:
    """Return what held the version back and is overruled, "" where nothing did; raise what stops it."""
    from cxr.registry.promotion import sentence

    said, against = case.decision.decision, sentence(case.decision.against)
    if said == "REJECT":
        raise PromotionRefusedError(f"version {case.version.number} was refused, {_stays(case.champion)}: {against}")
    if said == "HOLD" and not request.approve_held:
        raise PromotionHeldError(
            f"version {case.version.number} was held, {_stays(case.champion)}: {against}. Mend that, or have somebody "
            "look and say `python -m tasks.promote --approve-held --who NAME --why REASON`"
        )
    return against


def _stays(champion: Version | None) -> str:
    return f"version {champion.number} stays champion" if champion else "there is still no champion"


def _note_other_receipt(receipt: Path, version: Version) -> None:
    """Say so where the newest challenger is not the model that stands in this folder."""
    from cxr.common.files import read_json

    if receipt.is_file() and (here := read_json(receipt)["weights_sha256"]) != version.tags.get("weights_sha256"):
        log.info(
            "version %s is another model than the one in this folder (weights %s); `python -m tasks.register` makes "
            "that one the challenger",
            version.number,
            here[:12],
        )


def _stay(version: Version, receipt: Path, request: Request) -> None:
    from cxr.common.files import write_json

    said = f"version {version.number} is champion already; nothing to do"
    print(json.dumps({"decision": "CHAMPION", "version": version.number}) if request.as_json else said)
    if not request.dry_run and not receipt.is_file() and VERDICT_TAG in version.tags:
        write_json(receipt, json.loads(version.tags[VERDICT_TAG]))


def _table(case: _Case) -> str:
    against = (
        f"against the champion, version {case.champion.number}" if case.champion else "floors only, no champion yet"
    )
    checks = case.decision.reasons
    width = max(len(check.name) for check in checks)
    marks = {"passed": "passed", "held": "HELD  ", "failed": "FAILED"}
    lines = [f"{case.decision.decision}: version {case.version.number}, {against}"]
    lines += [
        f"  {marks[check.outcome]}  {check.name:<{width}}  {check.observed}; required: {check.required}"
        for check in checks
    ]
    return "\n".join(lines)


def _record(case: _Case, request: Request) -> dict[str, Any]:
    from cxr.registry.versions import MODEL

    return {
        "decision": case.decision.decision,
        "model": MODEL,
        "version": case.version.number,
        "champion": case.champion.number if case.champion else None,
        "who": request.who,
        "why": request.why,
        "approved_by_a_person": case.decision.decision == "HOLD" and request.approve_held,
        "reasons": [asdict(check) for check in case.decision.reasons],
        "evidence": {
            "version": _summary(case.evidence),
            "champion": _summary(case.against) if case.against else None,
        },
    }


def _summary(evidence: EvaluationArtifacts) -> dict[str, Any]:
    """Return what the verdict rested on: metrics, recalls, and the digests that name model and test set."""
    tags = ("weights_sha256", "evidence_sha256", "protocol", "synthetic")
    return {
        **{name: evidence.metric(name) for name in ("accuracy", "macro_f1", "macro_auroc")},
        "ece": evidence.metric("calibration", "ece"),
        "recall": {name: evidence.recall(name) for name in evidence.classes},
        "test_set_sha256": evidence.test_set_sha256,
        **{name: evidence.tags.get(name) for name in tags},
    }


def _keep(record: dict[str, Any], version: Version, receipt: Path) -> None:
    from cxr.common.files import write_json
    from cxr.registry import versions

    versions.tag_version(version.number, {VERDICT_TAG: json.dumps(record), "promotion_decision": record["decision"]})
    write_json(receipt, record)


def main() -> None:
    """Read the command line and ask the gate."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="show the checks; change nothing at all")
    parser.add_argument("--version", metavar="N", help="a version other than the challenger")
    parser.add_argument("--approve-held", action="store_true", help="overrule a HOLD; needs --who and --why")
    parser.add_argument("--who", help=f"name for the record ({present_user()})")
    parser.add_argument("--why", help="reason for the record (passed the gate)")
    parser.add_argument("--json", action="store_true", help="the verdict as one line of JSON, for other programs")
    given = parser.parse_args()
    if given.approve_held and not (given.who and given.why):
        raise ParamsError("--approve-held goes on record: say --who looked at the version and --why it is good enough")
    request = Request(
        who=given.who or present_user(),
        why=given.why or "passed the gate",
        named=given.version,
        approve_held=given.approve_held,
        dry_run=given.dry_run,
        as_json=given.json,
    )
    promote(given.params, request)


if __name__ == "__main__":
    run_command(main)
