"""Train the network on the train split, choosing the epoch on the validation split.

Reads   data/images, data/split, and the starting weights that train.weights names
Writes  models/trained: model.safetensors, model.json, curves.csv, training.json, validation.csv
Tracks  an MLflow run with parameters, curves and system metrics

A checkpoint is written after every epoch; a training that was killed goes on from it when the same
command is run again, and ends with the same weights.

With CXR_TORCHRUN="--nproc-per-node 2", or any other options of torchrun, it trains in that many processes, each with
its GPU or its cores, on this machine or several.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.common.cli import run_step

if TYPE_CHECKING:
    import pandas as pd

    from cxr.common.params import Paths, TrainParams
    from cxr.dataset.image_array import ImageArray
    from cxr.registry.runs import TrainingRun
    from cxr.training.data import TrainingData
    from cxr.training.distributed import ProcessGroup
    from cxr.training.loop import Epoch, Trained

log = logging.getLogger("cxr.train")

_CSV: dict[str, Any] = {"index": False, "lineterminator": "\n"}


def train(params: TrainParams, paths: Paths) -> None:
    """Train, or go on with a training that was cut off; in several processes where the environment asks for them."""
    from cxr.training.distributed import is_started_by_torchrun, joined

    options = os.environ.get("CXR_TORCHRUN")
    if options and not is_started_by_torchrun():
        from cxr.training.launcher import run_processes

        run_processes("tasks.train", sys.argv[1:], options)
        return
    with joined() as group:
        if group.is_main_process:
            _train(params, paths, group)
        else:
            _help(params, paths, group)


def _train(params: TrainParams, paths: Paths, group: ProcessGroup) -> None:
    from cxr.common.files import atomic_folder, read_json, write_json
    from cxr.dataset.image_array import read_image_array
    from cxr.registry.lineage import lineage
    from cxr.registry.runs import training_run

    packed, split, images = read_image_array(paths.images), read_json(paths.split / "split.json"), _images(paths)
    data = _training_data(packed, images, tuple(split["classes"]))
    held_out = images[images["split"] == "validation"].drop(columns="split")
    checkpoints = paths.checkpoints / _fingerprint(params, paths)
    name = f"{params.backbone}-{split['protocol']}-{split['task']}"
    tags = lineage(Path()) | {"protocol": split["protocol"], "synthetic": str(split["synthetic"]).lower()}
    with training_run(name=name, run_id=_remembered_run(checkpoints), tags=tags) as run:
        _remember_run(checkpoints, run.run_id)
        run.log_params({"train": params.model_dump(), "split": split, "preprocess": asdict(packed.preprocessing)})
        manifest = paths.raw / "manifest.parquet"
        run.log_dataset(name=split["protocol"], source=manifest, sha256=split["manifest_sha256"], context="training")
        members = _fit_members(data, params, checkpoints, run, group)
        with atomic_folder(paths.model) as folder:
            _write_bundle(members, params, packed, split, folder)
            _validation_table(folder, packed, held_out).to_csv(folder / "validation.csv", **_CSV)
            _curves(members).to_csv(folder / "curves.csv", **_CSV)
            write_json(folder / "training.json", _summary(members, params, run.run_id, group.size))
        run.log_files([paths.model / name for name in ("curves.csv", "training.json", "validation.csv")])
    shutil.rmtree(checkpoints)


def _help(params: TrainParams, paths: Paths, group: ProcessGroup) -> None:
    """Do another process's part of a training that the first one records; a machine's fit has no parts."""
    from cxr.common.files import read_json
    from cxr.dataset.image_array import read_image_array

    if params.head == "svm":
        return
    classes = tuple(read_json(paths.split / "split.json")["classes"])
    data = _training_data(read_image_array(paths.images), _images(paths), classes)
    _fit_members(data, params, paths.checkpoints / _fingerprint(params, paths), None, group)


def _images(paths: Paths) -> pd.DataFrame:
    """Return the images that train and validate: image_id, split, label, patient_id, source."""
    from cxr.dataset.manifest import read_manifest, read_splits

    table = read_splits(paths.split)
    used = table[table["split"].isin(("train", "validation"))]
    return used.merge(read_manifest(paths.raw)[["image_id", "source"]], on="image_id", validate="one_to_one")


def _training_data(packed: ImageArray, images: pd.DataFrame, classes: tuple[str, ...]) -> TrainingData:
    import numpy as np

    from cxr.training.data import TrainingData

    labels, sources = (np.full(len(packed.image_ids), -1, np.int64) for _ in range(2))
    rows = packed.rows(images["image_id"].tolist())
    labels[rows] = [classes.index(label) for label in images["label"]]
    sources[rows] = np.unique(images["source"], return_inverse=True)[1]
    train, validation = (rows[(images["split"] == name).to_numpy()] for name in ("train", "validation"))
    return TrainingData(packed.images, labels, train, validation, classes, sources)


def _fit_members(
    data: TrainingData, params: TrainParams, checkpoints: Path, run: TrainingRun | None, group: ProcessGroup
) -> list[Trained]:
    """Train the network, or each member of an ensemble, which differ by their seed alone."""
    from cxr.training.loop import fit

    members = []
    for member in range(params.members):
        recipe = params.model_copy(update={"seed": params.seed + member})
        label = f"_member{member + 1}" if params.members > 1 else ""
        with _listener(run, images=len(data.train_rows), epochs=params.epochs, label=label) as listener:
            if params.head == "svm":
                from cxr.training.svm import train_svm

                members.append(train_svm(data, recipe, listener=listener))
            else:
                folder = checkpoints / f"member{member + 1}"
                members.append(fit(data, recipe, checkpoints=folder, listener=listener, group=group))
    return members


def _fingerprint(params: TrainParams, paths: Paths) -> str:
    """Return a name for this very training: a checkpoint of other data or another recipe must not be continued."""
    from cxr.common.files import sha256_of

    files = [paths.images / name for name in ("images.npy", "index.csv", "preprocessing.json")]
    files += [paths.split / "splits.csv", paths.raw / "manifest.parquet"]
    weights = Path(params.weights)
    if weights.is_file():
        files.append(weights)
    parts = [params.model_dump_json(), *(sha256_of(file) for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _remembered_run(checkpoints: Path) -> str | None:
    path = checkpoints / "run_id"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _remember_run(checkpoints: Path, run_id: str) -> None:
    from cxr.common.files import atomic_file

    with atomic_file(checkpoints / "run_id") as partial:
        partial.write_text(run_id, encoding="utf-8")


def _listener(run: TrainingRun | None, *, images: int, epochs: int, label: str) -> _ProgressLine | _Silence:
    return _ProgressLine(run, images=images, epochs=epochs, label=label) if run else _Silence()


class _Silence:
    """A process that records nothing: the first one does."""

    def __enter__(self) -> _Silence:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""

    def on_batch(self, images: int) -> None:
        """Say nothing."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Say nothing."""


class _ProgressLine:
    """Images of the epoch as a bar, each epoch as a line and as metrics of the run."""

    def __init__(self, run: TrainingRun, *, images: int, epochs: int, label: str) -> None:
        from tqdm import tqdm

        self._run, self._epochs, self._label = run, epochs, label
        self._bar = tqdm(total=images, unit=" images", leave=False, disable=None)

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def on_batch(self, images: int) -> None:
        """Move the bar."""
        self._bar.update(images)

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
        metrics = {key + self._label: value for key, value in asdict(epoch).items() if key != "epoch"}
        self._run.log_epoch(metrics, step=epoch.epoch)
        self._bar.reset()


def _write_bundle(
    members: list[Trained], params: TrainParams, packed: ImageArray, split: dict[str, Any], folder: Path
) -> None:
    from cxr.models.bundle import ModelSpec, write_bundle
    from cxr.models.factory import IMAGENET_MEAN, IMAGENET_STD, ensemble_state

    classes, views = tuple(split["classes"]), tuple(params.views)
    spec = ModelSpec(
        backbone=params.backbone,
        head=params.head,
        members=params.members,
        views=views,
        classes=classes,
        preprocessing=packed.preprocessing,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        temperature=1.0,
        bias=(0.0,) * len(classes),
        synthetic=split["synthetic"],
    )
    single = len(members) == 1 and views == (1.0,)
    write_bundle(folder, members[0].state if single else ensemble_state([m.state for m in members]), spec)
    log.info("train: kept epoch %s", " and ".join(str(member.best_epoch) for member in members))


def _curves(members: list[Trained]) -> pd.DataFrame:
    """Return one row an epoch: its values, or their means over the members that ran it."""
    import pandas as pd

    epochs = pd.DataFrame([asdict(epoch) for member in members for epoch in member.history])
    return epochs.groupby("epoch", as_index=False).mean()


def _validation_table(folder: Path, packed: ImageArray, images: pd.DataFrame) -> pd.DataFrame:
    """Return what the finished model in `folder` says of the validation images, before any calibration."""
    from cxr.models.bundle import read_bundle
    from cxr.models.forward import choose_device, predict_logits, softmax_with_temperature

    model, spec = read_bundle(folder)
    pixels = packed.images[packed.rows(images["image_id"].tolist())]
    logits = predict_logits(model.to(choose_device("auto")), pixels, mean=spec.mean, std=spec.std)
    columns = zip(spec.classes, softmax_with_temperature(logits, 1.0).T, strict=True)
    return images.assign(**{f"p_{name}": values for name, values in columns})


def _summary(members: list[Trained], params: TrainParams, run_id: str, processes: int) -> dict[str, Any]:
    first, epochs = members[0], [epoch for member in members for epoch in member.history]
    best = [member.history[member.best_epoch - 1].validation_macro_f1 for member in members]
    return {
        "run_id": run_id,
        "seconds": sum(epoch.seconds for epoch in epochs),
        "images_per_second": sum(epoch.images_per_second for epoch in epochs) / len(epochs),
        "device": first.device,
        "precision": first.precision,
        "hardware": _hardware(first.device),
        "processes": processes,
        "epochs_run": len(epochs) // len(members),
        "best_epoch": first.best_epoch,
        "best_epochs": [member.best_epoch for member in members],
        "best_validation_macro_f1": sum(best) / len(best),
        "weights": asdict(first.weights),
        "params": json.loads(params.model_dump_json()),
    }


def _hardware(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}, {platform.machine()}"


if __name__ == "__main__":
    run_step(train)
