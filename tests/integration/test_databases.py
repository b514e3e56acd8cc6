"""infra/databases.sh against a real PostgreSQL, by a superuser and by an administrator who is none, as on RDS."""

from collections.abc import Iterator

import pg8000.native
import pytest

from tests.support.team import Team, serve_team

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
