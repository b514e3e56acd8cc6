"""The record of champions: its chain, and what it says about going back."""

import getpass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr.registry.audit_log import (
    Kind,
    Move,
    altered,
    champions_before,
    digest,
    move_from_line,
    present_user,
    rolled_back_by,
)


def _moves(*steps: tuple[Kind, str, str]) -> list[Move]:
    return [Move(n, "2026-01-01T00:00:00+00:00", *step, "ann", "why", "") for n, step in enumerate(steps, start=1)]


def _chain(count: int) -> list[str]:
    lines: list[str] = []
    for n in range(1, count + 1):
        previous = digest(lines[-1]) if lines else ""
        lines.append(Move(n, "2026-01-01", "promote", str(n - 1), str(n), "ann", "why", previous).to_line())
    return lines


def test_an_entry_is_read_back_as_written() -> None:
    move = _moves(("promote", "", "1"))[0]
    assert move_from_line(move.to_line()) == move


@given(st.integers(1, 6), st.data())
def test_any_changed_or_removed_entry_but_the_last_shows(count: int, data: st.DataObject) -> None:
    lines = _chain(count + 1)
    assert altered(lines) == []
    place = data.draw(st.integers(0, count - 1))
    changed = [line.replace("ann", "eve") if n == place else line for n, line in enumerate(lines)]
    assert altered(changed) == [place + 2]
    assert altered(lines[:place] + lines[place + 1 :])


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], []),
        ([("promote", "", "1")], []),
        ([("promote", "", "1"), ("promote", "1", "2")], ["1"]),
        # two rollbacks in a row go back two champions, not to and fro
        ([("promote", "", "1"), ("promote", "1", "2"), ("promote", "2", "3"), ("rollback", "3", "2")], ["1"]),
        ([("rollback", "2", "1")], []),
    ],
)
def test_the_champions_to_go_back_to(steps: list[tuple[Kind, str, str]], expected: list[str]) -> None:
    assert champions_before(_moves(*steps)) == expected


def test_a_version_counts_as_rolled_back_until_it_is_promoted_again() -> None:
    moves = _moves(("promote", "", "1"), ("promote", "1", "2"), ("rollback", "2", "1"))
    assert rolled_back_by(moves, "2") == moves[2]
    assert rolled_back_by(moves, "1") is None
    assert rolled_back_by([*moves, *_moves(("promote", "1", "2"))], "2") is None
    assert rolled_back_by(moves, "9") is None


def test_a_user_without_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise OSError("no user name for this id")

    monkeypatch.setattr(getpass, "getuser", fail)
    assert present_user() == "unknown"
