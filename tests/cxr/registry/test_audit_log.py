"""The audit log: its chain of digests, and the champions to go back to."""

import getpass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr.registry.audit_log import (
    Head,
    Kind,
    Move,
    champions_before,
    digest,
    faults,
    head_from_text,
    move_from_line,
    present_user,
    recorded_champion,
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
def test_any_changed_or_missing_entry_is_named(count: int, data: st.DataObject) -> None:
    lines = _chain(count)
    entries, head = dict(enumerate(lines, start=1)), Head(count, digest(lines[-1]))
    assert faults(entries, head) == []
    number = data.draw(st.integers(1, count))
    old = data.draw(st.sampled_from(["ann", '"previous": "', '"number"', "{"]))
    changed = entries | {number: entries[number].replace(old, f"{old}x")}
    assert [(fault.number, fault.what) for fault in faults(changed, head)] == [(number, "changed")]
    missing = {n: line for n, line in entries.items() if n != number}
    (fault,) = faults(missing, head)
    assert (fault.number, fault.what, fault.sha256) == (number, "missing", digest(entries[number]))


def test_without_a_head_the_last_entry_is_not_vouched_for() -> None:
    lines = _chain(2)
    entries = dict(enumerate(lines, start=1))
    assert faults(entries, None) == faults(entries | {2: lines[1].replace("ann", "eve")}, None) == []


def test_a_head_is_read_back_as_written() -> None:
    head = Head(3, "ab" * 32)
    assert head_from_text(head.to_text()) == head
    assert head_from_text("") is head_from_text("three") is None


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], []),
        ([("promote", "", "1")], []),
        ([("promote", "", "1"), ("promote", "1", "2")], ["1"]),
        # two rollbacks in a row go back two champions, not to and fro
        ([("promote", "", "1"), ("promote", "1", "2"), ("promote", "2", "3"), ("rollback", "3", "2")], ["1"]),
        ([("rollback", "2", "1")], []),
        # a version that was set by hand, replaced, and rolled back to: as release 0.4.0 recorded it
        ([("promote", "", "1"), ("promote", "9", "2"), ("rollback", "2", "9")], ["1"]),
        ([("promote", "", "1"), ("promote", "1", "2"), ("restore", "2", "2")], ["1"]),
    ],
)
def test_the_champions_to_go_back_to(steps: list[tuple[Kind, str, str]], expected: list[str]) -> None:
    assert champions_before(_moves(*steps)) == expected


def test_a_version_that_was_never_promoted_is_no_recorded_champion() -> None:
    moves = _moves(("promote", "", "1"), ("promote", "9", "2"), ("rollback", "2", "9"))
    assert recorded_champion(moves) == "1"
    assert recorded_champion(moves[:2]) == "2"
    assert recorded_champion([]) == recorded_champion(_moves(("restore", "9", ""))) == ""


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
