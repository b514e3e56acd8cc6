"""A real PostgreSQL: infra/databases.sh by a superuser and by an administrator who is none, as on RDS; its death."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pg8000.native
import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from cxr.registry import tracking_store
from cxr.registry.training_run import training_run
from tests.support.faults import fault
from tests.support.services.team import Team, serve_team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
OWNERS = {"mlflow": "mlflow", "mlflow_auth": "mlflow", "prefect": "prefect"}


@pytest.fixture(scope="module")
def database() -> Iterator[Team]:
    """A server whose databases an administrator without superuser's rights has made."""
    with serve_team(only=["postgresql"]) as running:
        yield running


def connect(team: Team, user: str, password: str, database: str) -> pg8000.native.Connection:
    port = team.ports["postgresql"]
    return pg8000.native.Connection(user, password=password, database=database, host="127.0.0.1", port=port)


def test_each_owner_works_in_its_own_databases_alone(database: Team) -> None:
    passwords = {"mlflow": database.secrets.mlflow_database, "prefect": database.secrets.prefect_database}
    for name, owner in OWNERS.items():
        with connect(database, owner, passwords[owner], name) as opened:
            opened.run("CREATE TABLE mine (n integer)")
        (stranger,) = passwords.keys() - {owner}
        with pytest.raises(pg8000.native.DatabaseError, match="permission denied"):
            connect(database, stranger, passwords[stranger], name)
    assert {tuple(*database.sql(name, "SHOW server_encoding")) for name in OWNERS} == {("UTF8",)}
    assert ["pg_trgm"] in database.sql("prefect", "SELECT extname FROM pg_extension")


@pytest.mark.parametrize("user", ["administrator", "postgres"])
def test_a_second_run_changes_the_passwords_and_keeps_the_data(database: Team, user: str) -> None:
    database.sql("mlflow", f"CREATE TABLE kept_{user} (n integer)")
    old, database.secrets.mlflow_database = database.secrets.mlflow_database, f"changed by {user}"
    database.create_databases(
        user, database.secrets.administrator if user == "administrator" else database.secrets.superuser
    )
    with pytest.raises(pg8000.native.DatabaseError, match="password authentication failed"):
        connect(database, "mlflow", old, "mlflow")
    connect(database, "mlflow", database.secrets.mlflow_database, "mlflow").close()
    assert database.sql("mlflow", f"SELECT count(*) FROM kept_{user}") == [["0"]]


def kill_at_the_next_commit(database: Team, patch: pytest.MonkeyPatch, *, answers: bool) -> None:
    """Kill the server before this thread's next commit, or after it but before the client hears of it."""
    whole, left = Session.commit, [1]

    def commit(session: Session) -> None:
        if not left or threading.current_thread() is not threading.main_thread():
            whole(session)
            return
        left.pop()
        if not answers:
            whole(session)
        database.kill("postgresql")
        if not answers:
            raise OperationalError("COMMIT", None, ConnectionError("the server closed the connection"))
        whole(session)

    patch.setattr(Session, "commit", commit)


@pytest.mark.parametrize("answers", [True, False])
@fault("PostgreSQL", "SIGKILL in the middle of a transaction that records an epoch, or just after its commit",
       "the training goes on; what is missing is sent with the next epoch, nothing stands there twice",
       "a warning")  # fmt: skip
def test_a_killed_database_has_each_epoch_once(
    answers: bool, database: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(tracking_store.STORE_VARIABLE, database.database("mlflow", driver="pg8000"))
    with training_run(name="first") as run:
        run.log_epoch({"loss": 1.0}, 1)
        kill_at_the_next_commit(database, monkeypatch, answers=answers)
        run.log_epoch({"loss": 0.5}, 2)
        run.log_epoch({"loss": 0.25}, 3)
        database.start("postgresql")
        run.log_epoch({"loss": 0.125}, 4)
    history = tracking_store.client().get_metric_history(run.run_id, "training/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 0.25), (4, 0.125)]
    assert tracking_store.client().get_run(run.run_id).info.status == "FINISHED"
    unsent = [message for message in caplog.messages if "not in the tracking store yet" in message]
    assert [message.partition(" ")[0] for message in unsent] == ["1", "2"]
    assert database.secrets.mlflow_database not in caplog.text
    assert "Traceback" not in caplog.text
