"""What a training and an evaluation leave in a real tracking store, and what a dead store does to them."""

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cxr.common.errors import RegistryError
from cxr.registry import runs, tracking_store
from cxr.registry.run_metadata import group_of_folds, keep_below, log_images
from cxr.registry.training_run import training_run
from tests.support.faults import fault
from tests.support.projects.registry_project import enter_project
from tests.support.services.servers import free_ports

PASSWORD = "s3cr3t-w0rd"


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


@pytest.fixture
def dead_server(monkeypatch: pytest.MonkeyPatch) -> str:
    """Point to a port where nobody listens, with a password; return the address without it."""
    port = free_ports(1)[0]
    monkeypatch.setenv(tracking_store.STORE_VARIABLE, f"http://ann:{PASSWORD}@127.0.0.1:{port}")
    return f"http://127.0.0.1:{port}"


def test_the_store_is_below_the_current_directory_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracking_store.FOLDER_VARIABLE)
    assert tracking_store.tracking_uri() == "sqlite:///mlruns/mlflow.db"
    monkeypatch.setenv(tracking_store.FOLDER_VARIABLE, "/elsewhere/mlruns")
    assert tracking_store.tracking_uri() == "sqlite:////elsewhere/mlruns/mlflow.db"
    assert tracking_store.public_uri() == "sqlite:///mlruns/mlflow.db"
    monkeypatch.setenv(
        tracking_store.STORE_VARIABLE, "sqlite:////elsewhere/mlruns/mlflow.db"
    )  # the same, as ./run does
    assert tracking_store.public_uri() == "sqlite:///mlruns/mlflow.db"
    monkeypatch.setenv(tracking_store.STORE_VARIABLE, "http://127.0.0.1:5000")
    assert tracking_store.tracking_uri() == tracking_store.public_uri() == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://ann:p%40ss@host:1/path", "https://host:1/path"),
        ("postgresql+psycopg://ann:p@ss@host/db?sslpassword=x", "postgresql+psycopg://host/db"),
        ("http://token@host", "http://host"),
        ("sqlite:////folder/mlflow.db", "sqlite:////folder/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_credentials(uri: str, shown: str) -> None:
    assert tracking_store.without_credentials(uri) == shown


def test_an_account_in_a_servers_address_reaches_mlflow_by_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    account = (
        "ann:s%40cret"  # joined below: an address with a password in it, even a made-up one, stops the secret scan
    )
    monkeypatch.setenv(tracking_store.STORE_VARIABLE, f"http://{account}@127.0.0.1:1/mlflow")
    with pytest.raises(RegistryError):
        tracking_store.client()
    assert tracking_store.tracking_uri() == "http://127.0.0.1:1/mlflow"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "s@cret")


def test_a_training_leaves_parameters_metrics_data_and_files(tmp_path: Path) -> None:
    curves = tmp_path / "curves.csv"
    curves.write_text("epoch\n1\n")
    with training_run(name="first", tags={"git_commit": "abc"}) as run:
        run.log_params({"epochs": 2, "rates": {"head": 0.001}, "zoom": [0.9, 1.1], "weights": "none"})
        images = pd.DataFrame({"image_id": ["a", "b"], "label": ["viral", "normal"], "fold": [0, 1]})
        log_images(run.run_id, images, source=Path("data/raw/m.parquet"), sha256="ab" * 32, context="training")
        run.log_epoch({"validation_loss": 1.0}, 1)
        run.log_epoch({"validation_loss": 0.5}, 2)
        run.log_files([curves])
    found = tracking_store.client().get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"epochs": "2", "rates.head": "0.001", "zoom": "[0.9, 1.1]", "weights": "none"}
    assert [m.value for m in tracking_store.client().get_metric_history(run.run_id, "validation/loss")] == [1.0, 0.5]
    data = found.inputs.dataset_inputs[0]
    assert data.dataset.digest == ("ab" * 32)[:36]
    assert json.loads(data.dataset.profile) == {"images": 2, "viral": 1, "normal": 1}
    types = {column["name"]: column["type"] for column in json.loads(data.dataset.schema)["mlflow_colspec"]}
    assert types == {"image_id": "string", "label": "string", "fold": "long"}
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training", "sha256": "ab" * 32}
    assert [file.path for file in tracking_store.client().list_artifacts(run.run_id, "training")] == [
        "training/curves.csv"
    ]
    assert runs.run_tags(run.run_id) == {"git_commit": "abc"}
    assert found.info.artifact_uri.startswith((tmp_path / "mlruns" / "artifacts").as_uri())


def test_members_and_folds_are_below_one_run_and_resume_into_their_own() -> None:
    named = [("member 1", {"train.seed": 1}), ("member 2", {"train.seed": 2})]
    with contextlib.suppress(KeyboardInterrupt), training_run(name="both") as run:
        run.open_members(named, {"protocol": "cv"})
        run.member(1).log_epoch({"train_loss": 1.0}, 1)
        raise KeyboardInterrupt
    with training_run(name="both", run_id=run.run_id) as resumed:
        resumed.open_members(named, {"protocol": "cv"})
        resumed.member(1).log_epoch({"train_loss": 0.5}, 2)
    below = runs.children(run.run_id)
    assert sorted(below.values()) == ["member 1", "member 2"]
    second = tracking_store.client().get_run(next(run_id for run_id, name in below.items() if name == "member 2"))
    assert (second.info.status, second.data.params) == ("FINISHED", {"train.seed": "2"})
    history = tracking_store.client().get_metric_history(second.info.run_id, "training/loss")
    assert [point.value for point in history] == [1.0, 0.5]
    for fold in range(2):
        with training_run(name=f"fold {fold}") as one:
            keep_below(one.run_id, "cv-abc", name="cross-validation", description="Two folds.")
    parent = runs.find_run("group", "cv-abc")
    assert parent is not None
    assert sorted(runs.children(parent).values()) == ["fold 0", "fold 1"]


def test_folds_of_one_cross_validation_share_a_group_and_those_of_another_task_or_draw_do_not() -> None:
    split = {"task": "three_way", "subsample": "none", "train_share": 1.0, "train_sources": [], "seed": 1, "folds": 5}
    fold = {"train": {"seed": 1}, "preprocess": {}, "split": split | {"manifest_sha256": "a" * 64, "fold": 0}}

    def changed(**fields: Any) -> str:
        return group_of_folds(fold | {"split": fold["split"] | fields})

    assert changed(fold=1, counts={"test": 7}) == group_of_folds(fold)
    others = [changed(task="viral_bacterial"), changed(seed=2), changed(folds=4), changed(train_sources=["kermany"])]
    assert len({group_of_folds(fold), *others}) == 5


def test_an_experiment_is_one_of_machine_learning_for_mlflow_also_where_an_earlier_release_made_it() -> None:
    client = tracking_store.client()
    client.create_experiment(runs.EXPERIMENT)
    assert client.get_experiment(runs.experiment_id()).tags["mlflow.experimentKind"] == "custom_model_development"


def test_system_metrics_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with training_run(name="first") as run:
        for _ in range(100):
            time.sleep(0.3)
            if any(name.startswith("system/") for name in tracking_store.client().get_run(run.run_id).data.metrics):
                break
    assert any(name.startswith("system/cpu") for name in tracking_store.client().get_run(run.run_id).data.metrics)


def test_a_killed_training_resumes_into_its_run_and_keeps_its_first_parameters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with contextlib.suppress(KeyboardInterrupt), training_run(name="first") as run:
        run.log_params({"epochs": 2})
        raise KeyboardInterrupt
    assert tracking_store.client().get_run(run.run_id).info.status == "KILLED"
    with training_run(name="second", run_id=run.run_id, tags={"again": "yes"}) as resumed:
        assert tracking_store.client().get_run(run.run_id).info.status == "RUNNING"
        resumed.log_params({"epochs": 3, "device": "cpu"})
    assert resumed.run_id == run.run_id
    assert tracking_store.client().get_run(run.run_id).data.params == {"epochs": "2", "device": "cpu"}
    assert f"tracking: run {run.run_id} keeps the first values of epochs" in caplog.messages
    assert runs.run_tags(run.run_id) == {"again": "yes"}


def test_a_failed_training_is_marked_failed_and_an_unknown_run_id_starts_a_new_run() -> None:
    with pytest.raises(ValueError, match="no"), training_run(name="first", run_id="0" * 32) as run:
        raise ValueError("no")
    assert run.run_id != "0" * 32
    assert tracking_store.client().get_run(run.run_id).info.status == "FAILED"


def test_a_long_parameter_is_cut_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    run_id = runs.start_run(run_id=None, name="n", tags={})
    runs.log_params(run_id, {"classes": {"text": "x" * 7000}})
    assert len(tracking_store.client().get_run(run_id).data.params["classes.text"]) == 6000
    assert "tracking: the value of classes.text is cut to 6000 characters" in caplog.messages


@fault(
    "MLflow",
    "the server is gone when a training starts",
    "the training does not start",
    "exit code 9, the address without its password",
)
def test_a_dead_server_stops_a_training_at_its_start_without_showing_the_password(dead_server: str) -> None:
    with pytest.raises(RegistryError) as caught, training_run(name="first"):
        pass
    assert f"{dead_server} failed while opening it" in str(caught.value)
    assert PASSWORD not in str(caught.value)


@fault("MLflow", "the server is gone during a training", "epochs are sent later", "a warning")
def test_epochs_that_a_dead_store_missed_are_sent_with_the_next(
    dead_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = f"http://ann:{PASSWORD}@{dead_server.removeprefix('http://')}"
    monkeypatch.delenv(tracking_store.STORE_VARIABLE)
    with training_run(name="first") as run:
        monkeypatch.setenv(tracking_store.STORE_VARIABLE, broken)
        run.log_epoch({"loss": 1.0}, 1)
        run.log_files([])
        run.log_epoch({"loss": 0.5}, 2)
        monkeypatch.delenv(tracking_store.STORE_VARIABLE)
        run.log_epoch({"loss": 0.25}, 3)
    history = tracking_store.client().get_metric_history(run.run_id, "training/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert any(message.startswith("2 epochs are not in the tracking store yet") for message in caplog.messages)
    assert PASSWORD not in caplog.text


def test_a_store_that_died_leaves_the_trained_model_alone(
    dead_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = f"http://ann:{PASSWORD}@{dead_server.removeprefix('http://')}"
    monkeypatch.delenv(tracking_store.STORE_VARIABLE)
    with training_run(name="first"):
        monkeypatch.setenv(tracking_store.STORE_VARIABLE, broken)
    assert any(message.startswith("the run stays open in the tracking store") for message in caplog.messages)


def test_a_run_that_the_store_missed_the_end_of_stays_open_until_completed(
    dead_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    curves = tmp_path / "curves.csv"
    curves.write_text("epoch,loss\n1,1.0\n2,0.5\n")
    monkeypatch.delenv(tracking_store.STORE_VARIABLE)
    with training_run(name="first") as run:
        run.log_epoch({"loss": 1.0}, 1)
        monkeypatch.setenv(tracking_store.STORE_VARIABLE, dead_server)
        run.log_epoch({"loss": 0.5}, 2)
        run.log_files([curves])
        monkeypatch.delenv(tracking_store.STORE_VARIABLE)
    assert not runs.is_finished(run.run_id)
    runs.complete_run(run.run_id, {1: {"loss": 1.0}, 2: {"loss": 0.5}}, [curves])
    assert runs.is_finished(run.run_id)
    store = tracking_store.client()
    assert [(m.step, m.value) for m in store.get_metric_history(run.run_id, "training/loss")] == [(1, 1.0), (2, 0.5)]
    assert [file.path for file in store.list_artifacts(run.run_id, "training")] == ["training/curves.csv"]


def test_an_evaluation_is_recorded_in_the_run_of_the_training(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("page")
    run_id = runs.start_run(run_id=None, name="n", tags={})
    for _ in range(2):  # a second evaluation replaces the table
        runs.log_evaluation(run_id, {"test_accuracy": 0.9}, [page], pd.DataFrame({"image_id": ["a"], "p": [0.5]}))
    assert tracking_store.client().get_run(run_id).data.metrics == {"test/accuracy": 0.9}
    table = Path(tracking_store.client().download_artifacts(run_id, "eval_results_table.json"))
    assert json.loads(table.read_text()) == {"columns": ["image_id", "p"], "data": [["a", 0.5]]}
    assert [file.path for file in tracking_store.client().list_artifacts(run_id, "evaluation")] == [
        "evaluation/report.html"
    ]


def test_an_evaluation_without_its_run_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    runs.log_evaluation("0" * 32, {"accuracy": 0.9}, [], pd.DataFrame())
    assert f"run {'0' * 32} is not in sqlite:///mlruns/mlflow.db" in caplog.text


@fault("MLflow", "the server is gone when an evaluation ends", "the evaluation's files are written", "a warning")
def test_an_evaluation_survives_a_dead_store(dead_server: str, caplog: pytest.LogCaptureFixture) -> None:
    runs.log_evaluation("0" * 32, {"accuracy": 0.9}, [], pd.DataFrame())
    assert f"the tracking store {dead_server} failed while opening it" in caplog.text
    assert PASSWORD not in caplog.text


def test_runs_are_found_by_tag() -> None:
    assert runs.find_run("restored_from", "x") is None
    run_id = runs.start_run(run_id=None, name="n", tags={"restored_from": "x"})
    assert runs.find_run("restored_from", "x") == run_id
    assert not runs.run_exists(None)


def test_a_file_that_is_no_database_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("this is not a database" * 100)
    monkeypatch.setenv(tracking_store.STORE_VARIABLE, f"sqlite:///{path}")
    with pytest.raises(RegistryError) as caught:
        runs.experiment_id()
    assert f"{path} failed while opening it: file is not a database" in str(caught.value)


def test_setting_the_store_for_mlflow_does_not_change_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with tracking_store.named_to_mlflow():
        pass
    assert tracking_store.STORE_VARIABLE not in os.environ
    monkeypatch.setenv(tracking_store.STORE_VARIABLE, "http://127.0.0.1:1")
    with tracking_store.named_to_mlflow():
        pass
    assert os.environ[tracking_store.STORE_VARIABLE] == "http://127.0.0.1:1"
