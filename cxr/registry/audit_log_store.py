"""The audit log as the model registry stores it, and whether the alias `champion` agrees with it.

Entries are the tags `audit_log.<n>` of the registered model: they live where the alias lives, so whoever sees the
champion sees its history, and a lost working copy loses nothing. The tag `audit_log_head` names the last entry.

Each entry begins as a claim: an experiment `chest-xray-pneumonia audit log <n>` that carries the whole entry. A claim
is deleted when its move is finished, which in MLflow hides it, keeps its name reserved and keeps the entry readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cxr.registry import audit_log, tracking_store
from cxr.registry.audit_log import Fault, Head, Move
from cxr.registry.stored_names import CHAMPION, DECISION_TAG, ENTRY_TAG, HEAD_TAG, MODEL, claim_names, entry_lines

_RESTORED_BY = "`./run promote` restores it from its copy, else restore the store from a backup"
_PUT_BACK_BY = "`./run rollback --restore-only` puts the recorded champion back"


@dataclass(frozen=True)
class StoredLog:
    """The alias `champion` and the audit log, as of one moment.

    alias    version number, "" where the alias is not set
    entries  number -> line
    head     what the last entry should be; None where nothing says so
    """

    alias: str
    entries: Mapping[int, str]
    head: Head | None

    @property
    def last_number(self) -> int:
        """Number of the last entry that was ever written, 0 for none."""
        return max([*self.entries, self.head.number if self.head else 0], default=0)

    @property
    def faults(self) -> list[Fault]:
        """The entries that are changed or missing."""
        return audit_log.faults(self.entries, self.head)

    @property
    def moves(self) -> list[Move]:
        """The entries that can be read, in order."""
        return audit_log.read_moves(self.entries.values())

    @property
    def recorded(self) -> str:
        """The champion by the entries that can be read, "" for none."""
        return audit_log.recorded_champion(self.moves)


@dataclass(frozen=True)
class Claim:
    """An entry as its experiment carries it; open until the alias has moved."""

    experiment_id: str
    line: str
    is_open: bool


def read_log() -> StoredLog:
    """Return alias and audit log; empty where nothing was ever registered.

    Raises:
        RegistryError: the store does not answer.
    """
    client = tracking_store.client()
    with tracking_store.store_errors("reading the audit log"):
        model = tracking_store.unless_absent(lambda: client.get_registered_model(MODEL))
    if model is None:
        return StoredLog("", {}, None)
    entries = entry_lines(model.tags)
    head = audit_log.head_from_text(model.tags.get(HEAD_TAG, ""))
    return StoredLog(str(model.aliases.get(CHAMPION, "")), entries, _verified_head(entries, head))


def _verified_head(entries: Mapping[int, str], head: Head | None) -> Head | None:
    """Return the head that the last entry's claim gives where the stored one is missing or does not fit the entry.

    Release 0.4.0 stored none, and a head can be changed by hand like any tag; the claim is a second copy of the entry.
    """
    if _fits(head, entries):
        return head
    last = max([*entries, head.number if head else 0], default=0)
    claim = claim_of(last)
    return Head(last, audit_log.digest(claim.line)) if claim else head


def _fits(head: Head | None, entries: Mapping[int, str]) -> bool:
    """Say whether the head names the last entry as it is."""
    if head is None or head.number != max(entries, default=0):
        return False
    return head.sha256 == audit_log.digest(entries[head.number])


def agrees(alias: str, tags: Mapping[str, str]) -> bool:
    """Say whether the alias `champion` and an audit log without a fault agree, by the registered model alone.

    False where a claim has to be asked, and where there is a contradiction.

    Args:
        alias: the version it is on.
        tags: of the registered model.
    """
    stored = StoredLog(alias, entry_lines(tags), audit_log.head_from_text(tags.get(HEAD_TAG, "")))
    return _fits(stored.head, stored.entries) and not stored.faults and stored.alias == stored.recorded


def claim_of(number: int) -> Claim | None:
    """Return the claim on an entry, None where there is none."""
    client = tracking_store.client()
    with tracking_store.store_errors(f"looking for a claim on entry {number} of the audit log"):
        for name in claim_names(number):
            if number and (found := client.get_experiment_by_name(name)) is not None:
                return Claim(found.experiment_id, found.tags[ENTRY_TAG], is_open=found.lifecycle_stage == "active")
    return None


def contradiction(stored: StoredLog) -> str:
    """Say how the alias `champion` contradicts the audit log; "" where it does not, or while a move is under way."""
    last = [fault for fault in stored.faults if fault.number == stored.last_number]
    if last:
        return f"{last[0]} in the audit log, so the champion is not certain; {_RESTORED_BY}"
    if stored.alias == stored.recorded or _is_under_way(stored):
        return ""
    recorded = f"version {stored.recorded}" if stored.recorded else "no version"
    if not stored.alias:
        return f"the alias {CHAMPION} was removed by hand, the audit log says {recorded}; {_PUT_BACK_BY}"
    return (
        f"the alias {CHAMPION} is on version {stored.alias} ({_gate_says(stored.alias)}), the audit log says "
        f"{recorded}: it was moved past the gate; `./run promote` judges it, {_PUT_BACK_BY}"
    )


def _is_under_way(stored: StoredLog) -> bool:
    """Say whether a command is between the entry and the alias, or was a moment ago."""
    claim = claim_of(stored.last_number)
    return (claim is not None and claim.is_open) or read_log() != stored


def _gate_says(number: str) -> str:
    client = tracking_store.client()
    with tracking_store.store_errors(f"looking for the version {number}"):
        found = tracking_store.unless_absent(lambda: client.get_model_version(MODEL, number))
    return f"gate: {found.tags.get(DECISION_TAG, 'not asked') if found else 'unknown version'}"
