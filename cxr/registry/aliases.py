"""Who is champion: every move of the alias `champion`, on record, and never two at once.

The record is kept as tags `ledger.<n>` of the registered model, for it has to live where the alias lives: whoever
sees the champion sees its history, on any machine, and a lost working copy loses nothing. See cxr.registry.audit_log for how a
changed entry shows.

MLflow has no compare-and-set, but no two experiments have one name. So entry n begins as a claim: an experiment
`chest-xray-pneumonia audit log <n>` that carries the whole entry. Whoever makes it has the move, then come the tag and
the alias, and at last the experiment is deleted, which in MLflow hides it and keeps its name taken. A command that
was killed on the way leaves its claim open: the next move finds it and finishes it first.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from cxr.common.errors import PromotionHeldError, RegistryError
from cxr.registry import audit_log, tracking_store
from cxr.registry.audit_log import Kind, Move
from cxr.registry.versions import CHAMPION, MODEL, Version, champion, get_version

_AUDIT_LOG_PREFIX = "ledger."
_ENTRY_TAG = "entry"

log = logging.getLogger("cxr.registry.aliases")


@dataclass(frozen=True)
class _Claim:
    """An entry as its experiment carries it; open until the alias has moved."""

    experiment_id: str
    line: str
    is_open: bool


def history() -> list[Move]:
    """Return every move of the alias `champion`, the oldest first; warns of entries that were changed."""
    lines = _audit_log_lines()
    try:
        moves = [audit_log.move_from_line(line) for line in lines]
        broken = audit_log.altered(lines)
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(
            f"the record of champions in {tracking_store.public_uri()} cannot be read ({error}); "
            f"mend or remove the damaged tag {_AUDIT_LOG_PREFIX}<n> of the registered model {MODEL}"
        ) from error
    if broken:
        log.warning("the record of champions was changed by hand at entry %s", ", ".join(map(str, broken)))
    return moves


def previous_champion() -> Version:
    """Return the champion before the present one.

    Raises:
        RegistryError: there was none, or its version is gone.
    """
    present = champion()
    earlier = [number for number in audit_log.champions_before(history()) if present and number != present.number]
    if not earlier:
        raise RegistryError("there is no champion to go back to; `python -m tasks.history` shows what was champion")
    return get_version(earlier[-1])


def move_champion(number: str, *, instead_of: str, kind: Kind, who: str, why: str, overruled: str = "") -> Move:
    """Make a version champion, on record. Call `settle` first.

    Args:
        number: the version.
        instead_of: the version that was champion when this move was decided, "" for none.
        kind: what the record calls the move.
        who, why: for the record.
        overruled: what held the promotion back and a person overruled; "" where nothing did.

    Raises:
        PromotionHeldError: somebody else moved the alias in the meantime; nothing was changed.
        RegistryError: the store does not answer.
    """
    lines, before = _audit_log_lines(), champion()
    if (before.number if before else "") != instead_of:
        _give_way(number, instead_of, history()[-1:])
    move = Move(
        number=len(lines) + 1,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=kind,
        before=instead_of,
        after=number,
        who=who,
        why=why,
        previous=audit_log.digest(lines[-1]) if lines else "",
        overruled=overruled,
    )
    experiment_id = _claim(move)
    if experiment_id is None:
        winner = _claim_of(move.number)
        _give_way(number, instead_of, [audit_log.move_from_line(winner.line)] if winner else [])
    _finish(_Claim(experiment_id, move.to_line(), is_open=True))
    return move


def unfinished() -> Move | None:
    """Return the move that a command has claimed and not finished, None where there is none; changes nothing."""
    lines = _audit_log_lines()
    for number in (len(lines), len(lines) + 1):
        claim = _claim_of(number)
        if claim and claim.is_open:
            return audit_log.move_from_line(claim.line)
    return None


def settle() -> None:
    """Finish the moves that killed commands have left between their claim and the alias."""
    lines = _audit_log_lines()
    last = _claim_of(len(lines))
    if last and last.is_open:
        _finish(last)
    while claim := _claim_of(len(lines) + 1):
        _finish(claim)  # a closed one: its entry was removed by hand, and comes back
        lines.append(claim.line)


def _give_way(number: str, instead_of: str, latest: list[Move]) -> NoReturn:
    """Tell the one who came second what happened."""
    found = "; ".join(
        f"entry {move.number} of the record: {move.who} made version {move.after} champion ({move.why})"
        for move in latest
    )
    decided = f"against version {instead_of}" if instead_of else "while there was no champion"
    raise PromotionHeldError(
        f"version {number} was not made champion: another move came first ({found or 'it is not on record'}), and this "
        f"one was decided {decided}; run the same command again, which decides against the champion of then"
    )


def _finish(claim: _Claim) -> None:
    """Bring record and alias to what a claim says. Two commands may do this at once: both do the same."""
    move, client = audit_log.move_from_line(claim.line), tracking_store.client()
    with tracking_store.store_errors(f"making version {move.after} champion"):
        client.set_registered_model_tag(MODEL, f"{_AUDIT_LOG_PREFIX}{move.number:06d}", claim.line)
        if claim.is_open:
            _point_alias_at_last_entry()
            _close(claim.experiment_id)
            log.info("entry %d of the record: version %s is champion", move.number, move.after)


def _point_alias_at_last_entry() -> None:
    """Move the alias; and again where a later move was finished in the meantime, which must not be undone here."""
    client, last = tracking_store.client(), history()[-1]
    while True:
        client.set_registered_model_alias(MODEL, CHAMPION, last.after)
        seen, last = last, history()[-1]
        if seen == last:
            return


def _claim(move: Move) -> str | None:
    """Make the experiment of an entry and return its id; None where the entry is claimed already."""
    client = tracking_store.client()
    from mlflow.exceptions import MlflowException

    with tracking_store.store_errors(f"claiming entry {move.number} of the record"):
        try:
            return str(client.create_experiment(_claim_name(move.number), tags={_ENTRY_TAG: move.to_line()}))
        except MlflowException as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                return None
            raise


def _claim_of(number: int) -> _Claim | None:
    client = tracking_store.client()
    with tracking_store.store_errors(f"looking for a claim on entry {number} of the record"):
        found = client.get_experiment_by_name(_claim_name(number))
    if found is None:
        return None
    return _Claim(found.experiment_id, found.tags[_ENTRY_TAG], is_open=found.lifecycle_stage == "active")


def _close(experiment_id: str) -> None:
    """Hide a claim that is done with; another command may have closed it already."""
    client = tracking_store.client()
    if client.get_experiment(experiment_id).lifecycle_stage == "active":
        client.delete_experiment(experiment_id)


def _claim_name(number: int) -> str:
    return f"{MODEL} audit log {number:06d}"


def _audit_log_lines() -> list[str]:
    client = tracking_store.client()
    from mlflow.exceptions import MlflowException

    with tracking_store.store_errors("reading the record of champions"):
        try:
            tags = client.get_registered_model(MODEL).tags
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
    return [tags[name] for name in sorted(tags) if name.startswith(_AUDIT_LOG_PREFIX)]
