"""A real Ray cluster of two nodes gives what threads give, also when one of them is killed.

Trials of a study, shards of the nightly scoring and of a test on another set. The nodes share the project's folder, or
nothing but a bucket.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_URL

from cxr.common.files import read_json
from cxr.common.params import override
from cxr.inference.score_store import read_scores
from tasks import external
from tests.support.faults import fault
from tests.support.mlflow_server import serve_mlflow
from tests.support.project import PROJECT
from tests.support.ray_nodes import TwoNodes, start_two_nodes
from tests.support.servers import ACCESS_KEY, SECRET_KEY, s3_settings, serve_s3
from tests.support.study_runs import ONE_STAGE
from tests.support.tiny_model import enter_tiny_project, write_image

BUCKET = "hospital"
IMAGES = 400
TESTED = 900  # answers are kept in parts of 128

STEP = """
import hashlib, json, os, pathlib, time
from cxr.registry import runs
from cxr.common.params import read_params
params = read_params(pathlib.Path("params.yaml"))
meeting = pathlib.Path("../../meeting")  # beside .runs
meeting.mkdir(exist_ok=True)
meeting.joinpath(str(params.train.epochs)).touch()
deadline = time.monotonic() + 300
while len(list(meeting.iterdir())) < 2:  # both trials run at the same time, or this one fails
    if time.monotonic() > deadline:
        raise SystemExit("error: the other trial did not come")
    time.sleep(0.1)
recipe = hashlib.sha256(params.train.model_dump_json().encode()).hexdigest()
tags = {"recipe": recipe, "node": os.environ.get("RAY_RAYLET_PID", "")}
run = runs.start_run(run_id=None, name="tiny", tags=tags)
params.paths.model.mkdir(parents=True, exist_ok=True)
(params.paths.model / "training.json").write_text(json.dumps({"run_id": run}))
"""

HIDE = """
import os, sys
def refuse(event, arguments):
    if event in {"open", "os.listdir", "os.scandir", "os.mkdir", "sqlite3.connect"}:
        if str(arguments[0]).startswith(os.environ["HIDDEN"]):
            raise PermissionError(13, "not on this machine", str(arguments[0]))
sys.addaudithook(refuse)
"""
"""What every Python of the nodes runs first: a folder of the flow's machine is not on theirs."""


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A bucket; yields the environment of who may use it."""
    with serve_s3(tmp_path_factory.mktemp("s3"), BUCKET) as endpoint:
        yield s3_settings(endpoint)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that no process of the nodes can open."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def two_nodes(bucket: dict[str, str], hidden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """A head and a second node of one core each, with the keys of the bucket in their environment."""
    start = tmp_path_factory.mktemp("start")
    (start / "sitecustomize.py").write_text(HIDE)
    own = {**bucket, "HIDDEN": str(hidden), "PYTHONPATH": f"{start}{os.pathsep}{PROJECT}"}
    with start_two_nodes(own) as nodes:
        yield nodes


def test_a_study_on_two_ray_nodes_gives_what_threads_give(two_nodes: TwoNodes, tiny: Path, tmp_path: Path) -> None:
    commit_study(tiny)
    in_threads = run_study(tiny, tmp_path / "threads", {})
    on_nodes = run_study(tiny, tmp_path / "nodes", two_nodes.settings)
    assert len(in_threads) == 2
    assert {trial: tags["recipe"] for trial, tags in on_nodes.items()} == {
        trial: tags["recipe"] for trial, tags in in_threads.items()
    }
    assert {tags["node"] for tags in in_threads.values()} == {""}
    assert len({tags["node"] for tags in on_nodes.values()} - {""}) == 2, "one trial on each node"


def test_shards_on_two_ray_nodes_score_new_and_report_unreadable_images(
    two_nodes: TwoNodes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    enter_tiny_project(tmp_path, monkeypatch, tmp_path_factory, champion=True)
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.png", seed=number)
    (tmp_path / "images" / "empty.png").touch()
    own = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "flows.score", "images", "--shards", "2"]
    for expected in (
        "5 images: 4 scored by version 1, 0 before, 1 bad",
        "5 images: 0 scored by version 1, 5 before, 0 bad",
    ):
        done = subprocess.run(
            command, env={**os.environ, **own, **two_nodes.settings}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == expected


@fault(
    "flows.score",
    "one of two Ray nodes that share no folder is killed in the middle of its shard",
    "the other node finishes both shards",
    "each image has one row",
)
def test_of_two_nodes_without_a_common_folder_one_is_killed_and_each_image_is_scored_once(
    two_nodes: TwoNodes,
    bucket: dict[str, str],
    hidden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    client = fill_bucket(bucket, tmp_path)
    with serve_mlflow(tmp_path) as store:
        addresses = {"MLFLOW_TRACKING_URI": store}
        enter_tiny_project(hidden, monkeypatch, tmp_path_factory, champion=True, store=addresses)
        override(hidden / "params.yaml", {"score.images_per_part": 1, "score.exchange": f"s3://{BUCKET}/scores"})
        command = [sys.executable, "-m", "flows.score", f"s3://{BUCKET}/night", "--shards", "2"]
        with start_flow(command, two_nodes, {**addresses, **bucket}) as flow:
            wait_for_parts(flow, lambda: parts_in(client))
            with two_nodes.one_killed():
                begun = parts_in(client)
                said, _ = flow.communicate(timeout=400)
    assert flow.returncode == 0, said
    assert len(begun) < len(parts_in(client)), "the node was killed in the middle"
    scored = read_scores(hidden / "data/scores")
    assert sorted(scored["path"]) == sorted(f"{number}.png" for number in range(IMAGES))
    assert scored["error"].isna().all()
    assert {part.name for part in (hidden / "data/scores/version-1").iterdir()} == set(parts_in(client))
    assert all(SECRET_KEY.encode() not in log.read_bytes() for log in two_nodes.logs.iterdir() if log.is_file())
    assert SECRET_KEY not in said


@fault(
    "flows.external",
    "one of two Ray nodes is killed in the middle of its shard",
    "the other node finishes both shards",
    "the result is that of one process, to the bit",
)
def test_of_two_ray_nodes_one_is_killed_and_the_external_test_is_as_in_one_process(
    two_nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    enter_tiny_project(tmp_path, monkeypatch, tmp_path_factory, champion=True)
    override(tmp_path / "params.yaml", {"evaluate.bootstrap_resamples": 100, "monitor.resamples": 500})
    for number in range(TESTED):
        write_image(tmp_path / "ward" / ("NORMAL", "PNEUMONIA")[number % 2] / f"{number}.png", seed=number)
    answers = tmp_path / "reports/external/.ward.answers"
    command = [sys.executable, "-m", "flows.external", "--shards", "2", "--data", "ward", "--json", "on-nodes.json"]
    with start_flow(command, two_nodes, {}) as flow:
        wait_for_parts(flow, lambda: [part.name for part in answers.rglob("[!.]*.parquet")])
        with two_nodes.one_killed():
            left = TESTED - len(read_scores(answers))
            said, _ = flow.communicate(timeout=400)
    assert flow.returncode == 0, said
    assert left > 0, "the node was killed in the middle"
    monkeypatch.setattr(sys, "argv", ["external", "--data", "ward", "--json", "alone.json"])
    external.main()
    assert read_json(Path("on-nodes.json")) == read_json(Path("alone.json"))


def fill_bucket(bucket: dict[str, str], folder: Path) -> Any:
    """Put the images into the bucket; return a client of it."""
    client = boto3.client(
        "s3",
        endpoint_url=bucket["AWS_ENDPOINT_URL"],
        region_name=bucket["AWS_DEFAULT_REGION"],
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )

    def put(number: int) -> None:
        path = folder / "images" / f"{number}.png"
        write_image(path, seed=number)
        client.put_object(Bucket=BUCKET, Key=f"night/{path.name}", Body=path.read_bytes())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(IMAGES)))
    return client


def parts_in(client: Any) -> list[str]:
    """Return the names of the parts in the bucket."""
    found = client.list_objects_v2(Bucket=BUCKET, Prefix="scores/version-1/").get("Contents", [])
    return [item["Key"].rpartition("/")[2] for item in found]


@contextmanager
def start_flow(command: list[str], nodes: TwoNodes, settings: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """Start a flow in the present folder on the cluster."""
    own = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(PROJECT), **settings}
    environment = {**os.environ, **own, **nodes.settings}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as flow:
        yield flow


def wait_for_parts(flow: "subprocess.Popen[str]", parts: Callable[[], list[str]]) -> None:
    """Wait until both shards have written a part."""
    while len({name.split("-")[1] for name in parts()}) < 2:
        assert flow.poll() is None, flow.communicate()[0]
        time.sleep(0.02)


def commit_study(root: Path) -> None:
    rows = [{"name": str(n), "label": "l", "set": {"train.epochs": n}} for n in (1, 2)]
    group = {"name": "few", "title": "t", "text": "t", "tested": False, "seeds": [1], "rows": rows}
    (root / "study.yaml").write_text(json.dumps({"groups": [group]}))
    (root / "dvc.yaml").write_text(ONE_STAGE)
    (root / "step.py").write_text(STEP)
    (root / ".gitignore").write_text("/.runs/\n/models/\n/mlruns/\n/meeting/\n__pycache__/\n")
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, "commit", "-qm", "two trials"], cwd=root, check=True)


def run_study(root: Path, folder: Path, settings: dict[str, str]) -> dict[str, dict[str, str]]:
    """Run the study into a store of its own; return each trial's tag -> the tags of the run that it marks."""
    folder.mkdir()
    for used in (root / ".runs", root / ".dvc" / "cache", root / "meeting"):  # DVC restores a result that it knows
        shutil.rmtree(used, ignore_errors=True)
    store = f"sqlite:///{folder / 'mlflow.db'}"
    own = {"MLFLOW_TRACKING_URI": store, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    command = [sys.executable, "-m", "flows.study", "--workers", "2"]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, **own, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(store)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return {key: run.data.tags for run in runs for key in run.data.tags if key.startswith("study.")}
