"""A real Ray cluster of two nodes gives what threads give: trials of a study, shards of the nightly scoring."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_URL

from cxr.common.params import override
from cxr.inference.score_store import read_scores
from tests.support.faults import fault
from tests.support.project import PROJECT
from tests.support.ray_nodes import start_two_nodes
from tests.support.study_runs import ONE_STAGE
from tests.support.tiny_model import enter_tiny_project, write_image

IMAGES = 400

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

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[dict[str, str]]:
    with start_two_nodes() as nodes:
        yield nodes.settings


def test_a_study_on_two_ray_nodes_gives_what_threads_give(
    two_nodes: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    commit_study(tiny)
    in_threads = run_study(tiny, tmp_path / "threads", {})
    on_nodes = run_study(tiny, tmp_path / "nodes", two_nodes)
    assert len(in_threads) == 2
    assert {trial: tags["recipe"] for trial, tags in on_nodes.items()} == {
        trial: tags["recipe"] for trial, tags in in_threads.items()
    }
    assert {tags["node"] for tags in in_threads.values()} == {""}
    assert len({tags["node"] for tags in on_nodes.values()} - {""}) == 2, "one trial on each node"


def test_shards_on_two_ray_nodes_score_new_and_report_unreadable_images(
    two_nodes: dict[str, str],
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
            command, env={**os.environ, **own, **two_nodes}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == expected


@fault(
    "flows.score",
    "one of two Ray nodes is killed in the middle of its shard",
    "the other node finishes both shards",
    "each image has one row",
)
def test_of_two_ray_nodes_one_is_killed_and_each_image_is_scored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    enter_tiny_project(tmp_path, monkeypatch, tmp_path_factory, champion=True)
    override(tmp_path / "params.yaml", {"score.images_per_part": 1})
    for number in range(IMAGES):
        write_image(tmp_path / "images" / f"{number}.png", seed=number)
    own = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "flows.score", "images", "--shards", "2"]
    with start_two_nodes() as nodes:
        environment = {**os.environ, **own, **nodes.settings}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as flow:
            while len({part.name.split("-")[1] for part in scored_parts()}) < 2:  # both shards have begun
                assert flow.poll() is None
                time.sleep(0.02)
            nodes.kill_second()
            left = IMAGES - len(read_scores(Path("data/scores")))
            said, _ = flow.communicate(timeout=400)
    assert flow.returncode == 0, said
    assert left > 0, "the node was killed in the middle"
    assert sorted(read_scores(Path("data/scores"))["path"]) == sorted(f"{number}.png" for number in range(IMAGES))


def scored_parts() -> list[Path]:
    return [*Path("data/scores").rglob("[!.]*.parquet")]


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
