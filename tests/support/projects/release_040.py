"""A tracking store as release 0.4.0 wrote it, from small data: its names of tags, files, fields and experiments."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cxr.common.files import sha256_of, write_json
from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.registry import tracking_store
from cxr.registry.champion.promotion import LINEAGE_TAGS
from tests.support.projects.registry_project import CLASSES, N_TEST, metrics, spec, write_predictions

MODEL = "chest-xray-pneumonia"
IMAGE_SIZE_PX = 32
_BIAS = (0.0, 0.25, -0.25)


def write_store(scratch: Path) -> None:
    """Register versions 1 and 2; 2 is champion, 1 was before it."""
    client = tracking_store.client()
    artifacts = tracking_store.mlruns_folder() / "artifacts"
    experiment = client.create_experiment(MODEL, artifact_location=artifacts.as_uri())
    client.create_registered_model(MODEL)
    for number in (1, 2):
        _write_version(experiment, number, scratch / str(number))
    previous = ""
    for number in (1, 2):
        before = str(number - 1) if number > 1 else ""
        previous = write_entry(number, before=before, after=str(number), previous=previous)
        client.set_registered_model_tag(MODEL, f"ledger.{number:06d}", claim_line(number))
        client.delete_experiment(client.get_experiment_by_name(f"{MODEL} ledger {number:06d}").experiment_id)
    client.set_registered_model_alias(MODEL, "challenger", "2")
    client.set_registered_model_alias(MODEL, "champion", "2")


def write_entry(number: int, *, before: str, after: str, previous: str) -> str:
    """Claim an entry of the ledger as 0.4.0 did; return the digest of its line."""
    fields = {
        "number": number,
        "time": f"2026-11-0{number}T00:00:00+00:00",
        "kind": "promote",
        "before": before,
        "after": after,
        "who": "ann",
        "why": "passed the gate",
        "previous": previous,
        "overruled": "",
    }
    line = json.dumps(fields, sort_keys=True)
    tracking_store.client().create_experiment(f"{MODEL} ledger {number:06d}", tags={"entry": line})
    return hashlib.sha256(line.encode()).hexdigest()


def claim_line(number: int) -> str:
    """Return the line of a claimed entry."""
    found = tracking_store.client().get_experiment_by_name(f"{MODEL} ledger {number:06d}")
    assert found is not None
    return str(found.tags["entry"])


def write_score_part(path: Path, *, spec_sha256: str, rows: list[dict[str, Any]]) -> None:
    """Write a part of scored images; columns that a row lacks are null."""
    stamp, text = pa.timestamp("us", tz="UTC"), pa.string()
    names = ("location", "path", "sha256", "changed", "model_version", "predicted_class", "warning", "error")
    types: dict[str, pa.DataType] = dict.fromkeys(names, text) | {"size_bytes": pa.int64(), "scored_at": stamp}
    types |= {"confidence": pa.float64(), "refer": pa.bool_()} | {f"p_{name}": pa.float64() for name in CLASSES}
    fields = pa.schema(types.items(), metadata={"spec_sha256": spec_sha256, "schema_version": "1"})
    pq.write_table(pa.Table.from_pylist(rows, fields), path, compression="zstd")


def _write_version(experiment: str, number: int, folder: Path) -> None:
    client = tracking_store.client()
    run_id = client.create_run(experiment).info.run_id
    logged = client.create_logged_model(experiment, name="classifier", source_run_id=run_id)
    bundle = _write_bundle(folder / "bundle", seed=number)
    client.log_model_artifacts(logged.model_id, str(_as_model(bundle, folder / "model")))
    client.finalize_logged_model(logged.model_id, "READY")
    tags = {
        **dict.fromkeys(LINEAGE_TAGS, "x"),
        **{"synthetic": "true", "temperature": "1.5", "bias": repr(_BIAS), "refer_below": "0.625"},
        **{"weights_sha256": sha256_of(bundle / "model.safetensors"), "spec_sha256": sha256_of(bundle / "model.json")},
        **_write_evidence(run_id, folder / "evidence"),
        **_write_training_films(run_id, folder / "training_films.csv"),
    }
    with tracking_store.named_to_mlflow():
        client.create_model_version(
            MODEL, f"models:/{logged.model_id}", run_id=run_id, tags=tags, model_id=logged.model_id
        )


def _write_bundle(folder: Path, *, seed: int) -> Path:
    torch.manual_seed(seed)
    written = write_bundle(
        folder, build("small_cnn", 3).state_dict(), spec(backbone="small_cnn", image_size_px=IMAGE_SIZE_PX)
    )
    calibrated = {"views": [1.0], "temperature": 1.5, "bias": list(_BIAS), "refer_below": 0.625}
    write_json(folder / "model.json", asdict(written) | calibrated)
    return folder


def _as_model(bundle: Path, folder: Path) -> Path:
    """Lay the bundle out below a logged model's artifacts."""
    shutil.copytree(bundle, folder / "artifacts" / "bundle")
    return folder


def _write_evidence(run_id: str, folder: Path) -> dict[str, str]:
    rows = [(f"image{n}", CLASSES[n % 3], CLASSES[n % 3]) for n in range(N_TEST)]
    test_set = hashlib.sha256("\n".join(sorted(f"{name},{label}" for name, label, _ in rows)).encode()).hexdigest()
    folder.mkdir()
    write_json(folder / "metrics.json", metrics(1.0, test_set_sha256=test_set))
    write_predictions(folder / "predictions.csv", rows)
    digest = hashlib.sha256()
    for name in ("metrics.json", "predictions.csv"):
        digest.update(name.encode() + (folder / name).read_bytes())
    path = f"evidence/{digest.hexdigest()[:12]}"
    for file in sorted(folder.iterdir()):
        tracking_store.client().log_artifact(run_id, str(file), path)
    tags: dict[str, Any] = {"evidence": f"{run_id}/{path}", "evidence_sha256": digest.hexdigest()}
    return tags | {f"evidence.{'e' * 12}": tags["evidence"], f"evidence_sha256.{'e' * 12}": tags["evidence_sha256"]}


def _write_training_films(run_id: str, file: Path) -> dict[str, str]:
    file.write_text("image_id,patient_id\nother,patient-other\ntrained,patient-trained\n")
    digest = sha256_of(file)
    path = f"training_films/{digest[:12]}"
    tracking_store.client().log_artifact(run_id, str(file), path)
    return {"training_films": f"{run_id}/{path}/{file.name}", "training_films_sha256": digest}
