"""Moving the alias `champion`: each move is in the audit log, and no two happen at once.

MLflow has no compare-and-set, but no two experiments have one name. So entry n of the audit log begins as a claim
(cxr.registry.audit_log_store): the command that creates it owns the move. Then come the entry's tag, the head and the
alias, and at last the claim is closed. A command that was killed on the way leaves its claim open: the next move finds
it and finishes it first.

Whoever may write to the registry can also move the alias by hand. The audit log then contradicts it, and the next
promotion or rollback decides against the recorded champion, never against a version that the gate did not pass.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NoReturn

from cxr.common.errors import ParamsError, PromotionHeldError, RegistryError
from cxr.registry import audit_log, tracking_store
from cxr.registry.audit_log import NO_VERSION, Head, Kind, Move
from cxr.registry.audit_log_store import Claim, StoredLog, claim_of, contradiction, read_log
from cxr.registry.stored_names import CHAMPION, ENTRY_TAG, HEAD_TAG, MODEL, MOST_CHARACTERS, claim_names, entry_tag
from cxr.registry.versions import Version, get_version, look_up

_CUT = " ... (cut)"

log = logging.getLogger("cxr.registry.champion.aliases")


@dataclass(frozen=True)
class Standing:
    """Which version is champion; "" for none.

    recorded  by the audit log
    alias     by the alias, which is what serves
    """

    recorded: str
    alias: str

    @property
    def moved_by_hand(self) -> bool:
        """Whether somebody moved the alias past the gate. Only meaningful after `settle`."""
        return self.recorded != self.alias


def standing() -> Standing:
    """Return what audit log and alias say of the champion."""
    stored = read_log()
    return Standing(stored.recorded, stored.alias)


def history() -> list[Move]:
    """Return every move of the alias `champion`, the oldest first; warn of changed and missing entries.

    Raises:
        RegistryError: an entry cannot be read.
    """
    stored = read_log()
    if stored.faults:
        log.warning("the audit log was changed by hand: %s", "; ".join(map(str, stored.faults)))
    for number, line in stored.entries.items():
        try:
            audit_log.move_from_line(line)
        except (ValueError, AttributeError, TypeError) as error:
            raise RegistryError(
                f"entry {number} of the audit log in {tracking_store.public_uri()} cannot be read ({error}); "
                f"`./run promote` restores it, or restore the tag {entry_tag(number)} of the registered "
                f"model {MODEL} from a backup"
            ) from error
    return stored.moves


def mismatch() -> str:
    """Say how the alias contradicts the audit log; "" where it does not."""
    return contradiction(read_log())


def problems() -> list[str]:
    """Return what is wrong with the champion's record: entries changed or missing, an alias moved by hand."""
    stored = read_log()
    found = contradiction(stored)
    others = [fault for fault in stored.faults if not found.startswith(str(fault))]
    return [*([found] if found else []), *(f"{fault} in the audit log" for fault in others)]


def earlier_champion(number: str | None = None) -> Version:
    """Return the champion before the recorded one; only versions that passed the gate or were approved count.

    Args:
        number: an earlier one than that.

    Raises:
        RegistryError: there was none, or its version is gone.
    """
    moves = history()
    if number and not audit_log.is_rollback(moves, number):
        raise RegistryError(
            f"version {number} is no earlier champion to go back to; `./run history` shows what was champion, and "
            f"`./run promote --version {number}` asks the gate"
        )
    present = audit_log.recorded_champion(moves)
    earlier = [before for before in audit_log.champions_before(moves) if before != present]
    if not earlier:
        raise RegistryError("there is no champion to go back to; `./run history` shows what was champion")
    return get_version(number or earlier[-1])


def move_champion(
    number: str,
    *,
    instead_of: str,
    kind: Kind,
    approved_by: str,
    reason: str,
    overruled: str = "",
    alias_was: str | None = None,
) -> Move:
    """Make a version champion and record it. Call `settle` first.

    Args:
        number: the version; "" for no champion.
        instead_of: the recorded champion when this move was decided, "" for none.
        kind: what the audit log calls the move.
        approved_by, reason: for the audit log.
        overruled: what held the promotion back and a person overruled; "" where nothing did.
        alias_was: where the alias was when this move was decided, if not on `instead_of`; "" for nowhere.

    Raises:
        PromotionHeldError: somebody else moved the alias in the meantime; nothing was changed.
        ParamsError: name and reason are too long for an entry; nothing was changed.
        RegistryError: the version has been deleted, or the store does not answer.
    """
    stored, alias = read_log(), instead_of if alias_was is None else alias_was
    if (stored.recorded, stored.alias) != (instead_of, alias):
        _give_way(number, instead_of, stored.moves[-1:])
    move = _short_enough(
        Move(
            number=stored.last_number + 1,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            kind=kind,
            before=instead_of,
            after=number,
            approved_by=approved_by,
            reason=reason,
            previous=_last_digest(stored),
            overruled=overruled,
            found="" if alias == instead_of else alias or NO_VERSION,
        )
    )
    if _is_gone(number):
        raise RegistryError(_deleted(number))
    experiment_id = _claim(move)
    if experiment_id is None:
        winner = claim_of(move.number)
        _give_way(number, instead_of, [audit_log.move_from_line(winner.line)] if winner else [])
    if not _finish(Claim(experiment_id, move.to_line(), is_open=True)):
        _take_back()
        raise RegistryError(_deleted(number))
    return move


def _short_enough(move: Move) -> Move:
    """Return a move whose entry the store can hold: a claim, which may be longer, would block all later moves.

    What was overruled is cut where need be: the verdict, a tag of the version, has all of it.
    """
    surplus = len(move.to_line()) - MOST_CHARACTERS
    if surplus > 0 and move.overruled:
        kept = max(0, len(move.overruled) - surplus - len(_CUT))
        move = replace(move, overruled=f"{move.overruled[:kept]}{_CUT}")
        surplus = len(move.to_line()) - MOST_CHARACTERS
    if surplus > 0:
        raise ParamsError(
            f"name and reason are too long for the audit log, whose entries have {MOST_CHARACTERS} characters: leave "
            f"out {surplus} or more; nothing was changed"
        )
    return move


def _is_gone(number: str) -> bool:
    return bool(number) and look_up(number) is None


def _deleted(number: str) -> str:
    return f"version {number} has been deleted, so it is not champion; `./run history` shows what was"


def _last_digest(stored: StoredLog) -> str:
    """Return the digest of the last entry as it was written: a new entry must not vouch for a changed one."""
    if stored.head and stored.head.number == stored.last_number:
        return stored.head.sha256
    return audit_log.digest(stored.entries[stored.last_number]) if stored.entries else ""


def restore_champion(*, approved_by: str, reason: str) -> Move:
    """Put the alias back on the recorded champion, or remove it where there is none. Call `settle` first."""
    now = standing()
    target = now.recorded if now.recorded and look_up(now.recorded) else ""
    set_by_hand = f"version {now.alias} was set as champion past the gate" if now.alias else "the alias was removed"
    return move_champion(
        target,
        instead_of=now.recorded,
        kind="restore",
        approved_by=approved_by,
        reason=f"{set_by_hand}; {reason}",
        alias_was=now.alias,
    )


def unfinished() -> Move | None:
    """Return the move that a command has claimed and not finished, None where there is none; changes nothing."""
    last = read_log().last_number
    for number in (last, last + 1):
        claim = claim_of(number)
        if claim and claim.is_open:
            return audit_log.move_from_line(claim.line)
    return None


def settle() -> None:
    """Finish the moves that killed commands left between claim and alias; restore entries changed by hand."""
    stored = read_log()
    _restore_entries(stored)
    number, served = stored.last_number, True
    last = claim_of(number)
    if last and last.is_open:
        served = _finish(last)
    while claim := claim_of(number := number + 1):
        if claim.is_open:
            served = _finish(claim)
        else:  # its entry was removed by hand
            _write_entry(claim)
    if not served:
        _take_back()


def _take_back() -> None:
    """Go back from a version that was deleted before it served, so that the gate has a champion to compare with."""
    stored = read_log()
    before = stored.moves[-1].before
    move_champion(
        before if before and not _is_gone(before) else "",
        instead_of=stored.recorded,
        kind="rollback",
        approved_by=audit_log.present_user(),
        reason=f"version {stored.recorded} was deleted before it became champion",
        alias_was=stored.alias,
    )


def _restore_entries(stored: StoredLog) -> None:
    """Write changed and missing entries again where their claims have kept them."""
    for fault in stored.faults:
        claim = claim_of(fault.number)
        if claim and fault.sha256 in {"", audit_log.digest(claim.line)}:
            log.warning("%s in the audit log; it is restored from its claim", fault)
            _write_entry(claim)


def _give_way(number: str, instead_of: str, latest: list[Move]) -> NoReturn:
    """Tell the command that came second what happened."""
    found = "; ".join(
        f"entry {move.number}: {move.approved_by} made version {move.after or NO_VERSION} champion ({move.reason})"
        for move in latest
    )
    decided = f"against version {instead_of}" if instead_of else "while there was no champion"
    raise PromotionHeldError(
        f"version {number} was not made champion: another move came first ({found or 'not in the audit log'}), and "
        f"this one was decided {decided}; run the same command again to decide against the present champion"
    )


def _finish(claim: Claim) -> bool:
    """Bring audit log and alias to what an open claim says; return False where its version has been deleted.

    Two commands may do this at once: both do the same.
    """
    move = audit_log.move_from_line(claim.line)
    _write_entry(claim)
    with tracking_store.store_errors(f"making version {move.after} champion"):
        there = _point_at_last_entry(claim)
        _close(claim.experiment_id)
    if there:
        log.info("entry %d of the audit log: version %s is champion", move.number, move.after or NO_VERSION)
    return there


def _write_entry(claim: Claim) -> None:
    number, client = audit_log.move_from_line(claim.line).number, tracking_store.client()
    with tracking_store.store_errors(f"writing entry {number} of the audit log"):
        client.set_registered_model_tag(MODEL, entry_tag(number), claim.line)


def _point_at_last_entry(claim: Claim) -> bool:
    """Set head and alias to the last entry; repeat where a later move was finished in the meantime.

    Returns False, and leaves the alias where it serves, where the entry's version has been deleted.
    """
    client = tracking_store.client()
    number, line = audit_log.move_from_line(claim.line).number, claim.line
    while True:
        last = read_log()
        if last.last_number > number and last.last_number in last.entries:
            number, line = last.last_number, last.entries[last.last_number]
        champion = audit_log.move_from_line(line).after
        client.set_registered_model_tag(MODEL, HEAD_TAG, Head(number, audit_log.digest(line)).to_text())
        there = not _is_gone(champion)
        if champion and there:
            client.set_registered_model_alias(MODEL, CHAMPION, champion)
        elif last.alias and not champion:
            client.delete_registered_model_alias(MODEL, CHAMPION)
        if read_log().last_number == number:
            return there


def _claim(move: Move) -> str | None:
    """Create the experiment of an entry and return its id; None where the entry is claimed already."""
    if claim_of(move.number):
        return None
    client, name = tracking_store.client(), claim_names(move.number)[0]
    with tracking_store.store_errors(f"claiming entry {move.number} of the audit log"):
        made = tracking_store.unless_present(lambda: client.create_experiment(name, tags={ENTRY_TAG: move.to_line()}))
    return None if made is None else str(made)


def _close(experiment_id: str) -> None:
    """Hide a finished claim; another command may have closed it already."""
    client = tracking_store.client()
    if client.get_experiment(experiment_id).lifecycle_stage == "active":
        client.delete_experiment(experiment_id)
