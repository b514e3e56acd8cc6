"""The training step: its files, its run in the tracking store, and resuming after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from cxr.common.files import sha256_of
from cxr.common.params import Paths, override, read_params
from cxr.dataset.image_array import read_image_array, write_index
from cxr.dataset.manifest import MANIFEST_COLUMNS, write_table
from cxr.imaging.preprocess import Preprocessing
from cxr.models.bundle import read_bundle
from cxr.models.forward import predict_logits, softmax_with_temperature
from tests.support.faults import fault
from tests.support.project import PROJECT
from tests.support.projects.stage_files import write_split_files

IMAGES = 36
QUICK = {
    "train.backbone": "small_cnn",
    "train.epochs": 3,
    "train.batch_size": 12,
    "train.warmup_epochs": 0,
    "train.ema_decay": 0.5,
}


def project(folder: Path) -> Path:
    """Write the inputs of the step into `folder`; return its parameter file."""
    folder.mkdir(parents=True, exist_ok=True)
    params = folder / "params.yaml"
    params.write_text((PROJECT / "params.yaml").read_text())
    paths = read_params(params).paths
    override(params, {f"paths.{name}": str(folder / getattr(paths, name)) for name in Paths.model_fields} | QUICK)
    ids = [f"id-{row:02d}" for row in range(IMAGES)]
    labels = [("normal", "viral", "bacterial")[row % 3] for row in range(IMAGES)]
    images = folder / paths.images
    images.mkdir(parents=True)
    np.save(images / "images.npy", np.random.default_rng(0).integers(0, 255, (IMAGES, 32, 32), np.uint8))
    write_index(images, ids, Preprocessing(32, "stretch", "clahe", 2.0, 4, 10**6))
    write_manifest(folder / paths.raw, ids, labels)
    parts = ["validation" if row >= 27 else "train" for row in range(IMAGES)]
    table = pd.DataFrame({"image_id": ids, "split": parts, "label": labels})
    write_split_files(folder / paths.split, table, manifest=folder / paths.raw / "manifest.parquet")
    return params


def write_manifest(folder: Path, ids: list[str], labels: list[str]) -> None:
    folder.mkdir(parents=True)
    numbers = {"width": 32, "height": 32, "bytes": 1000, "acquisition_number": 1}
    words = {"official_split": "train", "sha256": "0" * 64, "phash": "0" * 16, "mode": "L", "acquisition_series": "one"}
    table = pd.DataFrame({"image_id": ids, "path": ids, "label": labels, "patient_id": ids, **numbers, **words})
    table["source"] = np.where(np.arange(len(ids)) % 2, "one", "two")
    write_table(table.astype(MANIFEST_COLUMNS), MANIFEST_COLUMNS, folder / "manifest.parquet")


def start(params: Path, store: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tasks.train", "--params", str(params)]
    return subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True)


def trained(params: Path) -> Path:
    return read_params(params).paths.model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    params = project(tmp_path_factory.mktemp("whole"))
    process = start(params, store)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return params


def test_model_curves_and_summary_are_written(finished: Path) -> None:
    folder = trained(finished)
    _, spec = read_bundle(folder)
    assert spec.classes == ("normal", "viral", "bacterial")
    assert spec.synthetic is True
    summary = json.loads((folder / "training.json").read_text())
    assert (summary["epochs_run"], summary["device"], summary["weights"]["source"]) == (3, "cpu", "none")
    assert pd.read_csv(folder / "curves.csv")["epoch"].tolist() == [1, 2, 3]
    left = [path.name for path in read_params(finished).paths.checkpoints.iterdir()]
    assert left == ["train.lock"], "a finished training leaves no checkpoint"


def test_run_records_parameters_curves_dataset_and_lineage(finished: Path, store: Path) -> None:
    run_id = json.loads((trained(finished) / "training.json").read_text())["run_id"]
    client = MlflowClient(f"sqlite:///{store}")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.learning_rates.head"] == "0.0005"
    assert run.data.params["preprocess.image_size_px"] == "32"
    assert len(client.get_metric_history(run_id, "validation/macro_f1")) == 3
    used = {data.dataset.name: data.dataset for data in run.inputs.dataset_inputs}
    assert used.keys() == {"training images", "validation images"}
    manifest = sha256_of(read_params(finished).paths.raw / "manifest.parquet")
    assert {data.digest for data in used.values()} == {manifest[:36]}
    assert json.loads(used["training images"].schema)["mlflow_colspec"][0]["name"] == "image_id"
    assert "training and" in run.data.tags["mlflow.note.content"]
    assert {"git_commit", "params_sha256", "uv_lock_sha256", "protocol"} <= set(run.data.tags)


@fault(
    "train",
    "SIGKILL between epochs",
    "the next run goes on from the last checkpoint",
    "bit-identical weights, one MLflow run",
)
def test_killed_training_resumes_its_run_and_ends_with_bit_identical_weights(
    finished: Path, store: Path, tmp_path: Path
) -> None:
    params = project(tmp_path)
    killed = start(params, store)
    assert killed.stderr is not None
    while not killed.stderr.readline().startswith("epoch  1/3"):
        pass
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not trained(params).exists()
    (recorded,) = read_params(params).paths.checkpoints.glob("*/run_id")
    run_id = recorded.read_text()
    resumed = start(params, store)
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert "epoch  1/3" not in errors
    weights = [(trained(file) / "model.safetensors").read_bytes() for file in (finished, params)]
    assert weights[0] == weights[1]
    assert json.loads((trained(params) / "training.json").read_text())["run_id"] == run_id


def test_ensemble_averages_networks_of_different_seeds_and_is_validated_as_a_whole(tmp_path: Path, store: Path) -> None:
    params = project(tmp_path)
    override(params, {"train.members": 2, "train.epochs": 1})
    process = start(params, store)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    model, spec = read_bundle(trained(params))
    assert (spec.members, len(list(model.get_submodule("members").children()))) == (2, 2)
    first, second = (dict(member.named_parameters()) for member in model.get_submodule("members").children())
    assert any(not first[name].equal(second[name]) for name in first)
    table = pd.read_csv(trained(params) / "validation.csv")
    packed = read_image_array(read_params(params).paths.images)
    images = packed.images[packed.rows(table["image_id"].tolist())]
    answers = softmax_with_temperature(predict_logits(model, images, mean=spec.mean, std=spec.std), 1.0)
    assert table[["p_normal", "p_viral", "p_bacterial"]].to_numpy() == pytest.approx(answers, abs=1e-6)
    assert set(table["source"]) == {"one", "two"}
    assert json.loads((trained(params) / "training.json").read_text())["best_epochs"] == [1, 1]


def test_missing_input_is_reported_in_one_line(tmp_path: Path, store: Path) -> None:
    params = project(tmp_path)
    (read_params(params).paths.split / "splits.csv").unlink()
    process = start(params, store)
    _, errors = process.communicate()
    assert process.returncode == 5
    assert errors == f"error: {tmp_path}/data/split/splits.csv is missing; run `./run dvc repro split`\n"
