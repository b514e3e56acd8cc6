"""A team's services as processes on loopback: PostgreSQL, S3, MLflow and Prefect, with accounts on.

They are set up by the scripts that infra/compose.yaml uses (infra/databases.sh, infra/mlflow.sh, the accounts of
tasks.services.accounts). The databases' administrator is no superuser, as on RDS. Each service can be killed outright,
with all its processes, and started again on the same port with the same data. Every password is drawn at random, so
that a test can look for all of them in whatever a run wrote.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.project import PROJECT
from tests.support.projects.clones import OURS
from tests.support.services.servers import free_ports, s3_answers, s3_command

BUCKET = "team"
ACCOUNTS = ("worker", "app", "pacs")
START_SECONDS = 300
_NOT_OURS = (*OURS, "AWS_", "PG", "POSTGRES_")


@dataclass
class Service:
    """One server: how to start it, and how to see that it answers."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    answers: Callable[[], bool]
    log: Path
    user: str | None = None
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it, without waiting until it answers."""
        environment = {**clean_environment(), **self.environment}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.log.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self.user,
                group=pwd.getpwnam(self.user).pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if self.answers():
                    return
            time.sleep(0.25)
        raise RuntimeError(f"{self.name} did not start: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """Kill it and every process of it with SIGKILL."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid)
            for one in [family, *family.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        self.process.wait()
        self.process = None


@dataclass
class Secrets:
    """Every password of the team, drawn at random."""

    superuser: str = field(default_factory=secrets.token_hex)
    administrator: str = field(default_factory=secrets.token_hex)
    mlflow_database: str = field(default_factory=secrets.token_hex)
    prefect_database: str = field(default_factory=secrets.token_hex)
    s3_access_key: str = field(default_factory=lambda: secrets.token_hex(10))
    s3_secret_key: str = field(default_factory=secrets.token_hex)
    mlflow_password: str = field(default_factory=secrets.token_hex)
    mlflow_worker: str = field(default_factory=secrets.token_hex)
    mlflow_app: str = field(default_factory=secrets.token_hex)
    mlflow_pacs: str = field(default_factory=secrets.token_hex)
    mlflow_signing: str = field(default_factory=secrets.token_hex)
    prefect_password: str = field(default_factory=secrets.token_hex)


@dataclass
class Team:
    """The four services and what a person needs to use them."""

    folder: Path
    secrets: Secrets
    ports: dict[str, int]
    services: dict[str, Service] = field(default_factory=dict)

    @property
    def s3(self) -> dict[str, str]:
        """The environment of whoever may use the bucket."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3']}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.secrets.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": self.secrets.s3_secret_key,
        }

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a worker: all services, each with its account."""
        return {
            **self.s3,
            **self.mlflow_as("worker"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.ports['prefect']}/api",
            "PREFECT_API_AUTH_STRING": f"admin:{self.secrets.prefect_password}",
        }

    def mlflow_as(self, account: str) -> dict[str, str]:
        """Return the environment that leads to MLflow as one of its accounts: admin, worker, app, pacs."""
        known = self.secrets.mlflow_password if account == "admin" else getattr(self.secrets, f"mlflow_{account}")
        return {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports['mlflow']}",
            "MLFLOW_TRACKING_USERNAME": account,
            "MLFLOW_TRACKING_PASSWORD": known,
        }

    @property
    def stores(self) -> dict[str, str]:
        """The environment of the servers, which tasks.services.backup, restore and upgrade read; DVC's remote too."""
        return {
            **self.s3,
            "MLFLOW_BACKEND_STORE_URI": self.database("mlflow", driver="pg8000"),
            "MLFLOW_AUTH_DATABASE_URI": self.database("mlflow_auth", driver="pg8000"),
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database("prefect", driver="asyncpg"),
            "CXR_DVC_REMOTE": f"s3://{BUCKET}/dvc",
        }

    def set_up_accounts(self) -> str:
        """Run tasks.services.accounts as the administrator; return what it prints."""
        passwords = {
            f"MLFLOW_{name.upper()}_PASSWORD": self.mlflow_as(name)["MLFLOW_TRACKING_PASSWORD"] for name in ACCOUNTS
        }
        environment = {**clean_environment(), **self.mlflow_as("admin"), **passwords}
        command = [sys.executable, "-m", "tasks.services.accounts"]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def database(self, name: str, *, driver: str) -> str:
        """Return the address of a database for its owner."""
        owner = name.partition("_")[0]
        password = getattr(self.secrets, f"{owner}_database")
        return f"postgresql+{driver}://{owner}:{password}@127.0.0.1:{self.ports['postgresql']}/{name}"

    def dump(self) -> str:
        """Return every database as SQL."""
        names = ("mlflow", "mlflow_auth", "prefect")
        return "".join(self._postgresql("pg_dump", "--inserts", name) for name in names)

    def create_databases(self, user: str, password: str) -> None:
        """Run infra/databases.sh as `user`."""
        environment = {
            **clean_environment(),
            **self.superuser,
            "PGPASSWORD": password,
            "POSTGRES_USER": user,
            "MLFLOW_DB_PASSWORD": self.secrets.mlflow_database,
            "PREFECT_DB_PASSWORD": self.secrets.prefect_database,
        }
        environment["PATH"] = f"{postgresql_programs()}{os.pathsep}{environment['PATH']}"
        subprocess.run([str(PROJECT / "infra" / "databases.sh")], env=environment, check=True, cwd=self.folder)

    def sql(self, database: str, query: str) -> list[list[str]]:
        """Return the rows of a query, as PostgreSQL prints them."""
        said = self._postgresql("psql", "--no-psqlrc", "--csv", "--tuples-only", "--command", query, database)
        return [line.split(",") for line in said.splitlines()]

    def _postgresql(self, program: str, *arguments: str) -> str:
        command = [str(postgresql_programs() / program), *arguments]
        environment = {**clean_environment(), **self.superuser}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    @property
    def superuser(self) -> dict[str, str]:
        """The environment of the database's administrator."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.ports["postgresql"]),
            "PGUSER": "postgres",
            "PGPASSWORD": self.secrets.superuser,
        }

    def kill(self, name: str) -> None:
        """Kill one service outright."""
        self.services[name].kill()

    def start(self, name: str) -> None:
        """Start one service again and wait until it answers."""
        self.services[name].start()
        self.services[name].wait()


def clean_environment() -> dict[str, str]:
    """Return this session's environment without its settings of any service."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": programs, "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"}


def postgresql_programs() -> Path:
    """Return the folder of the newest PostgreSQL of this machine.

    Without one the test is skipped; on CI, which installs it (.ci/run), it fails.
    """
    places = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr/local/opt").glob("postgresql*/bin")]
    if found := sorted((place for place in places if (place / "initdb").is_file()), key=_release):
        return found[-1]
    if on_path := shutil.which("initdb"):
        return Path(on_path).parent
    reason = "PostgreSQL is not installed; on Debian and Ubuntu: apt-get install postgresql"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _release(programs: Path) -> int:
    digits = "".join(filter(str.isdigit, programs.parent.name))
    return int(digits or 0)


@contextlib.contextmanager
def serve_team(
    only: Sequence[str] = ("postgresql", "s3", "mlflow", "prefect"), passwords: Secrets | None = None
) -> Iterator[Team]:
    """Start the services, PostgreSQL among them, with empty stores; stop them and remove their data at the end."""
    names = ("postgresql", "mlflow", "prefect")
    # Not below pytest's own folder: root's PostgreSQL runs as another user, who cannot enter that.
    with tempfile.TemporaryDirectory(prefix="team-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        team = Team(folder, passwords or Secrets(), dict(zip(names, free_ports(3), strict=True)))
        _describe(team, postgresql_programs())
        try:
            _start_postgresql(team, postgresql_programs())
            rest = [team.services[name] for name in only if name != "postgresql"]
            for service in rest:
                service.start()
            for service in rest:
                service.wait()
            if "mlflow" in only:
                team.set_up_accounts()
            yield team
        finally:
            for service in reversed(team.services.values()):
                service.kill()


def _describe(team: Team, programs: Path) -> None:
    team.services["postgresql"] = _postgresql(team, programs)
    team.services["s3"] = _s3(team)
    team.services["mlflow"] = _mlflow(team)
    team.services["prefect"] = _prefect(team)


def _postgresql(team: Team, programs: Path) -> Service:
    port, data = team.ports["postgresql"], team.folder / "postgresql"
    command = [str(programs / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(data)]
    ready = [str(programs / "pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={port}"]

    def answers() -> bool:
        return subprocess.run(ready, check=False).returncode == 0

    return Service("PostgreSQL", command, {}, answers, team.folder / "postgresql.log", user=_database_user())


def _database_user() -> str | None:
    """Return the user that PostgreSQL runs as: it refuses to run as root."""
    return "postgres" if os.getuid() == 0 else None


def _start_postgresql(team: Team, programs: Path) -> None:
    data, password_file = team.folder / "postgresql", team.folder / "superuser"
    data.mkdir()
    password_file.write_text(team.secrets.superuser)
    user = _database_user()
    if user:
        shutil.chown(data, user)
        shutil.chown(password_file, user)
    initdb = [str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "scram-sha-256"]
    initdb += ["--no-locale", "--encoding=SQL_ASCII"]  # the worst that a server may be; the databases have their own
    initdb += [f"--pwfile={password_file}", "--no-sync"]
    subprocess.run(
        initdb, check=True, capture_output=True, cwd=team.folder, user=user, extra_groups=[] if user else None
    )
    password_file.unlink()
    team.start("postgresql")
    role = f"CREATE ROLE administrator LOGIN CREATEROLE CREATEDB PASSWORD '{team.secrets.administrator}'"
    team.sql("postgres", role)
    team.create_databases("administrator", team.secrets.administrator)


def _s3(team: Team) -> Service:
    data = team.folder / "s3"
    data.mkdir()
    command, team.ports["s3"] = s3_command(data, BUCKET)
    keys = {"access_key": team.secrets.s3_access_key, "secret_key": team.secrets.s3_secret_key}
    environment = {name: value for name, value in team.s3.items() if name.startswith(("AWS_ACCESS", "AWS_SECRET"))}

    def answers() -> bool:
        return s3_answers(team.s3["AWS_ENDPOINT_URL"], BUCKET, **keys)

    return Service("S3", command, environment, answers, team.folder / "s3.log")


def _mlflow(team: Team) -> Service:
    environment = {
        **team.stores,
        "AWS_MAX_ATTEMPTS": "2",  # while S3 is away a test need not wait for long
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": team.secrets.mlflow_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": team.secrets.mlflow_signing,
        "MLFLOW_PORT": str(team.ports["mlflow"]),
    }

    def answers() -> bool:
        return httpx.get(f"http://127.0.0.1:{team.ports['mlflow']}/health", timeout=30).status_code == 200

    command = [str(PROJECT / "infra" / "mlflow.sh")]
    return Service("MLflow", command, environment, answers, team.folder / "mlflow.log")


def _prefect(team: Team) -> Service:
    port = str(team.ports["prefect"])
    environment = {
        "PREFECT_HOME": str(team.folder / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": team.database("prefect", driver="asyncpg"),
        "PREFECT_SERVER_API_AUTH_STRING": f"admin:{team.secrets.prefect_password}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }

    def answers() -> bool:
        url = f"http://127.0.0.1:{port}/api/ready"
        return httpx.get(url, auth=("admin", team.secrets.prefect_password), timeout=30).status_code == 200

    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    return Service("Prefect", command, environment, answers, team.folder / "prefect.log")
