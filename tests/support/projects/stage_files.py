"""Write the records that stages leave for later ones, complete and agreeing with each other, for tests of one stage."""

from pathlib import Path
from typing import Any

import pandas as pd

from cxr.common.files import sha256_of, write_json
from cxr.dataset.manifest import sha256_of_test_set

CLASSES = ("normal", "viral", "bacterial")


def write_split_files(folder: Path, table: pd.DataFrame, *, manifest: Path | None = None, **changed: Any) -> None:
    """Write splits.csv from `table` (image_id, split, label; fold and patient_id where known) and split.json."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = pd.DataFrame({"fold": -1, "patient_id": table["image_id"], **table})
    whole[["image_id", "split", "fold", "label", "patient_id"]].to_csv(folder / "splits.csv", index=False)
    counts = {name: dict(part["label"].value_counts()) for name, part in whole.groupby("split")}
    record = {
        "protocol": "patient",
        "task": "three_way",
        "classes": list(CLASSES),
        "blocks": 5,
        "counts": {name: {label: int(n) for label, n in found.items()} for name, found in counts.items()},
        "patients": {name: int(part["patient_id"].nunique()) for name, part in whole.groupby("split")},
        "leakage": "No patient leaks.",
        "notes": [],
        "manifest_sha256": sha256_of(manifest) if manifest else "a" * 64,
        "splits_sha256": sha256_of(folder / "splits.csv"),
        "test_set_sha256": sha256_of_test_set(whole),
        "synthetic": True,
    }
    write_json(folder / "split.json", record | changed)


def write_verdict(validation: Path, raw: Path, *, passed: bool = True) -> None:
    """Write the verdict of the gate on the manifest in `raw`."""
    digest = sha256_of(raw / "manifest.parquet")
    write_json(validation, {"passed": passed, "manifest_sha256": digest, "expectations": []})


def training_record(**changed: Any) -> dict[str, Any]:
    """Return the content of training.json."""
    weights = {"source": "none", "sha256": "", "loaded": [], "partial": [], "random": ["head"]}
    return {
        "run_id": "0" * 32,
        "seconds": 5.0,
        "images_per_second": 10.0,
        "device": "cpu",
        "precision": "fp32",
        "hardware": "2 cores",
        "epochs_run": 2,
        "best_epoch": 2,
        "best_validation_macro_f1": 0.5,
        "weights": weights,
        "params": {},
    } | changed


def write_curves(path: Path, epochs: int = 2) -> None:
    """Write the curves of a training."""
    named = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "validation_macro_f1")
    rows = {
        "epoch": list(range(1, epochs + 1)),
        **{name: [0.5 - 0.1 * epoch for epoch in range(epochs)] for name in named},
    }
    pd.DataFrame(rows).to_csv(path, index=False)
