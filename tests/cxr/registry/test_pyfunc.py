"""The model as MLflow serves it: no pickle, the bundle's own preprocessing, rejected when changed."""

import json
import os
import pickletools
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from cxr.common.errors import ImageError, WeightsError
from cxr.imaging.decode import image_from_bytes
from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.models.forward import classify
from cxr.registry import pyfunc, runs, tracking_store, versions
from cxr.registry.registration import register_version
from tests.support.projects.registry_project import artifacts, enter_project, spec
from tests.support.services.servers import free_ports, running

PICKLE_SUFFIXES = {".pkl", ".pickle", ".pth", ".pt", ".pt2", ".joblib", ".bin"}


@pytest.fixture
def version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> versions.Version:
    """Register a real network with random weights."""
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    written = write_bundle(tmp_path / "made", build("resnet50", 3).state_dict(), spec(image_size_px=32))
    run_id = runs.start_run(run_id=None, name="n", tags={})
    made, _ = register_version(tmp_path / "made", written, run_id=run_id, lineage={}, evaluation={})
    return made


def _is_pickle(data: bytes) -> bool:
    try:
        return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(data))
    except (ValueError, IndexError, UnicodeDecodeError):
        return False


def test_the_served_model_answers_as_the_bundle_and_holds_no_pickle(version: versions.Version) -> None:
    import mlflow

    from cxr.models.bundle import read_bundle

    stored = artifacts()
    assert {"model.safetensors", "model.json", "pyfunc.py", "MLmodel"} <= {path.name for path in stored}
    assert not [path for path in stored if path.suffix in PICKLE_SUFFIXES or _is_pickle(path.read_bytes()[:4096])]

    with tracking_store.named_to_mlflow():
        served = mlflow.pyfunc.load_model(f"models:/{versions.MODEL}/{version.number}")
    images = pyfunc.input_example()
    table = served.predict(images)
    model, bundle_spec = read_bundle(versions.fetch_bundle(version))
    pixels = [image_from_bytes(image, bundle_spec.preprocessing, name="image") for image in images["image"]]
    expected = classify(model, bundle_spec, np.stack(pixels))
    assert list(table.columns) == ["predicted_class", "p_normal", "p_viral", "p_bacterial", "refer", "warning"]
    np.testing.assert_allclose(table.iloc[:, 1:4].to_numpy(np.float64), expected, rtol=1e-5)
    assert table["predicted_class"].tolist() == [bundle_spec.classes[best] for best in expected.argmax(axis=1)]

    assert served.predict(images.iloc[:0]).shape == (0, 6)
    images.loc[1, "image"] = b"no image"
    with pytest.raises(ImageError, match="image in row 1 is not an image"):
        served.predict(images)


def test_a_bundle_is_classified_in_batches_and_a_bad_image_is_named_by_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.pyfunc.model import PythonModelContext

    write_bundle(tmp_path, build("resnet50", 3).state_dict(), spec(image_size_px=32))
    context = PythonModelContext({"bundle": str(tmp_path)}, None)
    classifier = pyfunc.ServedModel()
    classifier.load_context(context)
    images = pyfunc.input_example()
    whole = classifier.predict(context, images)
    monkeypatch.setattr("cxr.inference.pipeline.BATCH_SIZE", 1)
    np.testing.assert_allclose(classifier.predict(context, images).iloc[:, 1:4], whole.iloc[:, 1:4], rtol=1e-4)
    images.loc[1, "image"] = b""
    with pytest.raises(ImageError, match="image in row 1 is empty"):
        classifier.predict(context, images)


def test_changed_weights_are_not_served(version: versions.Version) -> None:
    import mlflow

    weights = next(path for path in artifacts() if path.name == "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with tracking_store.named_to_mlflow(), pytest.raises(WeightsError, match="changed"):
        mlflow.pyfunc.load_model(f"models:/{versions.MODEL}/{version.number}")


def test_mlflows_own_commands_predict_with_and_serve_the_version(version: versions.Version, tmp_path: Path) -> None:
    """With the request that the version's page shows."""
    import mlflow

    with tracking_store.named_to_mlflow():
        expected = mlflow.pyfunc.load_model(f"models:/{versions.MODEL}/{version.number}").predict(
            pyfunc.input_example()
        )
    (request,) = [path for path in artifacts() if path.name == "serving_input_example.json"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking_store.tracking_uri()}
    model = ["-m", f"models:/{versions.MODEL}/{version.number}", "--env-manager", "local"]

    def check(answer: str) -> None:
        table = pd.DataFrame(json.loads(answer)["predictions"])
        assert list(table.columns) == list(expected.columns)
        np.testing.assert_allclose(table.iloc[:, 1:4].to_numpy(float), expected.iloc[:, 1:4].to_numpy(float), rtol=1e-5)

    written = tmp_path / "answer.json"
    command = [sys.executable, "-m", "mlflow", "models"]
    subprocess.run(
        [*command, "predict", *model, "-i", str(request), "-o", str(written)],
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    check(written.read_text("utf-8"))

    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    with running(
        [*command, "serve", *model, "--port", str(port)],
        environment,
        log=tmp_path / "serve.log",
        answers=lambda: httpx.get(f"{address}/health", timeout=60).status_code == 200,
    ):
        answer = httpx.post(
            f"{address}/invocations",
            content=request.read_bytes(),
            headers={"Content-Type": "application/json"},
            timeout=300,
        )
    assert answer.status_code == 200, answer.text
    check(answer.text)
