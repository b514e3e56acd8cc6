"""The audit log of the alias `champion`: one entry a move, each naming the one before by its digest.

An entry is one line of JSON that holds the SHA-256 of the entry before it. The head names the last entry. So a changed
or missing entry can be named, the last one too.
"""

import getpass
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from cxr.common.errors import RegistryError, other_format
from cxr.registry.stored_names import current_entry

Kind = Literal["promote", "rollback", "restore"]

CHAMPION_ALREADY = "is champion already; nothing to do"
"""Ends the line of a promotion that moved nothing."""
_FORMAT = 1
"""Of an entry; one without the field `format` has this one. Whoever changes what a field means writes a higher."""
NO_VERSION = "none"
"""Stands in `Move.found` where the alias had been removed."""


@dataclass(frozen=True)
class Move:
    """The alias `champion` went from one version to another.

    number       1, 2, ...
    time         UTC, ISO 8601 with seconds
    kind         "restore": the alias had been moved past the gate and goes back to the recorded champion
    before       champion by the entry before, "" where there was none
    after        version that is champion since, "" where there is none
    approved_by  who ran the command, or who approved a held version
    previous     SHA-256 of the entry before, "" for the first
    overruled    what held the promotion back when a person approved it all the same; "" where nothing did
    found        version the alias was on where that was not `before`; "" where it was
    """

    number: int
    time: str
    kind: Kind
    before: str
    after: str
    approved_by: str
    reason: str
    previous: str
    overruled: str = ""  # entries from before these two fields are read too
    found: str = ""

    def to_line(self) -> str:
        """Return the entry as it is stored; its room is counted in characters, and an escaped one takes six."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class Head:
    """Number and digest of the last entry."""

    number: int
    sha256: str

    def to_text(self) -> str:
        """Return the head as it is stored."""
        return f"{self.number} {self.sha256}"


@dataclass(frozen=True)
class Fault:
    """An entry that is not what it was; `sha256` is what its line should have, "" where nothing says so."""

    number: int
    what: Literal["changed", "missing"]
    sha256: str

    def __str__(self) -> str:
        """Return the fault for people."""
        return f"entry {self.number} {'was changed' if self.what == 'changed' else 'is missing'}"


def head_from_text(text: str) -> Head | None:
    """Read a stored head; None when it is not one."""
    number, _, sha256 = text.partition(" ")
    return Head(int(number), sha256) if number.isdecimal() and sha256 else None


def move_from_line(line: str) -> Move:
    """Read a stored entry.

    Raises:
        RegistryError: a later release wrote it. Left out, it would make another version the recorded champion.
        ValueError, AttributeError, TypeError: it is no entry.
    """
    fields = current_entry(json.loads(line))
    if (found := fields.pop("format", _FORMAT)) != _FORMAT:
        raise RegistryError(other_format(f"entry {fields.get('number')} of the audit log", found, _FORMAT))
    return Move(**fields)


def read_moves(lines: Iterable[str]) -> list[Move]:
    """Return the entries among `lines`, those that cannot be read left out."""
    return [move for line in lines if (move := _readable(line)) is not None]


def _readable(line: str | None) -> Move | None:
    try:
        return None if line is None else move_from_line(line)
    except (ValueError, AttributeError, TypeError):
        return None


def digest(line: str) -> str:
    """Return the SHA-256 of a stored entry."""
    return hashlib.sha256(line.encode()).hexdigest()


def faults(entries: Mapping[int, str], head: Head | None) -> list[Fault]:
    """Return the entries that are changed or missing, in order.

    Each entry is vouched for by the next one, the last by the head. A faulty entry vouches for none: its own
    `previous` may be what was changed.

    Args:
        entries: number -> line.
        head: None where the store has none.
    """
    found: list[Fault] = []
    voucher = ""
    for number in range(max([*entries, head.number if head else 0], default=0), 0, -1):
        if head and head.number == number:
            voucher = head.sha256
        line, move = entries.get(number), _readable(entries.get(number))
        if line is None:
            found.append(Fault(number, "missing", voucher))
        elif move is None or move.number != number or voucher not in {"", digest(line)}:
            found.append(Fault(number, "changed", voucher))
            move = None
        voucher = move.previous if move else ""
    return found[::-1]


def champions_before(moves: Sequence[Move]) -> list[str]:
    """Return the versions that a rollback would go back to, the nearest last.

    A promotion puts the champion it replaced on the stack, a rollback takes it off again: two rollbacks in a row
    go back two champions, not to and fro. Only promoted versions count: they passed the gate or were approved.
    """
    stack: list[str] = []
    present = ""
    for move in moves:
        if move.kind == "promote":
            stack.append(present)
        elif move.kind == "rollback" and move.after in stack:
            del stack[len(stack) - 1 - stack[::-1].index(move.after) :]
        present = move.after
    approved = approved_versions(moves)
    return [version for version in stack if version in approved]


def is_rollback(moves: Sequence[Move], version: str) -> bool:
    """Say whether making `version` champion goes back to one that passed the gate or was approved before."""
    return version != recorded_champion(moves) and version in champions_before(moves)


def recorded_champion(moves: Sequence[Move]) -> str:
    """Return the champion by the audit log, "" for none.

    Release 0.4.0 could roll back to a version that was only ever set by hand; such an entry does not count.
    """
    present = moves[-1].after if moves else ""
    if not present or present in approved_versions(moves):
        return present
    return next(reversed(champions_before(moves)), "")


def approved_versions(moves: Sequence[Move]) -> set[str]:
    """Return the versions that were ever promoted: the gate passed them, or a person approved them."""
    return {move.after for move in moves if move.kind == "promote"}


def rolled_back_by(moves: Sequence[Move], version: str) -> Move | None:
    """Return the rollback that took `version` out of service, None where it was promoted again since or never was."""
    for move in reversed(moves):
        if move.kind == "rollback" and move.before == version:
            return move
        if move.after == version:
            return None
    return None


def present_user() -> str:
    """Return the name of the operating system's user, for the audit log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"
