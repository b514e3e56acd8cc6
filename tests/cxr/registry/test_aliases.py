"""Who is champion: the record of every move, a killed command, and two commands at once, in a real registry."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cxr.common.errors import PromotionHeldError, RegistryError
from cxr.registry import aliases, tracking_store, versions
from cxr.registry.audit_log import Kind, Move
from tests.support.prefect_servers import wait_for
from tests.support.project import PROJECT
from tests.support.registry_project import enter_project
from tests.support.servers import free_ports

MOVE = """
import os, sys, time
from pathlib import Path
from cxr import champions, tracking_store
from cxr.common.cli import run_command
tracking_store.client().search_experiments()
number, instead_of = sys.argv[1:3]
ready = Path(f"ready-{number}")
ready.touch()
while not Path("go").exists():
    time.sleep(0.001)
def move():
    aliases.move_champion(number, instead_of=instead_of, kind="promote", who="ann", why="at once")
run_command(move)
"""

KILLED = """
import os, signal, sys
import mlflow
from cxr import champions
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(mlflow.MlflowClient, sys.argv[1], die)
aliases.move_champion("2", instead_of="1", kind="promote", who="ann", why="better")
"""


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))


def create_versions(count: int) -> None:
    client = tracking_store.client()
    client.create_registered_model(versions.MODEL)
    for _ in range(count):
        client.create_model_version(versions.MODEL, "s3://models/one")


def move(number: str, instead_of: str, *, kind: Kind = "promote", who: str = "ann", why: str = "better") -> Move:
    return aliases.move_champion(number, instead_of=instead_of, kind=kind, who=who, why=why)


def names_of_claims() -> list[str]:
    found = tracking_store.client().search_experiments(view_type=1)  # the open ones
    return [experiment.name for experiment in found if "audit log" in experiment.name]


def test_without_a_model_there_is_no_history_and_nothing_to_go_back_to() -> None:
    assert aliases.history() == []
    assert aliases.unfinished() is None
    aliases.settle()
    with pytest.raises(RegistryError, match="there is no champion to go back to"):
        aliases.previous_champion()


def test_every_move_is_on_record_and_rollbacks_go_back_one_by_one() -> None:
    create_versions(2)
    move("1", "", why="first")
    move("2", "1", who="ben")
    assert aliases.previous_champion().number == "1"
    move("1", "2", kind="rollback", who="cem", why="misses effusions")
    moves = aliases.history()
    assert [(m.number, m.kind, m.before, m.after, m.who, m.why) for m in moves] == [
        (1, "promote", "", "1", "ann", "first"),
        (2, "promote", "1", "2", "ben", "better"),
        (3, "rollback", "2", "1", "cem", "misses effusions"),
    ]
    assert all(entry.time.endswith("+00:00") for entry in moves)
    assert names_of_claims() == []
    with pytest.raises(RegistryError, match="there is no champion to go back to"):
        aliases.previous_champion()


def test_a_move_that_was_decided_against_an_earlier_champion_is_not_made() -> None:
    create_versions(3)
    move("1", "")
    move("2", "1", who="ben", why="new images")
    with pytest.raises(PromotionHeldError) as caught:
        move("3", "1")
    assert str(caught.value) == (
        "version 3 was not made champion: another move came first (entry 2 of the record: ben made version 2 champion "
        "(new images)), and this one was decided against version 1; run the same command again, which decides against "
        "the champion of then"
    )
    assert [entry.after for entry in aliases.history()] == ["1", "2"]
    assert versions.get_version("champion").number == "2"


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """An MLflow server over the project's store, on a free loopback port; yields its address."""
    port = free_ports(1)[0]
    store = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", store]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: httpx.get(f"{address}/health").is_success, log=folder / "server.log")
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(params=["database", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The project's store, reached directly or through a server of MLflow's."""
    with contextlib.ExitStack() as stack:
        if request.param == "server":
            monkeypatch.setenv(tracking_store.STORE_VARIABLE, stack.enter_context(mlflow_server(tmp_path)))
        yield


@pytest.mark.usefixtures("store")
def test_of_two_processes_that_promote_at_once_one_wins_and_the_other_is_told(tmp_path: Path) -> None:
    create_versions(3)
    move("1", "")
    both = [
        subprocess.Popen([sys.executable, "-c", MOVE, number, "1"], stderr=subprocess.PIPE, text=True)
        for number in ("2", "3")
    ]
    wait_for(lambda: (tmp_path / "ready-2").exists() and (tmp_path / "ready-3").exists())
    (tmp_path / "go").touch()
    said = {number: process.communicate()[1] for number, process in zip(("2", "3"), both, strict=True)}
    codes = dict(zip(("2", "3"), (process.returncode for process in both), strict=True))
    assert sorted(codes.values()) == [0, PromotionHeldError.exit_code], said
    winner, loser = sorted(codes, key=codes.__getitem__)
    assert f"error: version {loser} was not made champion: another move came first" in said[loser]
    aliases.settle()
    assert versions.get_version("champion").number == winner
    assert [(entry.before, entry.after) for entry in aliases.history()] == [("", "1"), ("1", winner)]
    assert names_of_claims() == []


@pytest.mark.parametrize("step", ["set_registered_model_tag", "set_registered_model_alias", "delete_experiment"])
def test_a_move_killed_at_any_step_is_finished_by_the_next_command_as_it_was_begun(step: str) -> None:
    create_versions(2)
    move("1", "")
    done = subprocess.run([sys.executable, "-c", KILLED, step], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    begun = aliases.unfinished()
    assert begun is not None
    assert (begun.before, begun.after, begun.who) == ("1", "2", "ann")
    aliases.settle()
    assert aliases.unfinished() is None
    assert versions.get_version("champion").number == "2"
    assert aliases.history()[1:] == [begun]
    assert names_of_claims() == []
    move("1", "2", kind="rollback")
    assert [entry.number for entry in aliases.history()] == [1, 2, 3]


def test_a_late_finisher_does_not_undo_the_move_that_came_after() -> None:
    create_versions(3)
    move("1", "")
    tracking_store.client().create_experiment(  # a claim whose owner is still on its way
        "chest-xray-pneumonia audit log 000002", tags={"entry": aliases.history()[0].to_line()}
    )
    late = Move(2, "2026-01-01T00:00:00+00:00", "promote", "1", "2", "ann", "slow", "")
    claim = tracking_store.client().get_experiment_by_name("chest-xray-pneumonia audit log 000002")
    assert claim is not None
    tracking_store.client().set_experiment_tag(claim.experiment_id, "entry", late.to_line())
    aliases.settle()
    move("3", "2")
    tracking_store.client().restore_experiment(claim.experiment_id)  # as its owner still sees it
    owners = aliases._claim_of(2)
    assert owners is not None
    aliases._finish(owners)
    assert versions.get_version("champion").number == "3"
    assert [entry.after for entry in aliases.history()] == ["1", "2", "3"]


def test_an_alias_moved_by_hand_is_no_unfinished_move() -> None:
    create_versions(2)
    move("1", "")
    tracking_store.client().set_registered_model_alias(versions.MODEL, "champion", "2")
    assert aliases.unfinished() is None
    aliases.settle()
    assert versions.get_version("champion").number == "2"


def test_the_last_entry_comes_back_when_it_was_removed_by_hand() -> None:
    create_versions(2)
    move("1", "")
    move("2", "1")
    before = aliases.history()
    tracking_store.client().delete_registered_model_tag(versions.MODEL, "ledger.000002")
    aliases.settle()
    assert aliases.history() == before


def test_an_entry_changed_by_hand_shows(caplog: pytest.LogCaptureFixture) -> None:
    create_versions(2)
    move("1", "")
    move("2", "1")
    client = tracking_store.client()
    first = client.get_registered_model(versions.MODEL).tags["ledger.000001"]
    client.set_registered_model_tag(versions.MODEL, "ledger.000001", first.replace("ann", "eve"))
    caplog.set_level(logging.WARNING)
    aliases.history()
    assert "the record of champions was changed by hand at entry 2" in caplog.messages
    client.set_registered_model_tag(versions.MODEL, "ledger.000001", "nonsense")
    with pytest.raises(RegistryError, match=r"cannot be read .*; mend or remove the damaged tag audit log"):
        aliases.history()
