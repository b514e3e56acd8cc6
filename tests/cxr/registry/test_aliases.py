"""Moves of the alias `champion` in a real registry: audit log, killed commands, two at once, moves by hand."""

import contextlib
import itertools
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlflow
import pytest

from cxr.common.errors import ParamsError, PromotionHeldError, RegistryError
from cxr.registry import tracking_store, versions
from cxr.registry.audit_log import Kind, Move
from cxr.registry.audit_log_store import claim_of
from cxr.registry.champion import aliases
from cxr.registry.stored_names import entry_lines
from tests.support.faults import fault
from tests.support.logs import own_messages
from tests.support.project import PROJECT
from tests.support.projects.registry_project import enter_project
from tests.support.services.mlflow_server import serve_mlflow
from tests.support.waiting import wait_for

MOVE = """
import sys, time
from pathlib import Path
from cxr.common.cli import run_command
from cxr.registry import tracking_store
from cxr.registry.champion import aliases
tracking_store.client().search_experiments()
number, instead_of = sys.argv[1:3]
Path(f"ready-{number}").touch()
while not Path("go").exists():
    time.sleep(0.001)
def move():
    aliases.move_champion(number, instead_of=instead_of, kind="promote", approved_by="ann", reason="at once")
run_command(move)
"""

KILLED = """
import os, signal
import mlflow
from cxr.registry.champion import aliases
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
mlflow.MlflowClient.set_registered_model_alias = die
aliases.move_champion("2", instead_of="1", kind="promote", approved_by="ann", reason="better")
"""

AtOnce = Callable[[Path, tuple[str, ...]], dict[str, str]]


class Killed(BaseException):
    """Ends a move where it is, as SIGKILL would: nothing of the product catches it."""


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))


def create_versions(count: int) -> None:
    client = tracking_store.client()
    client.create_registered_model(versions.MODEL)
    for _ in range(count):
        client.create_model_version(versions.MODEL, "s3://models/one")


def move(
    number: str, instead_of: str, *, kind: Kind = "promote", approved_by: str = "ann", reason: str = "better"
) -> Move:
    return aliases.move_champion(number, instead_of=instead_of, kind=kind, approved_by=approved_by, reason=reason)


def names_of_claims() -> list[str]:
    found = tracking_store.client().search_experiments(view_type=1)  # the open ones
    return [experiment.name for experiment in found if "audit log" in experiment.name]


def test_without_a_model_there_is_no_history_and_nothing_to_go_back_to() -> None:
    assert aliases.history() == []
    assert aliases.unfinished() is None
    aliases.settle()
    with pytest.raises(RegistryError, match="there is no champion to go back to"):
        aliases.earlier_champion()


def test_every_move_is_on_record_and_rollbacks_go_back_one_by_one() -> None:
    create_versions(2)
    move("1", "", reason="first")
    move("2", "1", approved_by="ben")
    assert aliases.earlier_champion().number == "1"
    move("1", "2", kind="rollback", approved_by="cem", reason="misses effusions")
    moves = aliases.history()
    assert [(m.number, m.kind, m.before, m.after, m.approved_by, m.reason) for m in moves] == [
        (1, "promote", "", "1", "ann", "first"),
        (2, "promote", "1", "2", "ben", "better"),
        (3, "rollback", "2", "1", "cem", "misses effusions"),
    ]
    assert all(entry.time.endswith("+00:00") for entry in moves)
    assert names_of_claims() == []
    with pytest.raises(RegistryError, match="there is no champion to go back to"):
        aliases.earlier_champion()


@fault(
    "promote, rollback", "the clock jumps by a year, back or forth", "moves keep their order and no move is refused",
    "the time as the machine gave it",
)  # fmt: skip
def test_the_order_of_moves_does_not_depend_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    create_versions(3)
    for number, before, days in (("1", "", 0), ("2", "1", -366), ("3", "2", 366)):
        with monkeypatch.context() as patched:
            patched.setattr(aliases, "datetime", Mock(now=lambda zone, days=days: datetime.now(zone) + timedelta(days)))
            move(number, before)
    assert [each.after for each in aliases.history()] == ["1", "2", "3"]
    assert [each.time for each in aliases.history()] != sorted(each.time for each in aliases.history())
    assert aliases.earlier_champion().number == "2"
    assert aliases.mismatch() == ""


def test_a_move_that_was_decided_against_an_earlier_champion_is_not_made() -> None:
    create_versions(3)
    move("1", "")
    move("2", "1", approved_by="ben", reason="new images")
    with pytest.raises(PromotionHeldError) as caught:
        move("3", "1")
    assert "entry 2: ben made version 2 champion (new images)" in str(caught.value)
    assert [entry.after for entry in aliases.history()] == ["1", "2"]
    assert versions.get_version("champion").number == "2"


def at_once_in_processes(folder: Path, numbers: tuple[str, ...]) -> dict[str, str]:
    """Promote both versions instead of version 1 at the same moment; return each command's error, "" for none."""
    both = {
        number: subprocess.Popen([sys.executable, "-c", MOVE, number, "1"], stderr=subprocess.PIPE, text=True)
        for number in numbers
    }
    wait_for(lambda: all((folder / f"ready-{number}").exists() for number in numbers))
    (folder / "go").touch()
    messages = {number: process.communicate()[1] for number, process in both.items()}
    codes = {process.returncode for process in both.values()}
    assert codes == {0, PromotionHeldError.exit_code}, messages
    return {number: messages[number] if process.returncode else "" for number, process in both.items()}


def at_once_in_threads(_folder: Path, numbers: tuple[str, ...]) -> dict[str, str]:
    def promote(number: str) -> str:
        try:
            move(number, "1")
        except PromotionHeldError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(numbers)) as pool:
        return dict(zip(numbers, pool.map(promote, numbers), strict=True))


@pytest.mark.parametrize(
    ("through_server", "at_once"),
    [(False, at_once_in_processes), (True, at_once_in_threads)],
    ids=["database", "server"],
)
@fault(
    "promote",
    "two promotions at once",
    "one wins, the other changes nothing",
    "exit code 11, another move came first",
)
def test_of_two_promotions_at_once_one_wins_and_the_other_is_held(
    through_server: bool, at_once: AtOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_versions(3)
    move("1", "")
    with contextlib.ExitStack() as stack:
        if through_server:
            monkeypatch.setenv(tracking_store.STORE_VARIABLE, stack.enter_context(serve_mlflow(tmp_path / "mlruns")))
        messages = at_once(tmp_path, ("2", "3"))
        winner, loser = sorted(messages, key=messages.__getitem__)
        assert messages[winner] == ""
        assert f"version {loser} was not made champion" in messages[loser]
        aliases.settle()
        assert versions.get_version("champion").number == winner
        assert [(entry.before, entry.after) for entry in aliases.history()] == [("", "1"), ("1", winner)]
        assert names_of_claims() == []


@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("set_registered_model_tag", 1),
        ("set_registered_model_tag", 2),
        ("set_registered_model_alias", 1),
        ("delete_experiment", 1),
    ],
)
@fault(
    "promote",
    "a move of the champion stops at any of its steps",
    "the next command finishes it",
    "one entry in the audit log",
)
def test_a_move_killed_at_any_step_is_finished_by_the_next_command(
    step: str, call: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create_versions(2)
    move("1", "")
    with monkeypatch.context() as patch:
        real, calls = getattr(mlflow.MlflowClient, step), itertools.count(1)

        def die(*arguments: Any, **named: Any) -> Any:
            if next(calls) == call:
                raise Killed
            return real(*arguments, **named)

        patch.setattr(mlflow.MlflowClient, step, die)
        with pytest.raises(Killed):
            move("2", "1")
    assert_the_next_command_finishes(caplog)


@fault("promote", "SIGKILL in the middle of a move", "the next command finishes it", "one entry in the audit log")
def test_a_move_ended_by_sigkill_is_finished_by_the_next_command(caplog: pytest.LogCaptureFixture) -> None:
    create_versions(2)
    move("1", "")
    done = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert done.returncode == -signal.SIGKILL
    assert_the_next_command_finishes(caplog)


def assert_the_next_command_finishes(caplog: pytest.LogCaptureFixture) -> None:
    """Assert that the move from version 1 to 2 is known as begun, and that the next command completes it."""
    begun = aliases.unfinished()
    assert begun is not None
    assert (begun.before, begun.after, begun.approved_by) == ("1", "2", "ann")
    assert versions.champion() is not None
    assert aliases.problems() == own_messages(caplog) == []  # a move under way is not a move by hand
    aliases.settle()
    assert aliases.unfinished() is None
    assert versions.get_version("champion").number == "2"
    assert aliases.history()[1:] == [begun]
    assert names_of_claims() == aliases.problems() == []
    move("1", "2", kind="rollback")
    assert [entry.number for entry in aliases.history()] == [1, 2, 3]


@pytest.mark.parametrize("before", ["1", ""])
@fault(
    "promote, rollback",
    "a move is cut off, and its version is deleted before it is finished",
    "the champion before stays, and the next command goes on",
    "a rollback in the audit log with the reason",
)
def test_a_move_cut_off_whose_version_is_deleted_blocks_no_later_one(
    before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_versions(3)
    if before:
        move("1", "")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            move("2", before)
    tracking_store.client().delete_model_version(versions.MODEL, "2")
    aliases.settle()
    assert aliases.standing() == aliases.Standing(recorded=before, alias=before)
    assert aliases.history()[-1].reason == "version 2 was deleted before it became champion"
    assert aliases.problems() == names_of_claims() == []
    move("3", before)
    assert [entry.after for entry in aliases.history()] == [*([before] if before else []), "2", before, "3"]


@pytest.mark.parametrize("step", ["create_experiment", "set_registered_model_tag"])
def test_a_version_deleted_in_the_middle_of_its_promotion_is_never_called_champion(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_versions(3)
    move("1", "")
    client = tracking_store.client()
    real = getattr(mlflow.MlflowClient, step)

    def deletes(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(mlflow.MlflowClient, step, real)
        client.delete_model_version(versions.MODEL, "2")
        return real(*arguments, **named)

    monkeypatch.setattr(mlflow.MlflowClient, step, deletes)
    with pytest.raises(RegistryError, match="version 2 has been deleted, so it is not champion"):
        move("2", "1")
    assert aliases.standing() == aliases.Standing(recorded="1", alias="1")
    with pytest.raises(RegistryError, match="version 2 has been deleted"):
        move("2", "1")
    assert aliases.unfinished() is None


@fault("promote, rollback", "the reason is longer than the store holds", "nothing is changed",
       "exit code 2, how many characters to leave out")  # fmt: skip
def test_an_entry_that_the_store_cannot_hold_is_never_begun() -> None:
    """In PostgreSQL the tag of a registered model has 5000 characters, in SQLite there is no limit."""
    create_versions(2)
    move("1", "", reason="\N{CYRILLIC SMALL LETTER ZHE}" * 4000)
    with pytest.raises(ParamsError, match=r"leave out \d+ or more; nothing was changed"):
        move("2", "1", reason="r" * 5000)
    assert aliases.unfinished() is None
    held = "checks " * 1000
    aliases.move_champion(
        "2", instead_of="1", kind="promote", approved_by="ann", reason="read all images", overruled=held
    )
    last = aliases.history()[-1]
    assert (last.reason, last.overruled[:100]) == ("read all images", held[:100])
    assert last.overruled.endswith("(cut)")
    tags = tracking_store.client().get_registered_model(versions.MODEL).tags
    assert max(len(line) for line in entry_lines(tags).values()) <= 5000


def test_a_late_finisher_does_not_undo_the_move_that_came_after() -> None:
    create_versions(3)
    move("1", "")
    move("2", "1")
    move("3", "2")
    claim = claim_of(2)
    assert claim is not None
    tracking_store.client().restore_experiment(claim.experiment_id)  # open, as its slow owner still sees it
    aliases._finish(replace(claim, is_open=True))
    assert versions.get_version("champion").number == "3"
    assert [entry.after for entry in aliases.history()] == ["1", "2", "3"]
    assert aliases.problems() == []


def set_by_hand(number: str) -> None:
    tracking_store.client().set_registered_model_alias(versions.MODEL, "champion", number)


def test_a_champion_set_by_hand_is_served_with_one_warning_however_often_it_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    create_versions(2)
    move("1", "")
    assert versions.get_version("champion").number == "1"
    assert own_messages(caplog) == []
    versions.tag_version("2", {"promotion_decision": "REJECT"})
    set_by_hand("2")
    assert aliases.unfinished() is None
    for _ in range(3):
        assert versions.get_version("champion").number == "2"
    (warning,) = own_messages(caplog)
    assert "version 2 (gate: REJECT)" in warning
    assert "the audit log says version 1" in warning
    assert aliases.problems() == [warning]
    assert aliases.standing() == aliases.Standing(recorded="1", alias="2")


def test_without_any_record_a_champion_set_by_hand_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    create_versions(1)
    set_by_hand("1")
    assert versions.get_version("champion").number == "1"
    assert "the audit log says no version" in caplog.text
    move = aliases.restore_champion(approved_by="ann", reason="not tested")
    assert (move.kind, move.before, move.after, move.found) == ("restore", "", "", "1")
    assert versions.champion() is None
    assert aliases.problems() == []


def test_a_champion_removed_by_hand_is_noticed_and_restored(caplog: pytest.LogCaptureFixture) -> None:
    create_versions(1)
    move("1", "")
    tracking_store.client().delete_registered_model_alias(versions.MODEL, "champion")
    assert versions.champion() is None
    assert "was removed by hand" in caplog.text
    aliases.restore_champion(approved_by="ann", reason="a slip")
    assert versions.get_version("champion").number == "1"
    assert aliases.history()[-1].found == "none"


def test_only_versions_that_passed_are_rolled_back_to() -> None:
    create_versions(3)
    move("1", "")
    set_by_hand("2")
    aliases.move_champion(
        "3", instead_of="1", alias_was="2", kind="promote", approved_by="ann", reason="better than version 1"
    )
    assert (aliases.history()[-1].before, aliases.history()[-1].found) == ("1", "2")
    assert aliases.earlier_champion().number == "1"


def test_a_move_decided_before_the_alias_was_moved_by_hand_is_not_made() -> None:
    create_versions(3)
    move("1", "")
    set_by_hand("2")
    with pytest.raises(PromotionHeldError):
        move("3", "1")
    assert versions.get_version("champion").number == "2"


def change_entry(number: int, line: str | None = None) -> None:
    """Change the name in an entry by hand, or the whole line."""
    client, tag = tracking_store.client(), f"audit_log.{number:06d}"
    stored = client.get_registered_model(versions.MODEL).tags[tag]
    client.set_registered_model_tag(versions.MODEL, tag, line or stored.replace("ann", "eve"))


def remove_entry(number: int) -> None:
    tracking_store.client().delete_registered_model_tag(versions.MODEL, f"audit_log.{number:06d}")


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (change_entry, "was changed"),
        (remove_entry, "is missing"),
        (lambda n: change_entry(n, "nonsense"), "was changed"),
    ],
    ids=["changed", "removed", "unreadable"],
)
@fault(
    "promote",
    "an entry of the audit log is changed or removed",
    "it is restored from its claim",
    "the number of the entry",
)
def test_an_entry_changed_or_removed_by_hand_is_named_and_comes_back(
    number: int, damage: Callable[[int], None], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    create_versions(3)
    for version in (1, 2, 3):
        move(str(version), str(version - 1) if version > 1 else "")
    before = aliases.history()
    damage(number)
    assert [problem.partition(" in the audit log")[0] for problem in aliases.problems()] == [f"entry {number} {what}"]
    with contextlib.suppress(RegistryError):  # an unreadable entry stops it
        aliases.history()
    assert f"the audit log was changed by hand: entry {number} {what}" in caplog.messages
    aliases.settle()
    assert aliases.history() == before
    assert aliases.problems() == []


def test_an_entry_whose_claim_is_gone_too_stays_named_after_the_next_move() -> None:
    create_versions(3)
    move("1", "")
    move("2", "1")
    change_entry(2)
    claim = tracking_store.client().get_experiment_by_name("chest-xray-pneumonia audit log 000002")
    assert claim is not None
    tracking_store.client().restore_experiment(claim.experiment_id)
    tracking_store.client().rename_experiment(claim.experiment_id, "gone")
    tracking_store.client().delete_experiment(claim.experiment_id)
    aliases.settle()
    move("3", "2")
    assert aliases.problems() == ["entry 2 was changed in the audit log"]


def test_a_changed_head_does_not_accuse_the_last_entry() -> None:
    create_versions(1)
    move("1", "")
    for text in ("1 " + "0" * 64, "nonsense"):
        tracking_store.client().set_registered_model_tag(versions.MODEL, "audit_log_head", text)
        assert aliases.problems() == []
