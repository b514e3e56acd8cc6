"""Registering: once for the same weights, from a cache too, and never files that contradict each other."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cxr.common.errors import DataError, WeightsError
from cxr.common.files import read_json, write_json
from cxr.models.bundle import read_spec, write_spec
from cxr.registry import runs, tracking_store, versions
from cxr.registry.evaluation_store import evaluation_of
from cxr.registry.training_run import training_run
from tests.support.faults import fault
from tests.support.projects.registry_project import enter_project, register, write_model


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    write_model()


def _versions() -> int:
    return len(tracking_store.client().search_model_versions(f"name = '{versions.MODEL}'"))


def test_a_model_becomes_the_challenger_with_lineage_evaluation_and_receipt() -> None:
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("tags: {}", "tags: {team: radiology}"))
    version = register()
    receipt = read_json(Path("reports/registration.json"))
    assert receipt == {
        "name": "chest-xray-pneumonia",
        "version": "1",
        "run_id": version.run_id,
        "weights_sha256": read_spec(Path("models/trained")).weights_sha256,
        "alias": "challenger",
        "tracking_uri": "sqlite:///mlruns/mlflow.db",
    }
    assert versions.get_version("challenger") == version
    expected = {
        "weights_sha256": receipt["weights_sha256"],
        "temperature": "1.5",
        "bias": "(0.0, 0.25, -0.25)",
        "protocol": "patient",
        "synthetic": "true",
        "manifest_sha256": "a" * 64,
        "accuracy": "1.0000",
        "ece": "0.0500",
        "team": "radiology",
        "classes": "normal,viral,bacterial",
    }
    assert expected.items() <= version.tags.items()
    assert len(version.tags["code_sha256"]) == len(version.tags["params_sha256"]) == 64
    fetched = read_spec(versions.fetch_bundle(version))
    assert (fetched.temperature, fetched.bias, fetched.refer_below) == (1.5, (0.0, 0.25, -0.25), 0.625)
    model = tracking_store.client().get_logged_model(version.model_id)
    assert {metric.key for metric in model.metrics} == {
        "test/accuracy",
        "test/ece",
        "test/macro_auroc",
        "test/macro_f1",
    }
    assert model.tags["mlflow.modelVersions"] == '[{"name": "chest-xray-pneumonia", "version": "1"}]'
    page = tracking_store.client().get_model_version(versions.MODEL, "1").description
    assert (
        f"/runs/{version.run_id}/artifacts/{version.tags['evaluation_artifacts'].partition('/')[2]}/report.html" in page
    )
    assert "accuracy 1.0000" in page
    run = tracking_store.client().get_run(version.run_id)
    (tested,) = run.inputs.dataset_inputs
    assert (tested.dataset.name, json.loads(tested.dataset.profile)["images"]) == ("test images", 30)
    assert [column["name"] for column in json.loads(tested.dataset.schema)["mlflow_colspec"]] == [
        "image_id",
        "label",
        "patient_id",
    ]
    assert run.info.run_name.startswith("restored-")
    assert {"mlflow.user", "mlflow.source.name", "mlflow.note.content"} <= run.data.tags.keys()


def test_the_same_weights_never_make_a_second_version() -> None:
    first = register()
    receipt = Path("reports/registration.json").read_bytes()
    assert register() == first
    assert Path("reports/registration.json").read_bytes() == receipt
    assert _versions() == 1


@pytest.mark.parametrize("change", [{"temperature": 2.0}, {"bias": [0.0, 0.0, 0.0]}, {"refer_below": None}])
def test_another_temperature_bias_or_referral_is_another_version(change: dict[str, Any]) -> None:
    register()
    path = Path("reports/evaluation/calibration.json")
    write_json(path, read_json(path) | change)
    assert register().number == "2"


def test_another_limit_of_the_size_of_an_image_is_another_version() -> None:
    """It decides which images are answered and changes no weight, so the training ends with the same ones."""
    register()
    spec = read_spec(Path("models/trained"))
    write_spec(Path("models/trained"), replace(spec, preprocessing=replace(spec.preprocessing, max_pixels=10**8)))
    version = register()
    assert version.number == "2"
    assert read_spec(versions.fetch_bundle(version)).preprocessing.max_pixels == 10**8


def test_metrics_that_a_kill_kept_from_a_new_version_are_recorded_by_the_next_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cxr.registry.registration.log_test_metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            register()
    model = tracking_store.client().get_logged_model(register().model_id)
    assert {"test/accuracy", "test/macro_f1"} <= {metric.key for metric in model.metrics or []}


def test_a_new_evaluation_of_the_same_weights_keeps_the_old_one() -> None:
    first = register()
    metrics = read_json(Path("reports/metrics.json"))
    write_json(Path("reports/metrics.json"), metrics | {"macro_auroc": 0.9})
    second = register()
    assert second.number == first.number
    assert second.tags["evaluation_artifacts"] != first.tags["evaluation_artifacts"]
    assert second.tags["macro_auroc"] == "0.9000"
    assert evaluation_of(first).metric("macro_auroc") == 0.99


def test_an_older_model_registered_again_is_the_challenger_again() -> None:
    register()
    write_model(seed=2)
    register()
    write_model(seed=1)
    register()
    assert versions.get_version("challenger").number == "1"


def test_the_trainings_own_run_and_its_lineage_are_used_where_the_store_has_it() -> None:
    with training_run(name="n", tags={"git_commit": "of the training", "code_sha256": "c" * 64}) as run:
        pass
    training = read_json(Path("models/trained/training.json"))
    write_json(Path("models/trained/training.json"), training | {"run_id": run.run_id})
    version = register()
    assert version.run_id == run.run_id
    assert (version.tags["git_commit"], version.tags["code_sha256"]) == ("of the training", "c" * 64)


def test_a_training_from_a_cache_gets_a_run_of_its_own_only_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    version = register()
    run = tracking_store.client().get_run(version.run_id)
    assert run.data.params == {"train.epochs": "2"}
    assert [m.value for m in tracking_store.client().get_metric_history(version.run_id, "training/loss")] == [0.5, 0.4]
    assert runs.run_tags(version.run_id) == {"restored_from": f"{1:032x}"}
    assert any(f"{1:032x} is not in this store" in message for message in caplog.messages)
    write_json(
        Path("reports/evaluation/calibration.json"), {"temperature": 2.0, "bias": [0.0] * 3, "refer_below": None}
    )
    assert register().run_id == version.run_id


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("reports/metrics.json", "run `./run dvc repro evaluate`"),
        ("data/split/split.json", "run `./run dvc repro split`"),
        ("models/trained/training.json", "run `./run dvc repro train`"),
    ],
)
def test_a_missing_input_is_named(path: str, advice: str) -> None:
    Path(path).unlink()
    with pytest.raises(DataError, match=f"{path} is missing; {advice}"):
        register()


@fault("register", "metrics are of another test set", "nothing is registered", "both digests, run evaluate")
def test_metrics_of_another_test_set_are_rejected() -> None:
    metrics = read_json(Path("reports/metrics.json"))
    write_json(Path("reports/metrics.json"), metrics | {"test_set_sha256": "f" * 64})
    with pytest.raises(DataError, match="dvc repro evaluate"):
        register()


@fault("register", "the weights were changed after training", "nothing is registered", "both digests, run train")
def test_weights_changed_after_training_are_rejected() -> None:
    weights = Path("models/trained/model.safetensors")
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(WeightsError, match="changed"):
        register()
    weights.unlink()
    with pytest.raises(DataError, match="is missing"):
        register()


def test_a_password_in_the_stores_address_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(tracking_store.STORE_VARIABLE, f"sqlite:///{tmp_path}/mlruns/mlflow.db?password=s3cr3t")
    monkeypatch.setattr(runs, "tracking_uri", lambda: f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    register()
    assert "s3cr3t" not in Path("reports/registration.json").read_text()
