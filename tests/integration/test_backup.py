"""Backup, restore and upgrade of a team's stores: real PostgreSQL, S3 and MLflow, and the champion that answers.

The tests of this file share one set of services and build on each other in the order in which they stand.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
import sqlalchemy
from alembic import command as alembic
from alembic.config import Config
from alembic.script import ScriptDirectory
from mlflow.store.db import utils as mlflow_tables
from mlflow.store.tracking.dbmodels.initial_models import Base as OldestTables

from tasks.services import backup, restore
from tests.support.faults import fault
from tests.support.project import PROJECT
from tests.support.projects.tiny_model import enter_tiny_project, write_image
from tests.support.services.servers import s3_settings, serve_s3
from tests.support.services.team import BUCKET, Team, clean_environment, postgresql_programs, serve_team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Operator:
    """Somebody who runs the commands of tasks.services on the stores of a team."""

    team: Team

    def start(self, *arguments: str, **given: str) -> "subprocess.Popen[str]":
        environment = {**clean_environment(), **self.team.stores, "PYTHONPATH": str(PROJECT), **given}
        environment["PATH"] = f"{postgresql_programs()}{os.pathsep}{environment['PATH']}"
        command = [sys.executable, "-m", *arguments]
        return subprocess.Popen(
            command, env=environment, cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *arguments: str, code: int = 0, **given: str) -> str:
        with self.start(*arguments, **given) as process:
            said, _ = process.communicate()
        assert process.returncode == code, said
        assert "Traceback" not in said
        return said


def predict(team: Team, image: Path) -> dict[str, object]:
    """Return the champion's answer, with a cache of its own, as the web app's account."""
    environment = {**clean_environment(), **team.mlflow_as("app"), "PYTHONPATH": str(PROJECT)}
    environment["CXR_MLRUNS"] = str(team.folder / "cache")
    command = [sys.executable, "-m", "tasks.predict", "--json", str(image)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    with serve_team(only=["postgresql", "s3", "mlflow"]) as running:
        yield running


@pytest.fixture(scope="module")
def image(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, and a champion in the team's store that can answer; Prefect's tables are one migration behind."""
    folder = tmp_path_factory.mktemp("member")
    with pytest.MonkeyPatch.context() as patch:
        enter_tiny_project(folder, patch, tmp_path_factory, champion=True, store=team.environment)
    write_image(folder / "image.png", seed=3)
    client = boto3.client("s3", **credentials(team))
    client.put_object(Bucket=BUCKET, Key="dvc/files/md5/ab/cdef", Body=b"an output of a stage")
    migrate_prefect(team, older_revision(prefect_scripts()))
    team.sql("prefect", "INSERT INTO variable (name, value) VALUES ('kept', '\"by the backup\"')")
    return folder / "image.png"


def credentials(team: Team) -> dict[str, str]:
    return {
        "endpoint_url": team.s3["AWS_ENDPOINT_URL"],
        "region_name": "us-east-1",
        "aws_access_key_id": team.secrets.s3_access_key,
        "aws_secret_access_key": team.secrets.s3_secret_key,
    }


def prefect_scripts() -> ScriptDirectory:
    import prefect.server.database

    folder = Path(prefect.server.database.__file__).parent
    configuration = Config()
    configuration.set_main_option("path_separator", "os")
    configuration.set_main_option("script_location", str(folder / "_migrations"))
    configuration.set_main_option("version_locations", str(folder / "_migrations" / "versions" / "postgresql"))
    return ScriptDirectory.from_config(configuration)


def older_revision(scripts: ScriptDirectory) -> str:
    """Return the revision before the newest."""
    newest = scripts.get_revision(scripts.get_current_head() or "")
    return str(newest.down_revision)


def migrate_prefect(team: Team, revision: str) -> None:
    Operator(team).run("prefect", "server", "database", "upgrade", "--yes", "--revision", revision)


@pytest.mark.usefixtures("image")
def test_a_second_backup_downloads_only_what_is_new(team: Team, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "backups"
    Operator(team).run("tasks.services.backup", str(folder))
    contents = {path: path.stat().st_mtime_ns for path in (folder / "objects").rglob("*") if path.is_file()}
    assert len(contents) > 10
    client = boto3.client("s3", **credentials(team))
    client.put_object(Bucket=BUCKET, Key="dvc/files/md5/ab/new", Body=b"a new output")
    Operator(team).run("tasks.services.backup", str(folder))
    after = {path: path.stat().st_mtime_ns for path in (folder / "objects").rglob("*") if path.is_file()}
    assert contents.items() <= after.items()
    assert len(after) == len(contents) + 1
    assert len(list(folder.glob("2*/backup.json"))) == 2
    said = Operator(team).run("tasks.services.restore", str(newest(folder)), code=9)
    assert "not empty" in said


def newest(folder: Path) -> Path:
    return sorted(path.parent for path in folder.glob("2*/backup.json"))[-1]


def test_on_empty_services_the_champion_answers_as_before(
    team: Team, image: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    taken = newest(tmp_path_factory.getbasetemp() / "backups")
    with serve_team(only=["postgresql", "s3"], passwords=team.secrets) as empty:
        operator = Operator(empty)
        with operator.start("tasks.services.restore", str(taken)) as killed:
            assert killed.stdout is not None
            while "restore: database mlflow" not in (line := killed.stdout.readline()):
                assert line
            killed.kill()
        operator.run("tasks.services.restore", str(taken))
        bucket = boto3.client("s3", **credentials(empty))
        bucket.put_object(Bucket=BUCKET, Key="dvc/files/md5/ab/new", Body=b"written later")
        assert "so nothing was written" in operator.run("tasks.services.restore", str(taken)), "done already"
        assert bucket.get_object(Bucket=BUCKET, Key="dvc/files/md5/ab/new")["Body"].read() == b"written later"
        bucket.put_object(Bucket=BUCKET, Key="dvc/files/md5/ab/new", Body=b"a new output")
        empty.start("mlflow")
        assert predict(empty, image) == predict(team, image)
        assert empty.sql("prefect", "SELECT name FROM variable") == [["kept"]]
        body = boto3.client("s3", **credentials(empty)).get_object(Bucket=BUCKET, Key="dvc/files/md5/ab/new")["Body"]
        assert body.read() == b"a new output"
        audit_log = [
            tag for tag in empty.sql("mlflow", "SELECT key FROM registered_model_tags") if "audit_log" in tag[0]
        ]
        assert len(audit_log) == 2


@fault("restore", "a file of MLflow's was replaced by one of the same size since the backup",
       "it is brought back as it was", "nothing")  # fmt: skip
def test_an_object_that_was_replaced_since_is_brought_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when one goes back after an upgrade: the databases are made anew, the bucket is not."""
    with serve_s3(tmp_path, "team") as endpoint:
        for name, value in s3_settings(endpoint).items():
            monkeypatch.setenv(name, value)
        bucket = boto3.client("s3", endpoint_url=endpoint)
        for key, body in (("metrics.json", b'{"accuracy": 0.81}'), ("notes.txt", b"as it was")):
            bucket.put_object(Bucket="team", Key=f"mlflow/{key}", Body=body)
        listed = backup._copy("artifacts", "s3://team/mlflow", tmp_path / "backups", {})
        bucket.put_object(Bucket="team", Key="mlflow/metrics.json", Body=b'{"accuracy": 0.66}')
        before = bucket.head_object(Bucket="team", Key="mlflow/notes.txt")["LastModified"]
        time.sleep(1.1)  # of its clock, which counts seconds
        restore._upload(listed, "s3://team/mlflow", tmp_path / "backups")
        assert bucket.get_object(Bucket="team", Key="mlflow/metrics.json")["Body"].read() == b'{"accuracy": 0.81}'
        assert bucket.head_object(Bucket="team", Key="mlflow/notes.txt")["LastModified"] == before


@fault("backup", "a file of a backup is changed", "nothing is restored", "the file's name")
def test_a_changed_backup_is_not_restored(team: Team, tmp_path_factory: pytest.TempPathFactory) -> None:
    taken = newest(tmp_path_factory.getbasetemp() / "backups")
    (taken / "prefect.dump").write_bytes(b"cut off")
    assert "prefect.dump" in Operator(team).run("tasks.services.restore", str(taken), code=5)


def test_an_upgrade_backs_up_first_and_migrates_every_database(team: Team, tmp_path: Path) -> None:
    older = f"{team.stores['MLFLOW_BACKEND_STORE_URI'].rpartition('/')[0]}/older"
    team.sql("postgres", "CREATE DATABASE older OWNER mlflow")
    make_older_mlflow(older)
    busy = Operator(team).run("tasks.services.upgrade", str(tmp_path), code=9, MLFLOW_BACKEND_STORE_URI=older)
    assert "connected to mlflow_auth" in busy
    team.kill("mlflow")
    said = Operator(team).run("tasks.services.upgrade", str(tmp_path), MLFLOW_BACKEND_STORE_URI=older)
    assert said.index("backup: ") < said.index("upgrade: mlflow is up to date") < said.index("upgrade: prefect is")
    assert (newest(tmp_path) / "mlflow.dump").is_file()
    assert team.sql("older", "SELECT version_num FROM alembic_version") == [
        [mlflow_tables._get_latest_schema_revision()]
    ]
    assert team.sql("older", "SELECT name FROM experiments") == [["kept"]]
    assert team.sql("prefect", "SELECT version_num FROM alembic_version") == [[prefect_scripts().get_current_head()]]
    assert team.sql("prefect", "SELECT name FROM variable") == [["kept"]]


def make_older_mlflow(uri: str) -> None:
    """Make the tables of an MLflow that is one migration older, with an experiment in them."""
    engine = sqlalchemy.create_engine(uri)
    OldestTables.metadata.create_all(engine)
    configuration = mlflow_tables._get_alembic_config(uri)
    configuration.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        configuration.attributes["connection"] = connection
        alembic.upgrade(configuration, older_revision(ScriptDirectory.from_config(configuration)))
        connection.execute(
            sqlalchemy.text(
                "INSERT INTO experiments (name, lifecycle_stage, workspace) VALUES ('kept', 'active', 'default')"
            )
        )
    engine.dispose()
