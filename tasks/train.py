"""Train the network on the train split, choosing the epoch on the validation split.

Reads   data/images, data/split, and the starting weights that train.weights names
Writes  models/trained: model.safetensors, model.json, curves.csv, training.json
Tracks  an MLflow run with parameters, curves and system metrics

A checkpoint is written after every epoch; a training that was killed goes on from it when the same
command is run again, and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.command import run_step

if TYPE_CHECKING:
    import pandas as pd

    from cxr.packed import PackedFilms
    from cxr.params import Paths, TrainParams
    from cxr.tracking import TrainingRun
    from cxr.training import Epoch, Trained, TrainingData

log = logging.getLogger("cxr.train")


def train(params: TrainParams, paths: Paths) -> None:
    """Train, or go on with a training that was cut off."""
    from cxr.files import read_json
    from cxr.lineage import lineage
    from cxr.manifest import read_splits
    from cxr.packed import read_packed
    from cxr.tracking import training_run
    from cxr.training import fit

    packed, table, split = read_packed(paths.images), read_splits(paths.split), read_json(paths.split / "split.json")
    data = _training_data(packed, table, tuple(split["classes"]))
    checkpoints = paths.checkpoints / _fingerprint(params, paths)
    name = f"{params.backbone}-{split['protocol']}-{split['task']}"
    tags = lineage(Path()) | {"protocol": split["protocol"], "synthetic": str(split["synthetic"]).lower()}
    with training_run(name=name, run_id=_remembered_run(checkpoints), tags=tags) as run:
        _remember_run(checkpoints, run.run_id)
        run.log_params({"train": params.model_dump(), "split": split, "preprocess": asdict(packed.preprocessing)})
        manifest = paths.raw / "manifest.parquet"
        run.log_dataset(name=split["protocol"], source=manifest, sha256=split["manifest_sha256"], context="training")
        with _ProgressLine(run, films=len(data.train_rows), epochs=params.epochs) as listener:
            trained = fit(data, params, checkpoints=checkpoints, listener=listener)
        _write_model(trained, params, packed, split, run.run_id, paths.model)
        run.log_files([paths.model / "curves.csv", paths.model / "training.json"])
    shutil.rmtree(checkpoints)


def _training_data(packed: PackedFilms, table: pd.DataFrame, classes: tuple[str, ...]) -> TrainingData:
    import numpy as np

    from cxr.training import TrainingData

    used = table[table["split"].isin(("train", "validation"))]
    labels = np.full(len(packed.image_ids), -1, np.int64)
    labels[packed.rows(used["image_id"].tolist())] = [classes.index(label) for label in used["label"]]

    def rows_of(split: str) -> Any:
        return packed.rows(table.loc[table["split"] == split, "image_id"].tolist())

    return TrainingData(packed.images, labels, rows_of("train"), rows_of("validation"), classes)


def _fingerprint(params: TrainParams, paths: Paths) -> str:
    """Return a name for this very training: a checkpoint of other data or another recipe must not be continued."""
    from cxr.files import sha256_of

    files = [paths.images / name for name in ("images.npy", "index.csv", "preprocessing.json")]
    files += [paths.split / "splits.csv"]
    weights = Path(params.weights)
    if weights.is_file():
        files.append(weights)
    parts = [params.model_dump_json(), *(sha256_of(file) for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _remembered_run(checkpoints: Path) -> str | None:
    path = checkpoints / "run_id"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _remember_run(checkpoints: Path, run_id: str) -> None:
    from cxr.files import whole_file

    with whole_file(checkpoints / "run_id") as partial:
        partial.write_text(run_id, encoding="utf-8")


class _ProgressLine:
    """Films of the epoch as a bar, each epoch as a line and as metrics of the run."""

    def __init__(self, run: TrainingRun, *, films: int, epochs: int) -> None:
        from tqdm import tqdm

        self._run, self._epochs = run, epochs
        self._bar = tqdm(total=films, unit=" films", leave=False, disable=None)

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def on_batch(self, films: int) -> None:
        """Move the bar."""
        self._bar.update(films)

    def on_epoch(self, epoch: Epoch) -> None:
        """Log the line, record the metrics and start the bar anew."""
        left_min = (self._epochs - epoch.epoch) * epoch.seconds / 60
        log.info(
            "epoch %2d/%d  loss %.3f  validation loss %.3f  accuracy %.3f  macro-F1 %.3f  %.1f images/s  %.0f min left",
            epoch.epoch,
            self._epochs,
            epoch.train_loss,
            epoch.validation_loss,
            epoch.validation_accuracy,
            epoch.validation_macro_f1,
            epoch.images_per_second,
            left_min,
        )
        self._run.log_epoch({key: value for key, value in asdict(epoch).items() if key != "epoch"}, step=epoch.epoch)
        self._bar.reset()


def _write_model(
    trained: Trained, params: TrainParams, packed: PackedFilms, split: dict[str, Any], run_id: str, folder: Path
) -> None:
    import pandas as pd

    from cxr.bundle import ModelSpec, write_bundle
    from cxr.files import whole_folder, write_json
    from cxr.zoo import IMAGENET_MEAN, IMAGENET_STD

    spec = ModelSpec(
        backbone=params.backbone,
        classes=tuple(split["classes"]),
        preprocessing=packed.preprocessing,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        temperature=1.0,
        synthetic=split["synthetic"],
    )
    with whole_folder(folder) as partial:
        write_bundle(partial, trained.state, spec)
        curves = pd.DataFrame([asdict(epoch) for epoch in trained.history])
        curves.to_csv(partial / "curves.csv", index=False, lineterminator="\n")
        write_json(partial / "training.json", _summary(trained, params, run_id))
    best = trained.history[trained.best_epoch - 1]
    log.info("train: kept epoch %d, validation macro-F1 %.3f", trained.best_epoch, best.validation_macro_f1)


def _summary(trained: Trained, params: TrainParams, run_id: str) -> dict[str, Any]:
    seconds = sum(epoch.seconds for epoch in trained.history)
    return {
        "run_id": run_id,
        "seconds": seconds,
        "images_per_second": sum(epoch.images_per_second for epoch in trained.history) / len(trained.history),
        "device": trained.device,
        "precision": trained.precision,
        "hardware": _hardware(trained.device),
        "epochs_run": len(trained.history),
        "best_epoch": trained.best_epoch,
        "best_validation_macro_f1": trained.history[trained.best_epoch - 1].validation_macro_f1,
        "weights": asdict(trained.weights),
        "params": json.loads(params.model_dump_json()),
    }


def _hardware(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} cores, {platform.machine()}"


if __name__ == "__main__":
    run_step(train)
