"""The evaluation step on a tiny model and small images: contract, reproducibility, errors."""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from cxr.common.errors import DataError, DecoderError
from cxr.common.files import read_json, write_json
from cxr.common.notices import SYNTHETIC
from cxr.common.params import EvaluateParams, Paths, read_params
from cxr.dataset.image_array import read_image_array, write_index
from cxr.dataset.manifest import MANIFEST_COLUMNS, read_split, write_table
from cxr.evaluation.metrics import measure
from cxr.imaging.preprocess import Preprocessing
from cxr.models.bundle import ModelSpec, read_bundle, write_bundle
from cxr.models.factory import build
from cxr.models.forward import BATCH_SIZE, predict_logits, softmax_with_temperature
from cxr.registry.runs import start_run
from tasks import evaluate as evaluating
from tasks.evaluate import _images, _measure, evaluate
from tests.support.faults import fault
from tests.support.images.planted_decoder import CRASHES, planted
from tests.support.images.raw_folder import pack
from tests.support.project import PROJECT
from tests.support.projects.stage_files import training_record, write_curves, write_split_files

CLASSES = ("normal", "viral", "bacterial")
PREPROCESSING = Preprocessing(32, "stretch", "none", 2.0, 8, 1_000_000)
PARAMS = EvaluateParams(
    bootstrap_resamples=200, seed=3, calibration_bins=8, fit_bias=False, gradcam_per_class=2, most_confident_errors=4,
    specificities=[0.5, 0.8], refer_accuracy=0.5, attention_images=12, sanity_images=4, audit_images=24,
)  # fmt: skip
N_IMAGES = 66


def paths_in(root: Path) -> Paths:
    paths = read_params(PROJECT / "params.yaml").paths
    return paths.model_copy(update={name: root / getattr(paths, name) for name in Paths.model_fields})


def write_images(paths: Paths) -> None:
    """Write 66 images, 12 to train, 18 to validate, 36 to test; source `second` has no bacterial image."""
    generator = np.random.default_rng(0)
    labels = [CLASSES[i % 3] for i in range(N_IMAGES)]
    rows = {
        "image_id": [f"image-{i:03d}" for i in range(N_IMAGES)],
        "source": ["second" if i % 6 == 0 else "first" for i in range(N_IMAGES)],
        "label": labels,
        "patient_id": [f"patient-{i // 2}" for i in range(N_IMAGES)],
        "acquisition_number": [i % 10 for i in range(N_IMAGES)],
        "path": [f"images/{i}.png" for i in range(N_IMAGES)],
    }
    manifest = pd.DataFrame({name: rows.get(name, 0) for name in MANIFEST_COLUMNS})
    paths.raw.mkdir(parents=True)
    write_table(manifest, MANIFEST_COLUMNS, paths.raw / "manifest.parquet")
    counts = {"total": N_IMAGES, "kept": N_IMAGES, "quarantined": 0, "duplicates": 0}
    ingest = {"sources": {"first": counts}, "synthetic": True, "classes": dict.fromkeys(CLASSES, N_IMAGES // 3)}
    named = {"layouts": {}, "published": {}, "manifest_sha256": "0" * 64, "tables_sha256": {}}
    write_json(paths.raw / "ingest.json", counts | ingest | named)
    paths.images.mkdir()
    brightness = 60 * (1 + np.arange(N_IMAGES) % 3)
    images = generator.integers(0, 40, (N_IMAGES, 32, 32)) + brightness[:, None, None]
    np.save(paths.images / "images.npy", images.astype(np.uint8))
    encoded = [cv2.imencode(".png", cv2.resize(image, (60, 90)))[1].tobytes() for image in images.astype(np.uint8)]
    pack(paths.raw, dict(zip(rows["path"], encoded, strict=True)))
    write_index(paths.images, rows["image_id"], PREPROCESSING)
    write_split(paths, manifest)


def write_split(paths: Paths, manifest: pd.DataFrame) -> None:
    table = manifest[["image_id", "label", "patient_id"]].copy()
    table["split"] = ["train"] * 12 + ["validation"] * 18 + ["test"] * (N_IMAGES - 30)
    notes = ["Seven images were left out."]
    write_split_files(paths.split, table, manifest=paths.raw / "manifest.parquet", notes=notes, blocks=2)


def write_model(paths: Paths) -> None:
    """Write an untrained network whose logits are spread out, so that it has an opinion."""
    torch.manual_seed(0)
    state = build("small_cnn", 3).state_dict()
    state["fc.weight"] = state["fc.weight"] * 3
    spec = ModelSpec(
        backbone="small_cnn", head="linear", members=1, classes=CLASSES, preprocessing=PREPROCESSING,
        mean=(0.5,) * 3, std=(0.25,) * 3, temperature=1.0, bias=(0.0,) * 3, synthetic=True,
    )  # fmt: skip
    write_bundle(paths.model, state, spec)
    write_curves(paths.model / "curves.csv")
    write_json(paths.model / "training.json", training_record())


@pytest.fixture(scope="module", autouse=True)
def _store_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXR_MLRUNS", str(tmp_path_factory.mktemp("mlruns")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project whose model has been evaluated once, into the run of its training."""
    paths = paths_in(tmp_path_factory.mktemp("project"))
    write_images(paths)
    write_model(paths)
    run_id = start_run(run_id=None, name="a training", tags={})
    write_json(paths.model / "training.json", read_json(paths.model / "training.json") | {"run_id": run_id})
    evaluate(PARAMS, paths)
    return paths


def test_the_metrics_file_holds_the_keys_of_the_contract(evaluated: Paths) -> None:
    metrics = read_json(evaluated.metrics)
    assert set(metrics) >= {
        "accuracy", "macro_f1", "macro_auroc", "per_class", "confusion_matrix", "calibration", "ci95", "protocol",
        "n_test", "classes", "seed", "synthetic", "test_set_sha256", "per_source", "per_block", "per_pair", "task",
    }  # fmt: skip
    assert set(metrics["calibration"]) >= {"ece", "brier", "temperature"}
    assert set(metrics["per_class"]["viral"]) == {"precision", "recall", "specificity", "f1", "support", "auroc"}
    assert metrics["n_test"] == 36
    assert metrics["n_patients"] == 18
    assert np.sum(metrics["confusion_matrix"]) == 36
    assert "NaN" not in evaluated.metrics.read_text()


def test_the_predictions_reproduce_the_metrics(evaluated: Paths) -> None:
    table = pd.read_csv(evaluated.evaluation / "predictions.csv")
    assert table["split"].value_counts().to_dict() == {"test": 36, "validation": 18}
    test = table[table["split"] == "test"]
    probabilities = test[[f"p_{name}" for name in CLASSES]].to_numpy()
    labels = np.array([CLASSES.index(label) for label in test["label"]])
    measured = measure(labels, probabilities, CLASSES).to_json()
    metrics = read_json(evaluated.metrics)
    assert {key: metrics[key] for key in ("accuracy", "macro_f1", "macro_auroc", "per_class")} == {
        key: measured[key] for key in ("accuracy", "macro_f1", "macro_auroc", "per_class")
    }
    assert (test["predicted_class"] == np.array(CLASSES)[probabilities.argmax(axis=1)]).all()


def test_the_probabilities_are_the_models_scaled_by_the_temperature(evaluated: Paths) -> None:
    model, spec = read_bundle(evaluated.model)
    images = np.load(evaluated.images / "images.npy")[30:]
    temperature = read_json(evaluated.evaluation / "calibration.json")["temperature"]
    expected = softmax_with_temperature(predict_logits(model, images, mean=spec.mean, std=spec.std), temperature)
    table = pd.read_csv(evaluated.evaluation / "predictions.csv").query("split == 'test'").sort_values("image_id")
    np.testing.assert_allclose(table[[f"p_{name}" for name in CLASSES]], expected, atol=1e-5)


def test_the_temperature_lowers_the_loss_on_the_validation_images(evaluated: Paths) -> None:
    calibration = read_json(evaluated.evaluation / "calibration.json")
    assert calibration["n_validation"] == 18
    referral = read_json(evaluated.evaluation / "trust.json")["referral"]["found"]
    assert calibration["refer_below"] == (referral["confidence"] if referral else None)
    assert calibration["validation"]["after"]["nll"] < calibration["validation"]["before"]["nll"]


def test_each_source_is_measured_and_its_missing_class_named(evaluated: Paths) -> None:
    slices = read_json(evaluated.metrics)["per_source"]
    assert {name: part["n"] for name, part in slices.items()} == {"first": 30, "second": 6}
    assert slices["first"]["missing_classes"] == []
    assert slices["second"]["missing_classes"] == ["viral", "bacterial"]
    assert slices["second"]["ci95"] == {"accuracy": None, "macro_f1": None}  # 6 patients


def test_blocks_and_pairs_of_classes_are_measured_with_intervals(evaluated: Paths) -> None:
    metrics, page = read_json(evaluated.metrics), evaluated.report.read_text()
    assert list(metrics["per_block"]) == ["0", "1"]
    assert sum(part["n"] for part in metrics["per_block"].values()) == 36
    pair = metrics["per_pair"]["viral/bacterial"]
    assert (pair["n"], set(pair["ci95"])) == (24, {"accuracy", "macro_f1", "macro_auroc"})
    assert "By block of the order of acquisition" in page
    assert "viral/bacterial" in page
    assert "Seven images were left out." in page


def test_the_tables_for_plots_have_their_columns(evaluated: Paths) -> None:
    columns = {
        name: list(pd.read_csv(evaluated.evaluation / f"{name}.csv")) for name in ("confusion", "roc", "reliability")
    }
    assert columns == {
        "confusion": ["actual", "predicted"],
        "roc": ["class", "fpr", "tpr"],
        "reliability": ["confidence", "accuracy", "count"],
    }


def test_the_page_shows_images_of_every_class_with_their_heat(evaluated: Paths) -> None:
    html = evaluated.report.read_text()
    assert html.count("data:image/jpeg;base64,") >= 2 * len(CLASSES)
    assert all(f"Actually {name}" in html for name in CLASSES)
    assert SYNTHETIC in html


def test_trust_results_are_in_the_artifacts_and_in_the_metrics(evaluated: Paths) -> None:
    trust, headlines = read_json(evaluated.evaluation / "trust.json"), read_json(evaluated.metrics)["trust"]
    points = trust["operating_points"]["points"]
    assert [point["target_specificity"] for point in points] == PARAMS.specificities
    assert headlines["operating_points"] == points
    assert headlines["refer"] == trust["referral"]["found"]
    assert headlines["attention"]["depends_on_weights"] == trust["sanity"]["depends_on_weights"]
    assert set(trust["decisions"]) == {"pneumonia", "bacterial"}
    assert trust["sanity"]["images"] <= PARAMS.sanity_images
    assert trust["attention"]["images"] + trust["attention"]["without_heat"] == PARAMS.attention_images
    assert read_json(evaluated.evaluation / "audit.json")["images"] == PARAMS.audit_images


def test_thresholds_come_from_the_validation_images_alone(evaluated: Paths) -> None:
    table = pd.read_csv(evaluated.evaluation / "predictions.csv")
    normal = table.query("split == 'validation' and label == 'normal'")
    for point in read_json(evaluated.evaluation / "trust.json")["operating_points"]["points"]:
        below = (1 - normal["p_normal"] <= point["threshold"] + 1e-12).mean()
        assert below >= point["target_specificity"]
        assert point["specificity"]["of"] == 12


def test_the_cards_are_among_the_artifacts(evaluated: Paths) -> None:
    cards = [(evaluated.evaluation / name).read_text() for name in ("model_card.md", "data_card.md")]
    assert all("not for clinical use" in card for card in cards)
    assert f"{read_json(evaluated.metrics)['accuracy']:.3f}" in cards[0]


def test_the_run_of_the_training_gets_metrics_and_files(evaluated: Paths) -> None:
    from cxr.registry.tracking_store import client

    run_id = read_json(evaluated.model / "training.json")["run_id"]
    data = client().get_run(run_id).data
    assert data.metrics["test/accuracy"] == read_json(evaluated.metrics)["accuracy"]
    names = {Path(file.path).name for file in client().list_artifacts(run_id, "evaluation")}
    assert names >= {"metrics.json", "report.html", "predictions.csv", "confusion_matrix.svg"}


def test_one_pass_gives_predictions_and_reference_statistics(evaluated: Paths) -> None:
    model, spec = read_bundle(evaluated.model)
    passes = []
    model.register_forward_pre_hook(lambda _model, inputs: passes.append(len(inputs[0])))
    images = _images(evaluated, read_split(evaluated.split))
    measured = _measure(model, spec, read_image_array(evaluated.images), images, fit_bias=False)
    assert len(passes) == math.ceil(len(images) / BATCH_SIZE)
    assert (
        len(measured.reference.measures) == len(images) == len(measured.validation.labels) + len(measured.test.labels)
    )


def test_the_same_inputs_give_the_same_bytes(evaluated: Paths, tmp_path: Path) -> None:
    reports = {name: tmp_path / name for name in ("metrics", "report", "evaluation")}
    (tmp_path / ".evaluation.partial").mkdir()  # left behind by a killed run
    again = evaluated.model_copy(update=reports)
    evaluate(PARAMS, again)
    assert again.metrics.read_bytes() == evaluated.metrics.read_bytes()
    assert again.report.read_bytes() == evaluated.report.read_bytes()
    files = sorted(file.name for file in evaluated.evaluation.iterdir())
    assert files == sorted(file.name for file in again.evaluation.iterdir())
    assert all((again.evaluation / name).read_bytes() == (evaluated.evaluation / name).read_bytes() for name in files)


def changed_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


@pytest.fixture
def project(evaluated: Paths, tmp_path: Path) -> Paths:
    """The same project with a split, image index and reports of its own to change."""
    paths = paths_in(tmp_path)
    shutil.copytree(evaluated.split, paths.split)
    shutil.copytree(evaluated.images, paths.images)
    return paths.model_copy(update={"raw": evaluated.raw, "model": evaluated.model})


def refusal(paths: Paths) -> str:
    with pytest.raises(DataError) as error:
        evaluate(PARAMS, paths)
    assert not paths.metrics.exists()
    return str(error.value)


def test_a_missing_input_is_named_with_the_step_that_makes_it(project: Paths) -> None:
    (project.split / "split.json").unlink()
    assert refusal(project) == f"{project.split}/split.json is missing; run `./run dvc repro split`"


def test_a_split_that_differs_from_its_description_is_rejected(project: Paths) -> None:
    changed_json(project.split / "split.json", test_set_sha256="f" * 64)
    assert refusal(project).endswith("run `./run dvc repro -f -s split`")


@fault(
    "evaluate",
    "`curves.csv` of an older release",
    "refused before any output is touched",
    "the column that is missing, run train",
)
def test_curves_of_a_release_without_the_accuracy_of_training_are_refused(evaluated: Paths, project: Paths) -> None:
    model = project.split.parent / "model"
    shutil.copytree(evaluated.model, model)
    pd.read_csv(model / "curves.csv").drop(columns="train_accuracy").to_csv(model / "curves.csv", index=False)
    message = refusal(project.model_copy(update={"model": model}))
    assert message.endswith("found no train_accuracy; run `./run dvc repro -f -s train`")


@fault("evaluate", "an image that the report shows crashes its decoder",
       "nothing is written; after it is replaced it runs", "exit code 15, the image, what to do")  # fmt: skip
def test_an_image_of_the_report_that_crashes_its_decoder_is_named(
    project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = evaluating.decode_grey
    monkeypatch.setattr(
        evaluating, "decode_grey", lambda data, name, **limits: planted(decode)(data + CRASHES, name=name, **limits)
    )
    with pytest.raises(DecoderError, match=r"^images/\d+\.png crashes its decoder; export it again; .* Replace or"):
        evaluate(PARAMS, project)
    assert not project.metrics.exists()
    assert not project.evaluation.exists()
    assert not project.report.exists()


def test_a_model_of_other_classes_is_rejected(project: Paths) -> None:
    changed_json(project.split / "split.json", classes=[*CLASSES, "covid"])
    message = refusal(project)
    assert "covid" in message
    assert message.endswith("run `./run dvc repro train`")


def test_images_with_other_preprocessing_are_rejected(project: Paths) -> None:
    changed_json(project.images / "preprocessing.json", **asdict(replace(PREPROCESSING, contrast="clahe")))
    assert refusal(project).endswith("run `./run dvc repro train`")


def test_a_calibration_at_the_end_of_its_range_is_warned_about(
    evaluated: Paths, project: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    predicted = pd.read_csv(evaluated.evaluation / "predictions.csv").query("split == 'validation'")
    right = predicted.loc[predicted["label"] == predicted["predicted_class"], "image_id"]
    table = pd.read_csv(project.split / "splits.csv")
    others = (table["split"] == "validation") & ~table["image_id"].isin(right)
    table.loc[others, "split"] = "unused"  # without an error, more confidence is always better
    write_split_files(project.split, table, manifest=project.raw / "manifest.parquet")
    evaluate(PARAMS, project)
    assert f"the temperature 0.25 is at the end of its range: {len(right)} validation images may be" in caplog.text


def test_an_optional_bias_lowers_the_loss_further(evaluated: Paths, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(evaluated.model, model)
    changed_json(model / "training.json", run_id=start_run(run_id=None, name="another training", tags={}))
    reports = {name: tmp_path / name for name in ("metrics", "report", "evaluation")}
    evaluate(PARAMS.model_copy(update={"fit_bias": True}), evaluated.model_copy(update=reports | {"model": model}))
    plain, biased = (
        read_json(folder / "calibration.json") for folder in (evaluated.evaluation, tmp_path / "evaluation")
    )
    assert plain["bias"] == [0, 0, 0]
    assert any(biased["bias"])
    assert biased["validation"]["after"]["nll"] < plain["validation"]["after"]["nll"]
    assert "A bias for each class was fitted" in (tmp_path / "report").read_text()
    assert "A bias for each class was fitted" not in evaluated.report.read_text()
