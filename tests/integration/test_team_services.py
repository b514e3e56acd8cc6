"""The whole loop on PostgreSQL, S3, MLflow and Prefect with accounts on, each of them killed once in the middle.

The tests of this file share one set of services and one run, and build on each other in the order in which they stand.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import cv2
import httpx
import numpy as np
import pytest
from ruamel.yaml import YAML

from tests.support.faults import fault
from tests.support.project import PROJECT
from tests.support.projects.clones import Clone, make_clone
from tests.support.services.servers import free_ports
from tests.support.services.team import BUCKET, Team, serve_team
from tests.support.waiting import wait_for

STAGES = ["ingest", "validate", "split", "preprocess", "train", "evaluate", "register"]
MODEL = "chest-xray-pneumonia"
EPOCHS = 4
SMALL = {
    "ingest.sample_patients_per_class": 24,
    "preprocess.image_size_px": 48,
    "train.backbone": "small_cnn",
    "train.epochs": EPOCHS,
    "train.early_stopping_patience": 0,
    "evaluate.bootstrap_resamples": 100,
    "evaluate.gradcam_per_class": 1,
    "evaluate.attention_images": 3,
    "evaluate.sanity_images": 3,
    "evaluate.audit_images": 6,
    # The gate is not what is tested here, and so little training passes none.
    **dict.fromkeys(("promote.floors.accuracy", "promote.floors.macro_f1", "promote.floors.macro_auroc"), 0.0),
    "promote.min_class_recall": 0.0,
    "promote.ceilings.ece": 1.0,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Outage:
    """A service that is killed as `sign` appears in a run's lines; back at once, or only when the run has ended."""

    service: str
    sign: str
    until_the_end: bool = False


@dataclass
class Outages:
    """The outages that are still to come, one after the other, and the lines that were seen."""

    team: Team
    coming: list[Outage]
    down: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def on_line(self, line: str) -> None:
        self.lines.append(line)
        if self.coming and self.coming[0].sign in line:
            outage = self.coming.pop(0)
            self.team.kill(outage.service)
            if outage.until_the_end:
                self.down.append(outage.service)
            else:
                self.team.start(outage.service)

    def end(self) -> None:
        """Start what is still down."""
        while self.down:
            self.team.start(self.down.pop())


@dataclass(frozen=True)
class Loop:
    """The finished loop: the clone it ran in, what it said, the exit codes of its runs."""

    clone: Clone
    said: str
    codes: tuple[int, ...]
    killed: bool


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    with serve_team() as running:
        yield running


@pytest.fixture(scope="module")
def loop(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """Run the flow until it ends well while each service is killed once, then push the data."""
    clone = make_clone(
        tmp_path_factory.mktemp("member"),
        *(f"--set={name}={value}" for name, value in SMALL.items()),
        environment=with_password_in_address(team),
    )
    share(clone)
    outages = Outages(
        team,
        [
            Outage("prefect", "Running stage 'ingest'"),
            Outage("postgresql", f"epoch  1/{EPOCHS}"),
            Outage("mlflow", f"epoch  2/{EPOCHS}"),
            Outage("s3", "Running stage 'register'", until_the_end=True),
        ],
    )
    kills, codes = len(outages.coming), []
    while len(codes) <= kills:
        codes.append(clone.follow(outages.on_line, "flows.rebuild"))
        outages.end()
        if codes[-1] == 0:
            break
    said = "\n".join(outages.lines)
    assert codes[-1] == 0, said
    said += clone.run("dvc", "push")
    return Loop(clone, said, tuple(codes), killed=not outages.coming)


def with_password_in_address(team: Team) -> dict[str, str]:
    """Return a member's environment with MLflow's account where people put it who should not: in the address."""
    environment = dict(team.environment)
    user, password = (environment.pop(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    environment["MLFLOW_TRACKING_URI"] = environment["MLFLOW_TRACKING_URI"].replace("//", f"//{user}:{password}@")
    return environment


def share(clone: Clone) -> None:
    """Make the bucket the clone's DVC remote; address and keys stay in the environment."""
    if not (clone.root / ".dvc" / "config").is_file():
        clone.run("dvc", "init", "--quiet")
    clone.run("dvc", "remote", "add", "--local", "--default", "team", f"s3://{BUCKET}/dvc")


def mlflow(team: Team, endpoint: str, /, **query: Any) -> Any:
    """Ask MLflow's server; GET with `query`."""
    address = f"http://127.0.0.1:{team.ports['mlflow']}/api/2.0/mlflow/{endpoint}"
    answer = httpx.get(address, params=query, auth=("admin", team.secrets.mlflow_password), timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


@fault("flows.rebuild", "PostgreSQL, MLflow, Prefect and S3 are each killed once in the middle of it",
       "one finished run with every epoch, one version, one entry in the record",
       "the same command goes on where S3 was gone")  # fmt: skip
def test_every_service_was_killed_and_the_same_command_ended_well(loop: Loop) -> None:
    assert loop.killed
    assert loop.codes[0] != 0, "without S3 nothing can be registered"
    assert ["promote", "Promoted"] in [line.split() for line in loop.said.splitlines()]


@pytest.mark.usefixtures("loop")
def test_one_version_and_one_entry_in_the_record_came_of_it(team: Team) -> None:
    model = mlflow(team, "registered-models/get", name=MODEL)["registered_model"]
    assert {alias["alias"]: alias["version"] for alias in model["aliases"]} == {"challenger": "1", "champion": "1"}
    entries = [json.loads(tag["value"]) for tag in model["tags"] if tag["key"].startswith("audit_log.")]
    assert [(entry["before"], entry["after"]) for entry in entries] == [("", "1")]
    versions = mlflow(team, "model-versions/search", filter=f"name='{MODEL}'")["model_versions"]
    assert [version["version"] for version in versions] == ["1"]


def test_the_training_is_one_finished_run_with_every_epoch_and_file(loop: Loop, team: Team) -> None:
    trained = json.loads((loop.clone.root / "models" / "trained" / "training.json").read_text())["run_id"]
    experiment = mlflow(team, "runs/get", run_id=trained)["run"]["info"]["experiment_id"]
    of_experiment = f"SELECT run_uuid, status FROM runs WHERE experiment_id = {int(experiment)}"
    assert team.sql("mlflow", of_experiment) == [[trained, "FINISHED"]]
    history = mlflow(team, "metrics/get-history", run_id=trained, metric_key="training/loss")["metrics"]
    assert sorted(point["step"] for point in history) == list(range(1, EPOCHS + 1))
    files = mlflow(team, "artifacts/list", run_id=trained, path="training")["files"]
    assert {Path(file["path"]).name for file in files} == {"curves.csv", "training.json", "validation.csv"}


def test_prefect_knows_each_run_and_how_it_ended(loop: Loop, team: Team) -> None:
    runs = team.sql("prefect", "SELECT state_type FROM flow_run ORDER BY start_time")
    assert len(runs) == len(loop.codes)
    assert runs[-1] == ["COMPLETED"]


def test_another_clone_pulls_everything_and_runs_nothing(
    loop: Loop, team: Team, tmp_path_factory: pytest.TempPathFactory
) -> None:
    loop.clone.git("add", "dvc.lock")
    loop.clone.git("commit", "--quiet", "--message", "what was made of what")
    root = tmp_path_factory.mktemp("colleague") / "clone"
    loop.clone.git("clone", "--quiet", str(loop.clone.root), str(root))
    colleague = Clone(root, team.environment)
    share(colleague)
    colleague.run("dvc", "pull")
    said = colleague.run("flows.rebuild")
    ended = [line.split() for line in said.splitlines()]
    assert all([stage, "Cached"] in ended for stage in STAGES)
    image = root / "ramp.png"
    assert cv2.imwrite(str(image), np.tile(np.linspace(0, 255, 200).astype(np.uint8), (200, 1)))
    answer = json.loads(colleague.ask("tasks.predict", "--json", str(image)))
    assert answer["model_version"] == "1"
    assert len(colleague.ask("tasks.history", "--csv").strip().splitlines()) == 2


@pytest.mark.parametrize("account", ["app", "pacs"])
def test_a_reading_service_predicts_by_the_champion_and_can_change_nothing(
    loop: Loop, team: Team, tmp_path: Path, account: str
) -> None:
    image = tmp_path / "ramp.png"
    assert cv2.imwrite(str(image), np.tile(np.linspace(0, 255, 200).astype(np.uint8), (200, 1)))
    reader = dataclasses.replace(
        loop.clone, environment={**team.mlflow_as(account), "CXR_MLRUNS": str(tmp_path / "cache")}
    )
    assert json.loads(reader.ask("tasks.predict", "--json", str(image)))["model_version"] == "1"
    said = reader.run("tasks.register", code=9)
    assert "rejected the account" in said
    assert "Traceback" not in said


def test_accounts_are_brought_back_to_what_they_may(team: Team) -> None:
    change_account(team, "permissions/revoke", username="app", resource_type="registered_model", resource_id="*")
    manage = {"username": "app", "resource_type": "registered_model", "resource_id": "*", "permission": "MANAGE"}
    change_account(team, "permissions/grant", **manage)
    assert rename_tag(team, "app") == 200
    team.set_up_accounts()
    assert rename_tag(team, "app") == 403
    assert rename_tag(team, "worker") == 200


def change_account(team: Team, endpoint: str, **body: str) -> None:
    """Change an account as MLflow's administrator."""
    address = f"http://127.0.0.1:{team.ports['mlflow']}/api/3.0/mlflow/users/{endpoint}"
    answer = httpx.post(address, json=body, auth=("admin", team.secrets.mlflow_password), timeout=60)
    assert answer.status_code == 200, answer.text


def rename_tag(team: Team, account: str) -> int:
    """Set a tag of version 1 as one of the accounts; return the status of the answer."""
    known = team.mlflow_as(account)
    address = f"{known['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/model-versions/set-tag"
    body = {"name": MODEL, "version": "1", "key": "note", "value": account}
    return httpx.post(address, json=body, auth=(account, known["MLFLOW_TRACKING_PASSWORD"]), timeout=60).status_code


def test_the_watch_of_compose_has_a_removed_champion_put_back(loop: Loop, team: Team) -> None:
    """Its command and account, beside servers with accounts on, which let a worker create no webhook."""
    port = free_ports(1)[0]
    compose = YAML(typ="safe").load((PROJECT / "infra" / "compose.yaml").read_text())["services"]["watch"]
    assert compose["environment"]["MLFLOW_TRACKING_USERNAME"] == "worker"
    worker = {"CXR_POOL": "local", "PWD": str(loop.clone.root), "PREFECT_WORKER_QUERY_SECONDS": "1", **team.environment}
    clone = dataclasses.replace(loop.clone, environment=worker)
    clone.run("prefect", "work-pool", "create", "local", "--type", "process")
    clone.run("prefect", "--no-prompt", "deploy", "--name", "judge/on-demand")
    champion = {"name": MODEL, "alias": "champion"}
    change_aliases(team, "DELETE", champion)
    watch = [sys.executable if word == "python" else word.replace("8090", str(port)) for word in compose["command"]]
    pool = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local"]
    with clone.start(*watch), clone.start(*pool):
        wait_for(lambda: champion_of(team) == "1")
        health = httpx.get(f"http://127.0.0.1:{port}/health", timeout=60).json()
    assert health == {"subscribed": False, "problem": ""}
    runs = team.sql("prefect", "SELECT r.name FROM flow_run r JOIN deployment d ON r.deployment_id = d.id")
    assert len(runs) == 1
    assert "restore" in clone.ask("tasks.history", "--csv")


def champion_of(team: Team) -> str | None:
    """Return the version with the alias `champion`."""
    model = mlflow(team, "registered-models/get", name=MODEL)["registered_model"]
    return {alias["alias"]: alias["version"] for alias in model.get("aliases", [])}.get("champion")


def change_aliases(team: Team, method: str, body: dict[str, str]) -> None:
    """Set or delete an alias as MLflow's administrator."""
    address = f"http://127.0.0.1:{team.ports['mlflow']}/api/2.0/mlflow/registered-models/alias"
    answer = httpx.request(method, address, json=body, auth=("admin", team.secrets.mlflow_password), timeout=60)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("variable", "command", "names"),
    [
        ("MLFLOW_TRACKING_PASSWORD", ["tasks.history"], "MLFLOW_TRACKING_PASSWORD"),
        ("PREFECT_API_AUTH_STRING", ["flows.rebuild", "--no-promote"], "PREFECT_API_AUTH_STRING"),
    ],
)
def test_a_wrong_password_is_one_clear_line(
    loop: Loop, team: Team, variable: str, command: list[str], names: str
) -> None:
    stranger = dataclasses.replace(loop.clone, environment={**team.environment, variable: "admin:wrong-guess"})
    lines: list[str] = []
    assert stranger.follow(lines.append, *command) not in {0, 10}
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert names in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_no_password_stands_in_anything_that_was_written(loop: Loop, team: Team) -> None:
    places = {
        "the run's lines": loop.said.encode(),
        "the databases": team.dump().encode(),
        **{str(path): path.read_bytes() for root in (loop.clone.root, team.folder) for path in written_below(root)},
        **{f"s3://{key}": body for key, body in objects(team)},
    }
    planted = {name: value.encode() for name, value in dataclasses.asdict(team.secrets).items()}
    found = {(name, place) for place, body in places.items() for name, value in planted.items() if value in body}
    assert found == set()
    assert any("mlflow" in place for place in places if place.startswith("s3://"))


def written_below(root: Path) -> list[Path]:
    """Return every file below a folder: outputs, logs, git, DVC's cache, Prefect's home; not the stores' own data."""
    own_data = {"postgresql", "s3"}
    return [
        path
        for top in root.iterdir()
        if not (top.is_dir() and top.name in own_data)
        for path in (top.rglob("*") if top.is_dir() else [top])
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
    ]


def objects(team: Team) -> Iterator[tuple[str, bytes]]:
    """Yield every object of the bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=team.s3["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=team.secrets.s3_access_key,
        aws_secret_access_key=team.secrets.s3_secret_key,
    )
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", []):
            yield entry["Key"], client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
