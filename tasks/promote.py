"""Ask the gate whether the challenger becomes champion, and move the alias if it passes.

Reads   the versions' evaluation artifacts in the tracking store; thresholds in params.yaml: promote
Writes  reports/promotion.json, the verdict as tags of the version, and on a pass the alias `champion`

Exit code 0: the version is champion, now or already. 10: rejected, evaluated and not good enough. 11: held, the
artifacts do not decide it, or another promotion came first. The table says why.

A person who has looked may overrule a HOLD, which the audit log records; never a rejection:

    ./run promote --approve-held --approved-by ann --reason "read all 12 images that differ"

The gate compares with the champion of the audit log. Where somebody moved the alias by hand, this command puts that
champion back, unless the version under test passes and replaces it.
"""

from __future__ import annotations

import json
import logging
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cxr.common.cli import answer_help, command_parser, run_command
from cxr.registry.audit_log import present_user


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="show the checks; change nothing at all")
    parser.add_argument("--version", metavar="N", help="a version other than the challenger")
    parser.add_argument("--approve-held", action="store_true", help="overrule a HOLD; needs the next two")
    parser.add_argument("--approved-by", metavar="NAME", help=f"name for the audit log ({present_user()})")
    parser.add_argument("--reason", help="reason for the audit log (passed the gate)")
    parser.add_argument("--json", action="store_true", help="the verdict as one line of JSON, for other programs")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cxr.common.artifacts import read_record
from cxr.common.command_params import PromoteParams
from cxr.common.errors import ParamsError, PromotionHeldError, PromotionRejectedError, RegistryError
from cxr.common.files import write_json
from cxr.common.params import read_params
from cxr.evaluation.headline import HEADLINES
from cxr.registry import audit_log, versions
from cxr.registry.champion import aliases, requests
from cxr.registry.champion.aliases import Standing
from cxr.registry.champion.promotion import Decision, decide, sentence
from cxr.registry.evaluation_artifacts import EvaluationArtifacts
from cxr.registry.evaluation_store import evaluation_of, external_results
from cxr.registry.stored_names import DECISION_TAG, EVALUATION_TAG, VERDICT_TAG, current_verdict
from cxr.registry.test_set_looks import looks_at
from cxr.registry.versions import Version

log = logging.getLogger("cxr.promote")


@dataclass(frozen=True)
class Request:
    """Who asks for what: `named` is a version other than the challenger."""

    approved_by: str
    reason: str
    named: str | None = None
    approve_held: bool = False
    dry_run: bool = False
    as_json: bool = False


class _Receipt(TypedDict):
    """What is read of registration.json."""

    weights_sha256: str


@dataclass(frozen=True)
class _Case:
    """A version before the gate, the recorded champion, the artifacts of both, and the verdict."""

    version: Version
    champion: Version | None
    standing: Standing
    artifacts: EvaluationArtifacts
    against: EvaluationArtifacts | None
    external: Mapping[str, Mapping[str, Any] | None]
    looks: int
    decision: Decision


def promote(params_file: Path, request: Request) -> None:
    """Decide about a version, the challenger unless another is named.

    Raises:
        PromotionRejectedError: it was evaluated and is not good enough; the recorded champion stays.
        PromotionHeldError: the artifacts do not decide it, or another move came first; the recorded champion stays.
        RegistryError: there is no such version.
        DataError: the receipt of `register` in this folder is damaged.
    """
    params = read_params(params_file)
    receipt = params.paths.registration.with_name("promotion.json")
    _settle(dry_run=request.dry_run)
    standing = aliases.standing()
    version = versions.get_version(request.named or versions.CHALLENGER)
    champion = versions.look_up(standing.recorded) if standing.recorded else None
    _note_other_receipt(params.paths.registration, version)
    if champion and champion.number == version.number:
        _stay(version, standing, receipt, request)
        return
    case = _judge(version, champion, standing, params.promote)
    record = _record(case, request)
    print(json.dumps(record) if request.as_json else _table(case))
    if not request.dry_run:
        _keep(record, version, receipt)
    try:
        overruled = _overruled(case, request)
    except (PromotionRejectedError, PromotionHeldError) as error:
        put_back = _restore(standing, request, rejected=version.number)
        _answer(version, request, "; ".join(filter(None, [f"{record['decision']}. {error}", put_back])))
        raise
    if request.dry_run:
        log.info("dry run: version %s would become champion; nothing was changed", version.number)
        return
    aliases.move_champion(
        version.number,
        instead_of=standing.recorded,
        alias_was=standing.alias,
        kind="promote",
        approved_by=request.approved_by,
        reason=request.reason,
        overruled=overruled,
    )
    _answer(version, request, f"{record['decision']}. Champion now, {request.approved_by}: {request.reason}")
    print(f"version {version.number} is champion")


def _answer(version: Version, request: Request, text: str) -> None:
    """Write what was decided on the version's page; a dry run does not."""
    if not request.dry_run:
        requests.answer(version.number, text)


def _settle(*, dry_run: bool) -> None:
    """Finish what a killed command left half done; a dry run only says so."""
    if not dry_run:
        aliases.settle()
    elif move := aliases.unfinished():
        log.warning(
            "entry %d of the audit log, version %s as champion, was cut off; the next command that moves the alias "
            "finishes it first",
            move.number,
            move.after,
        )


def _restore(standing: Standing, request: Request, *, rejected: str = "") -> str:
    """Put the recorded champion back where the alias was moved by hand, and say so; a dry run only says so."""
    if not standing.moved_by_hand:
        return ""
    if request.dry_run:
        log.warning(
            "the alias champion was moved by hand to version %s; without --dry-run this command puts %s back",
            standing.alias or audit_log.NO_VERSION,
            f"version {standing.recorded}" if standing.recorded else "no champion",
        )
        return ""
    reason = "the gate did not pass it" if rejected == standing.alias else "put back by tasks.promote"
    move = aliases.restore_champion(approved_by=request.approved_by, reason=reason)
    message = f"{move.reason}; champion is now version {move.after or audit_log.NO_VERSION}"
    log.warning("%s", message)
    return message


def _judge(version: Version, champion: Version | None, standing: Standing, params: PromoteParams) -> _Case:
    artifacts = evaluation_of(version)
    against = evaluation_of(champion, artifacts.test_set_sha256) if champion else None
    external = external_results(version)
    decision = decide(
        artifacts,
        against,
        params,
        external=list(external.values()),
        rolled_back=audit_log.rolled_back_by(aliases.history(), version.number),
        broken_bundle=versions.bundle_fault(version),
    )
    looks = looks_at(artifacts.test_set_sha256)
    return _Case(version, champion, standing, artifacts, against, external, looks, decision)


def _overruled(case: _Case, request: Request) -> str:
    """Return the checks that held the version and that a person overrules, "" for none; raise what stops it."""
    verdict, against = case.decision.decision, sentence(case.decision.against)
    if verdict == "REJECT":
        raise PromotionRejectedError(f"version {case.version.number} was rejected, {_stays(case.champion)}: {against}")
    if verdict == "HOLD" and not request.approve_held:
        raise PromotionHeldError(
            f"version {case.version.number} was held, {_stays(case.champion)}: {against}. Correct that, or have a "
            "person look and run `./run promote --approve-held --approved-by NAME --reason REASON`"
        )
    return against


def _stays(champion: Version | None) -> str:
    return f"version {champion.number} stays champion" if champion else "there is still no champion"


def _note_other_receipt(receipt: Path, version: Version) -> None:
    """Say so where the newest challenger is not the model in this folder."""
    if not receipt.is_file():
        return
    here = read_record(receipt, _Receipt, stage="register")["weights_sha256"]
    if here != version.tags.get("weights_sha256"):
        log.info(
            "version %s is another model than the one in this folder (weights %s); `./run register` makes "
            "that one the challenger",
            version.number,
            here[:12],
        )


def _stay(version: Version, standing: Standing, receipt: Path, request: Request) -> None:
    _restore(standing, request)
    message = f"version {version.number} {audit_log.CHAMPION_ALREADY}"
    if request.named:
        _answer(version, request, message)
    answer = {"decision": "CHAMPION", "version": version.number, "set_by_hand": _set_by_hand(standing)}
    print(json.dumps(answer) if request.as_json else message)
    if not request.dry_run and not receipt.is_file() and VERDICT_TAG in version.tags:
        write_json(receipt, _recorded_verdict(version))


def _recorded_verdict(version: Version) -> dict[str, Any]:
    """Return the gate's verdict from the tag of a version. Raises RegistryError where the tag holds something else."""
    try:
        return current_verdict(json.loads(version.tags[VERDICT_TAG]))
    except (ValueError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"the tag `{VERDICT_TAG}` of version {version.number} is no verdict of the gate ({error}). The version "
            "stays champion; delete the tag in MLflow, and run the command again"
        ) from error


def _set_by_hand(standing: Standing) -> str | None:
    """Return the version that somebody moved the alias to, None where nobody did."""
    return (standing.alias or audit_log.NO_VERSION) if standing.moved_by_hand else None


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
    lines += [f"  external test {_external_line(which, result)}" for which, result in case.external.items()]
    if case.looks:
        lines.append(f"  models measured on this test set so far: {case.looks}")
    return "\n".join(lines)


def _external_line(which: str, result: Mapping[str, Any] | None) -> str:
    """Return an external test in a line; its scores are those without copies of training images."""
    if result is None:
        return f"{which}: lost, or changed since it was stored; run `./run external` again"
    facts, unseen = result["set"], result["without_training_duplicates"] or result
    if not unseen["classes"]:
        return f"{facts['name']}: {facts['n_images']} images without labels to score, drift {result['drift']['alarm']}"
    values = {metric.label: metric.stored_in(unseen) for metric in HEADLINES}
    scores = ", ".join(f"{label} {value:.3f}" for label, value in values.items() if value is not None)
    return f"{facts['name']}: {unseen['n_test']} images, {'/'.join(unseen['classes'])}: {scores}"


def _record(case: _Case, request: Request) -> dict[str, Any]:
    return {
        "decision": case.decision.decision,
        "model": versions.MODEL,
        "version": case.version.number,
        "champion": case.champion.number if case.champion else None,
        "set_by_hand": _set_by_hand(case.standing),
        "approved_by": request.approved_by,
        "reason": request.reason,
        "approved_by_a_person": case.decision.decision == "HOLD" and request.approve_held,
        "reasons": [asdict(check) for check in case.decision.reasons],
        "external": [_external_line(which, result) for which, result in case.external.items()],
        "test_set_looks": case.looks,
        "evaluation": {
            "version": _summary(case.artifacts),
            "champion": _summary(case.against) if case.against else None,
        },
    }


def _summary(artifacts: EvaluationArtifacts) -> dict[str, Any]:
    """Return what the verdict is based on: metrics, recalls, and the digests of model and test set."""
    tags = ("weights_sha256", f"{EVALUATION_TAG}_sha256", "protocol", "synthetic")
    return {
        **{metric.name: artifacts.metric(metric.name) for metric in HEADLINES},
        "recall": {name: artifacts.recall(name) for name in artifacts.classes},
        "test_set_sha256": artifacts.test_set_sha256,
        **{name: artifacts.tags.get(name) for name in tags},
    }


def _keep(record: dict[str, Any], version: Version, receipt: Path) -> None:
    versions.tag_version(version.number, {VERDICT_TAG: json.dumps(record), DECISION_TAG: record["decision"]})
    write_json(receipt, record)


def main() -> None:
    """Read the command line and ask the gate."""
    given = command_line().parse_args()
    if given.approve_held and not (given.approved_by and given.reason):
        raise ParamsError("--approve-held needs --approved-by NAME and --reason REASON for the audit log")
    request = Request(
        approved_by=given.approved_by or present_user(),
        reason=given.reason or "passed the gate",
        named=given.version,
        approve_held=given.approve_held,
        dry_run=given.dry_run,
        as_json=given.json,
    )
    promote(given.params, request)


if __name__ == "__main__":
    run_command(main)
