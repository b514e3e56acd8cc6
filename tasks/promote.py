"""Ask the gate whether the challenger becomes champion, and make it so if it passes.

Reads   the versions' evidence in the tracking store; thresholds in params.yaml: promote
Writes  reports/promotion.json, the verdict as tags of the version, and on a pass the alias `champion`

Exit code 0: the version is champion, now or already. 10: refused; the table says why.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.command import command_parser, run_command
from cxr.errors import PromotionRefusedError
from cxr.ledger import present_user

if TYPE_CHECKING:
    from cxr.promotion import Decision, Evidence
    from cxr.registry import Version

VERDICT_TAG = "promotion"

log = logging.getLogger("cxr.promote")


def promote(params_file: Path, *, named: str | None, who: str, why: str, dry_run: bool) -> None:
    """Decide about a version, the challenger unless another is named.

    Raises:
        PromotionRefusedError: the gate says no; the champion stays.
        RegistryError: there is no such version.
    """
    from cxr import ledger, registry
    from cxr.params import read_params
    from cxr.promotion import decide

    params = read_params(params_file)
    receipt = params.paths.registration.with_name("promotion.json")
    version, champion = registry.get_version(named or registry.CHALLENGER), registry.champion()
    _note_other_receipt(params.paths.registration, version)
    if champion and champion.number == version.number:
        _stay(version, receipt, dry_run=dry_run)
        return
    rolled_back = None if named else ledger.rolled_back_by(registry.history(), version.number)
    evidence = _evidence(version)
    against = _evidence(champion) if champion else None
    decision = decide(evidence, against, params.promote, rolled_back=rolled_back)
    print(_table(decision, version, champion))
    if not dry_run:
        _keep(_record(decision, evidence, against, version, champion, who=who, why=why), version, receipt)
    if decision.refusals:
        raise PromotionRefusedError(_refusal(decision, version, champion))
    if dry_run:
        print(f"dry run: version {version.number} would become champion; nothing was changed")
        return
    registry.move_champion(version.number, kind="promote", who=who, why=why)
    print(f"version {version.number} is champion")


def _note_other_receipt(receipt: Path, version: Version) -> None:
    """Say so where the newest challenger is not the model that stands in this folder."""
    from cxr.files import read_json

    if receipt.is_file() and (here := read_json(receipt)["weights_sha256"]) != version.tags.get("weights_sha256"):
        log.info(
            "version %s is another model than the one in this folder (weights %s); `python -m tasks.register` makes "
            "that one the challenger",
            version.number,
            here[:12],
        )


def _stay(version: Version, receipt: Path, *, dry_run: bool) -> None:
    from cxr.files import write_json

    print(f"version {version.number} is champion already; nothing to do")
    if not dry_run and not receipt.is_file() and VERDICT_TAG in version.tags:
        write_json(receipt, json.loads(version.tags[VERDICT_TAG]))


def _evidence(version: Version) -> Evidence:
    from cxr import registry
    from cxr.promotion import read_evidence

    with tempfile.TemporaryDirectory() as scratch:
        return read_evidence(registry.fetch_evidence(version, Path(scratch)), version.tags)


def _table(decision: Decision, version: Version, champion: Version | None) -> str:
    against = f"champion, version {champion.number}" if champion else "floors only: there is no champion yet"
    width = max(len(check.name) for check in decision.reasons)
    lines = [f"version {version.number} against the {against}" if champion else f"version {version.number}, {against}"]
    for check in decision.reasons:
        mark = "passed" if check.passed else "FAILED"
        lines.append(f"  {mark}  {check.name:<{width}}  {check.observed}; required: {check.required}")
    return "\n".join(lines)


def _refusal(decision: Decision, version: Version, champion: Version | None) -> str:
    stays = f"version {champion.number} stays champion" if champion else "there is still no champion"
    return f"version {version.number} was refused, {stays}: " + "; ".join(str(check) for check in decision.refusals)


def _record(
    decision: Decision,
    evidence: Evidence,
    against: Evidence | None,
    version: Version,
    champion: Version | None,
    *,
    who: str,
    why: str,
) -> dict[str, Any]:
    from cxr.registry import MODEL

    return {
        "decision": decision.decision,
        "model": MODEL,
        "version": version.number,
        "champion": champion.number if champion else None,
        "who": who,
        "why": why,
        "reasons": [asdict(check) for check in decision.reasons],
        "evidence": {
            "version": _summary(evidence),
            "champion": _summary(against) if against else None,
        },
    }


def _summary(evidence: Evidence) -> dict[str, Any]:
    """Return what the verdict rested on: metrics, recalls, and the digests that name model and test set."""
    tags = ("weights_sha256", "test_set_sha256", "evidence_sha256", "protocol", "synthetic")
    return {
        **{name: evidence.metric(name) for name in ("accuracy", "macro_f1", "macro_auroc")},
        "ece": evidence.metric("calibration", "ece"),
        "recall": {name: evidence.recall(name) for name in evidence.classes},
        **{name: evidence.tags.get(name) for name in tags},
    }


def _keep(record: dict[str, Any], version: Version, receipt: Path) -> None:
    from cxr import registry
    from cxr.files import write_json

    registry.tag_version(version.number, {VERDICT_TAG: json.dumps(record), "promotion_decision": record["decision"]})
    write_json(receipt, record)


def main() -> None:
    """Read the command line and ask the gate."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="show the checks; change nothing at all")
    parser.add_argument("--version", metavar="N", help="a version other than the challenger; overrules a rollback")
    parser.add_argument("--who", default=present_user(), help="name for the record (%(default)s)")
    parser.add_argument("--why", default="passed the gate", help="reason for the record (%(default)s)")
    given = parser.parse_args()
    promote(given.params, named=given.version, who=given.who, why=given.why, dry_run=given.dry_run)


if __name__ == "__main__":
    run_command(main)
