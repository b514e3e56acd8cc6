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
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_URL

from cxr.common.files import read_json
from cxr.common.params import override
from cxr.inference.score_store import parts_below, read_scores
from cxr.registry.tracking_store import FOLDER_VARIABLE
from tasks import external
from tests.support.faults import fault
from tests.support.project import PROJECT
from tests.support.projects.study_runs import ONE_STAGE
from tests.support.projects.tiny_model import enter_tiny_project, write_image
from tests.support.services.mlflow_server import serve_mlflow
from tests.support.services.ray_nodes import TwoNodes, start_two_nodes
from tests.support.services.servers import ACCESS_KEY, SECRET_KEY, s3_settings, serve_s3

BUCKET = "hospital"
IMAGES = 100  # in parts of 16
TESTED = 600  # in parts of 128

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
runs.finish_run(run, "FINISHED")
"""

START = """
import os, sys, time
def node_runs():
    try:
        os.kill(int(os.environ["RAY_RAYLET_PID"]), 0)
    except ProcessLookupError:
        return False
    return True
def watch(event, arguments):
    if event in {"open", "os.listdir", "os.scandir", "os.mkdir", "sqlite3.connect"}:
        if str(arguments[0]).startswith(os.environ["HIDDEN"]):
            raise PermissionError(13, "not on this machine", str(arguments[0]))
    if event == "os.rename" and str(arguments[1]).endswith("-00002.parquet"):
        while os.path.exists(os.environ["HOLD"]) or not node_runs():
            time.sleep(0.05)
sys.addaudithook(watch)
"""
"""What every Python of the nodes runs first: a folder of the flow's machine is not on theirs, and a shard waits with
its second part while the file HOLD is there, and for ever if its node was killed meanwhile."""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A bucket; yields the environment of who may use it."""
    with serve_s3(tmp_path_factory.mktemp("s3"), BUCKET) as endpoint:
        yield s3_settings(endpoint)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of START; `hidden` in it is what no process of the nodes can open."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "sitecustomize.py").write_text(START)
    (folder / "hidden").mkdir()
    return folder


@pytest.fixture(scope="module")
def cluster(bucket: dict[str, str], start: Path) -> Iterator[TwoNodes]:
    """The nodes, with the keys of the bucket and a folder for models of their own in their environment."""
    own = {"HIDDEN": str(start / "hidden"), "HOLD": str(start / "hold"), FOLDER_VARIABLE: str(start / "mlruns")}
    with start_two_nodes(bucket | own | {"PYTHONPATH": f"{start}{os.pathsep}{PROJECT}"}) as nodes:
        yield nodes


@pytest.fixture
def two_nodes(cluster: TwoNodes) -> TwoNodes:
    """Both nodes, whatever the test before has killed."""
    cluster.complete()
    return cluster


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


@fault(
    "flows.score",
    "one of two Ray nodes that share no folder is killed in the middle of its shard",
    "the other node finishes both shards",
    "each image has one row",
)
def test_of_two_nodes_without_a_common_folder_one_is_killed_and_each_image_is_scored_once(
    two_nodes: TwoNodes,
    bucket: dict[str, str],
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    client, project = fill_bucket(bucket, tmp_path), start / "hidden"
    with serve_mlflow(tmp_path) as store:
        addresses = {"MLFLOW_TRACKING_URI": store}
        enter_tiny_project(project, monkeypatch, tmp_path_factory, champion=True, store=addresses)
        override(project / "params.yaml", {"score.images_per_part": 1, "score.exchange": f"s3://{BUCKET}/scores"})
        command = [sys.executable, "-m", "flows.score", f"s3://{BUCKET}/night", "--shards", "2"]
        said = run_and_kill(command, two_nodes, start / "hold", addresses | bucket, parts=lambda: parts_in(client))
    scored = read_scores(project / "data/scores").set_index("path")
    assert sorted(scored.index) == sorted(["empty.png", *(f"{number}.png" for number in range(IMAGES))])
    assert list(scored.index[scored["error"].notna()]) == ["empty.png"]
    parts = parts_in(client)
    assert {part.name for part in (project / "data/scores/version-1").iterdir()} == set(parts)
    assert len({part.rpartition("-")[0] for part in parts}) == 3, "one shard was begun twice"
    assert all(SECRET_KEY.encode() not in log.read_bytes() for log in two_nodes.logs.iterdir() if log.is_file())
    assert SECRET_KEY not in said


@fault(
    "flows.external",
    "one of two Ray nodes is killed in the middle of its shard",
    "the other node finishes both shards",
    "the result is that of one process, to the bit",
)
def test_of_two_ray_nodes_one_is_killed_and_the_external_test_is_as_in_one_process(
    two_nodes: TwoNodes,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    enter_tiny_project(tmp_path, monkeypatch, tmp_path_factory, champion=True)
    override(tmp_path / "params.yaml", {"evaluate.bootstrap_resamples": 100, "monitor.resamples": 500})
    for number in range(TESTED):
        write_image(tmp_path / "ward" / ("NORMAL", "PNEUMONIA")[number % 2] / f"{number}.png", seed=number)
    answers = tmp_path / "reports/external/.ward.answers"
    command = [sys.executable, "-m", "flows.external", "--shards", "2", "--data", "ward", "--json", "on-nodes.json"]
    run_and_kill(command, two_nodes, start / "hold", {}, parts=lambda: [part.name for part in parts_below(answers)])
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
    client.put_object(Bucket=BUCKET, Key="night/empty.png", Body=b"")
    return client


def parts_in(client: Any) -> list[str]:
    """Return the names of the parts in the bucket."""
    found = client.list_objects_v2(Bucket=BUCKET, Prefix="scores/version-1/").get("Contents", [])
    return [item["Key"].rpartition("/")[2] for item in found]


def run_and_kill(
    command: list[str], nodes: TwoNodes, hold: Path, settings: dict[str, str], *, parts: Callable[[], list[str]]
) -> str:
    """Run a flow in the present folder on the nodes; kill one when each shard has written one of its parts.

    Returns what the flow printed.
    """
    own = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(PROJECT)}
    environment = {**os.environ, **own, **settings, **nodes.settings}
    hold.touch()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as flow:
        while len(parts()) < 2:
            assert flow.poll() is None, flow.communicate()[0]
            time.sleep(0.05)
        nodes.kill_second()
        hold.unlink()
        said, _ = flow.communicate(timeout=400)
    assert flow.returncode == 0, said
    return said


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
