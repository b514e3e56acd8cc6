"""Train the network on the train split; choose the epoch on the validation split.

Reads   data/images, data/split, and the starting weights that train.weights names
Writes  models/trained: model.safetensors, model.json, curves.csv, training.json, validation.csv
Tracks  an MLflow run with parameters, curves and system metrics

Between epochs checkpoints are written, as often as takes a twentieth of the time. A training that was killed resumes
from the last one when the same command is run again, and ends with the same weights.

CXR_TORCHRUN="--nproc-per-node 2", or any other options of torchrun, starts the training in that many processes, each
with its own GPU or CPU cores, on one or more machines.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from cxr.common.cli import answer_help, run_step, step_parser

if __name__ == "__main__":
    answer_help(step_parser(sys.modules[__name__]))

import numpy as np
import pandas as pd
from tqdm import tqdm

from cxr.common.files import atomic_file, atomic_folder, sha256_of, write_json
from cxr.common.locks import step_lock
from cxr.common.on_disk import take
from cxr.common.params import Paths, TrainParams
from cxr.dataset.image_array import ImageArray, read_image_array
from cxr.dataset.manifest import SplitRecord, read_split
from cxr.dataset.training_images import training_images, training_rows
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.bundle import ModelSpec, read_bundle, write_bundle
from cxr.models.factory import merge_states
from cxr.models.forward import BATCH_SIZE, choose_device, predict_logits, softmax_with_temperature
from cxr.models.populations import Population
from cxr.registry.lineage import lineage
from cxr.registry.run_metadata import group_of_folds, keep_below, log_images, shown_tags
from cxr.registry.training_run import TrainingRun, training_run
from cxr.training.data import TrainingData
from cxr.training.distributed import ProcessGroup, is_started_by_torchrun, join_process_group
from cxr.training.launcher import run_processes
from cxr.training.loop import fit
from cxr.training.results import Epoch, Trained, summarize_training
from cxr.training.svm import train_svm

log = logging.getLogger("cxr.train")

_CSV: dict[str, Any] = {"index": False, "lineterminator": "\n"}


def train(params: TrainParams, paths: Paths) -> None:
    """Train, or resume an interrupted training, in several processes if CXR_TORCHRUN is set."""
    options = os.environ.get("CXR_TORCHRUN")
    if options and not is_started_by_torchrun():
        run_processes("tasks.train", sys.argv[1:], options)
        return
    with join_process_group() as group:
        if group.is_main_process:
            with step_lock(paths.checkpoints, "train"):
                _train(params, paths, group)
        elif params.head != "svm":  # the fit of a support vector machine is not shared
            _train_with_main_process(params, paths, group)


def _train(params: TrainParams, paths: Paths, group: ProcessGroup) -> None:
    packed, divided = read_image_array(paths.images), read_split(paths.split)
    split = divided.record
    params = params.with_populations_of(split["classes"])
    images = training_images(paths.raw, divided, params.populations)
    data = _training_data(packed, images, tuple(split["classes"]), params)
    validation = images[images["split"] == "validation"].drop(columns=["split", "population"])
    checkpoints = paths.checkpoints / _fingerprint(params, paths)
    origin = lineage(Path()) | {"protocol": split["protocol"], "synthetic": str(split["synthetic"]).lower()}
    tags = origin | shown_tags(description=_description(params, split, images), commit=origin["git_commit"])
    with training_run(name=_name(params, split), run_id=_recorded_run(checkpoints), tags=tags) as run:
        _record_run(checkpoints, run.run_id)
        _describe_run(run, params, packed, split, images, manifest=paths.raw / "manifest.parquet", tags=tags)
        members = _fit_members(data, params, checkpoints, run, group)
        with atomic_folder(paths.model) as folder:
            _write_bundle(members, params, packed, split, folder)
            _validation_table(folder, packed, validation).to_csv(folder / "validation.csv", **_CSV)
            _curves(members).to_csv(folder / "curves.csv", **_CSV)
            summary = summarize_training(members, params.model_dump(mode="json"), processes=group.size)
            write_json(folder / "training.json", {"run_id": run.run_id, **summary})
        if len(members) > 1:  # each member's own epochs are in the run below
            for row in _curves(members).to_dict("records"):
                run.log_epoch({str(key): value for key, value in row.items() if key != "epoch"}, step=int(row["epoch"]))
        run.log_files([paths.model / name for name in ("curves.csv", "training.json", "validation.csv")])
    shutil.rmtree(checkpoints)


def _name(params: TrainParams, split: SplitRecord) -> str:
    """Return a name that tells runs apart in a list: network, protocol, seed, and when it began."""
    parts = [params.backbone, split["protocol"], split["task"], f"seed{params.seed}", f"{datetime.now():%m%d-%H%M%S}"]
    return "-".join(parts)


def _description(params: TrainParams, split: SplitRecord, images: pd.DataFrame) -> str:
    counts = images["split"].value_counts()
    network = params.backbone if params.members == 1 else f"{params.members} x {params.backbone}"
    return (
        f"**{network}**, head {params.head}, from weights `{Path(params.weights).name}`. Protocol "
        f"{split['protocol']}, task {split['task']}: {counts.get('train', 0)} training and "
        f"{counts.get('validation', 0)} validation images, at most {params.epochs} epochs, seed {params.seed}."
    )


def _describe_run(
    run: TrainingRun,
    params: TrainParams,
    packed: ImageArray,
    split: SplitRecord,
    images: pd.DataFrame,
    *,
    manifest: Path,
    tags: dict[str, str],
) -> None:
    """Record parameters and images, a run for each member, and the run of the cross-validation where this is a fold."""
    config = {"train": params.model_dump(), "split": split, "preprocess": asdict(packed.preprocessing)}
    run.log_params(config)
    for name, context in (("train", "training"), ("validation", "validation")):
        used = images[images["split"] == name].drop(columns="split")
        log_images(run.run_id, used, context=context, source=manifest, sha256=split["manifest_sha256"])
    if params.members > 1:
        seeds = [params.seed + member for member in range(params.members)]
        named = [(f"member {number + 1} seed{seed}", {"train.seed": seed}) for number, seed in enumerate(seeds)]
        run.open_members(named, tags)
    if split["protocol"] == "cv":
        name = f"{params.backbone}-cv-{split['task']}-seed{params.seed}"
        keep_below(run.run_id, group_of_folds(config), name=name, description="The folds of one cross-validation.")


def _train_with_main_process(params: TrainParams, paths: Paths, group: ProcessGroup) -> None:
    """Compute this process's part of the training; the main process records it."""
    divided = read_split(paths.split)
    classes = tuple(divided.record["classes"])
    params = params.with_populations_of(classes)
    images = training_images(paths.raw, divided, params.populations)
    data = _training_data(read_image_array(paths.images), images, classes, params)
    _fit_members(data, params, paths.checkpoints / _fingerprint(params, paths), None, group)


def _training_data(
    packed: ImageArray, images: pd.DataFrame, classes: tuple[str, ...], params: TrainParams
) -> TrainingData:
    rows = training_rows(packed, images, classes)
    populations = _populations(params)
    return TrainingData(packed.images, rows.labels, rows.train, rows.validation, classes, rows.sources, populations)


def _populations(params: TrainParams) -> tuple[Population, ...]:
    return tuple(Population(each.name, each.label, each.weight) for each in params.populations)


def _fit_members(
    data: TrainingData, params: TrainParams, checkpoints: Path, run: TrainingRun | None, group: ProcessGroup
) -> list[Trained]:
    """Train the network, or the members of an ensemble, which differ only by their seed."""
    members = []
    for member in range(params.members):
        config = params.model_copy(update={"seed": params.seed + member})
        shown = run.member(member) if run else None
        with _Progress(shown, images=len(data.train_rows), epochs=params.epochs) as progress:
            if params.head == "svm":
                members.append(train_svm(data, config, listener=progress))
            else:
                folder = checkpoints / f"member{member + 1}"
                members.append(fit(data, config, checkpoints=folder, listener=progress, group=group))
    return members


def _fingerprint(params: TrainParams, paths: Paths) -> str:
    """Return a name for this training: a checkpoint of other data or another config must not be resumed."""
    files = [paths.images / name for name in ("images.npy", "index.csv", "preprocessing.json")]
    files += [paths.split / "splits.csv", paths.raw / "manifest.parquet"]
    weights = Path(params.weights)
    if weights.is_file():
        files.append(weights)
    parts = [params.model_dump_json(), *(sha256_of(file) for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _recorded_run(checkpoints: Path) -> str | None:
    path = checkpoints / "run_id"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _record_run(checkpoints: Path, run_id: str) -> None:
    with atomic_file(checkpoints / "run_id") as partial:
        partial.write_text(run_id, encoding="utf-8")


class _Progress:
    """Shows a progress bar, logs each epoch and records its metrics; silent without a run."""

    def __init__(self, run: TrainingRun | None, *, images: int, epochs: int) -> None:
        self._run, self._epochs = run, epochs
        self._bar = tqdm(total=images, unit=" images", leave=False, disable=None if run else True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def on_batch(self, images: int) -> None:
        """Advance the bar."""
        self._bar.update(images)

    def on_epoch(self, epoch: Epoch) -> None:
        """Log the epoch, record its metrics and restart the bar."""
        if self._run is None:
            return
        log.info(
            "epoch %2d/%d  loss %.3f  validation loss %.3f  accuracy %.3f  macro-F1 %.3f  %.1f images/s  %.0f min left",
            epoch.epoch,
            self._epochs,
            epoch.train_loss,
            epoch.validation_loss,
            epoch.validation_accuracy,
            epoch.validation_macro_f1,
            epoch.images_per_second,
            (self._epochs - epoch.epoch) * epoch.seconds / 60,
        )
        metrics = {key: value for key, value in asdict(epoch).items() if key != "epoch"}
        self._run.log_epoch(metrics, step=epoch.epoch)
        self._bar.reset()


def _write_bundle(
    members: list[Trained], params: TrainParams, packed: ImageArray, split: SplitRecord, folder: Path
) -> None:
    classes = tuple(split["classes"])
    spec = ModelSpec(
        backbone=params.backbone,
        head=params.head,
        members=params.members,
        classes=classes,
        preprocessing=packed.preprocessing,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        temperature=1.0,
        bias=(0.0,) * len(classes),
        synthetic=split["synthetic"],
        populations=_populations(params),
    )
    write_bundle(folder, merge_states([member.state for member in members]), spec)
    log.info("train: kept epoch %s", " and ".join(str(member.best_epoch) for member in members))


def _curves(members: list[Trained]) -> pd.DataFrame:
    """Return a row per epoch with its values, or their means over the members that trained so long."""
    epochs = pd.DataFrame([asdict(epoch) for member in members for epoch in member.history])
    return epochs.groupby("epoch", as_index=False).mean()


def _validation_table(folder: Path, packed: ImageArray, images: pd.DataFrame) -> pd.DataFrame:
    """Return `images` with the uncalibrated probabilities of the model in `folder`; one batch is in memory."""
    model, spec = read_bundle(folder)
    model.to(choose_device("auto"))
    rows = packed.rows(images["image_id"].tolist())
    parts = [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
    of_parts = [predict_logits(model, take(packed.images, part), mean=spec.mean, std=spec.std) for part in parts]
    logits = np.concatenate(of_parts)
    columns = zip(spec.classes, softmax_with_temperature(logits, 1.0).T, strict=True)
    return images.assign(**{f"p_{name}": values for name, values in columns})


if __name__ == "__main__":
    run_step(train, shared=True)
