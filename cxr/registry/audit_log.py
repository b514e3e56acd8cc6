"""The record of which version was champion when: entries are only ever added, and each names the one before.

An entry is one line of JSON that holds the SHA-256 of the line before it, so that a changed or missing entry shows.
"""

import getpass
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["promote", "rollback"]


@dataclass(frozen=True)
class Move:
    """The alias `champion` went from one version to another.

    number     1, 2, ...
    time       UTC, ISO 8601 with seconds
    before     version that was champion, "" where there was none
    after      version that is champion since
    previous   SHA-256 of the entry before, "" for the first
    overruled  what held the promotion back when a person approved it all the same; "" where nothing did
    """

    number: int
    time: str
    kind: Kind
    before: str
    after: str
    who: str
    why: str
    previous: str
    overruled: str = ""  # entries from before this field are read too

    def to_line(self) -> str:
        """Return the entry as it is stored."""
        return json.dumps(asdict(self), sort_keys=True)


def move_from_line(line: str) -> Move:
    """Read a stored entry. Raises ValueError, KeyError or TypeError when it is not one."""
    return Move(**json.loads(line))


def digest(line: str) -> str:
    """Return the SHA-256 of a stored entry."""
    return hashlib.sha256(line.encode()).hexdigest()


def altered(lines: Sequence[str]) -> list[int]:
    """Return the numbers of entries that do not follow from the entry before as it stands now."""
    expected = ["", *(digest(line) for line in lines)]
    moves = [move_from_line(line) for line in lines]
    return [
        move.number
        for place, move in enumerate(moves, start=1)
        if move.number != place or move.previous != expected[place - 1]
    ]


def champions_before(moves: Sequence[Move]) -> list[str]:
    """Return the versions that a rollback would go back to, the nearest last.

    A promotion puts the version it replaced on the stack, a rollback takes it off again: two rollbacks in a row
    go back two champions, not to and fro.
    """
    stack: list[str] = []
    for move in moves:
        if move.kind == "promote":
            stack.append(move.before)
        elif stack:
            stack.pop()
    return [version for version in stack if version]


def rolled_back_by(moves: Sequence[Move], version: str) -> Move | None:
    """Return the rollback that took `version` out of service, None where it was promoted again since or never was."""
    for move in reversed(moves):
        if move.kind == "rollback" and move.before == version:
            return move
        if move.after == version:
            return None
    return None


def present_user() -> str:
    """Return who is at the keyboard, for the record."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"
