"""Trainings packed for a machine that has only torch: no network, none of the other libraries of this project.

FOLDER/packed.json          the trials in their order
FOLDER/images/*.npy         prepared images, one array for each preprocessing, named by their digest
FOLDER/weights/*            weights that trainings start from, named by their digest
FOLDER/trials/<trial>/      config.json and rows.npz; when done, outputs.npz and training.json
FOLDER/records/<trial>/     what the tracking store needs later (cxr.study.collected): it names images and patients, and
                            stays where it was packed
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import DataError
from cxr.common.files import atomic_file, read_json, sha256_of, write_json

if TYPE_CHECKING:
    from cxr.common.params import TrainParams
    from cxr.training.data import TrainingData
    from cxr.training.results import Listener

INDEX_FILE, CONFIG_FILE, ROWS_FILE = "packed.json", "config.json", "rows.npz"
OUTPUTS_FILE, TRAINING_FILE = "outputs.npz", "training.json"
DIGESTS_KEY = "packed"
"""In training.json: packed_digests of what was trained."""
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and JSON raise for a file that is missing, cut or damaged."""
_ROWS = ("labels", "sources", "train_rows", "validation_rows", "test_rows")


@dataclass(frozen=True)
class PackedTraining:
    """One training.

    data         images, labels and rows for training and validation
    config       with the attributes of TrainParams
    test_rows    of its test images (T,)
    digests      of the files that it was read from: packed_digests
    """

    data: TrainingData
    config: SimpleNamespace
    test_rows: NDArray[np.int64]
    digests: dict[str, str]


def packed_trials(folder: Path) -> list[Path]:
    """Return the folder of each trial, in order. Raises DataError if `folder` is none that `flows.study` packed."""
    index = folder / INDEX_FILE
    try:
        return [folder / "trials" / str(trial["name"]) for trial in read_json(index)["trials"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index} cannot be read ({error}); write it with `./run flows.study --pack FOLDER`") from error


def pack_training(
    folder: Path,
    *,
    images: Path,
    config: dict[str, Any],
    classes: Sequence[str],
    rows: dict[str, NDArray[np.int64]],
) -> None:
    """Write a training into FOLDER/trials/<trial>, and images and weights beside the trials where they are missing.

    Args:
        folder: FOLDER/trials/<trial>.
        images: images.npy, uint8 (N, H, W).
        config: the fields of TrainParams; `weights` is a file or "none".
        classes: C names.
        rows: labels and sources (N,) as in TrainingData; train_rows, validation_rows and test_rows.
    """
    root = folder.parent.parent
    weights = config["weights"]
    named = {**config, "weights": weights if weights == "none" else _kept(root / "weights", Path(weights))}
    folder.mkdir(parents=True, exist_ok=True)
    _write_arrays(folder / ROWS_FILE, {name: rows[name] for name in _ROWS})
    kept = {"images": _kept(root / "images", images), "classes": list(classes), "config": named}
    write_json(folder / CONFIG_FILE, kept)


def packed_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that decide a packed training: name -> digest; the same packing has the same."""
    return {name: sha256_of(folder / name) for name in (CONFIG_FILE, ROWS_FILE)}


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read some arrays of an .npz file; raises one of UNREADABLE."""
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # np.load leaves a damaged file open
        return {name: file[name] for name in names}


def _kept(folder: Path, file: Path) -> str:
    """Copy a file into `folder` under its digest; return that name."""
    name = f"{sha256_of(file)}{file.suffix}"
    if not (folder / name).is_file():
        with atomic_file(folder / name) as partial:
            shutil.copyfile(file, partial)
    return name


def read_training(folder: Path) -> PackedTraining:
    """Read a training from FOLDER/trials/<trial>; its images are memory-mapped.

    Raises:
        DataError: a file is missing or damaged.
    """
    from cxr.models.populations import Population
    from cxr.training.data import TrainingData

    root = folder.parent.parent
    try:
        digests = packed_digests(folder)
        kept = _read_config(folder)
        rows = read_arrays(folder / ROWS_FILE, _ROWS)
        images = np.load(root / "images" / kept["images"], mmap_mode="r", allow_pickle=False)
        config = SimpleNamespace(**kept["config"])
        config.svm = SimpleNamespace(**config.svm)
    except UNREADABLE as error:
        raise DataError(f"{folder} is not a packed training ({error}); pack it again and copy all of it") from error
    if config.weights != "none":
        config.weights = str(root / "weights" / config.weights)
    populations = tuple(Population(each["name"], each["label"], each["weight"]) for each in config.populations)
    data = TrainingData(
        images,
        rows["labels"],
        rows["train_rows"],
        rows["validation_rows"],
        tuple(kept["classes"]),
        rows["sources"],
        populations,
    )
    return PackedTraining(data, config, rows["test_rows"], digests)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        kept = read_json(folder / CONFIG_FILE)
        return {"images": kept["images"], "classes": kept["classes"], "config": dict(kept["config"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / CONFIG_FILE} cannot be read ({error}); pack it again and copy all of it") from error


def fit_and_predict(training: PackedTraining, folder: Path, listener: Listener) -> None:
    """Train every member; write the logits of validation and test images, and training.json, into `folder`.

    outputs.npz: `validation` (V, C) and `test` (T, C), float32, uncalibrated, in the order of the packed rows.
    """
    import torch

    from cxr.common.on_disk import take
    from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
    from cxr.models.factory import build, merge_populations, merge_states
    from cxr.models.forward import choose_device, predict_logits
    from cxr.training.loop import fit
    from cxr.training.results import summarize_training
    from cxr.training.svm import train_svm

    data, config = training.data, training.config
    members = []
    for member in range(config.members):
        own = cast("TrainParams", SimpleNamespace(**{**vars(config), "seed": config.seed + member}))
        if config.head == "svm":
            members.append(train_svm(data, own, listener=listener))
            continue
        with tempfile.TemporaryDirectory() as checkpoints:
            members.append(fit(data, own, checkpoints=Path(checkpoints), listener=listener))
    model = build(config.backbone, data.n_outputs, head=config.head, members=config.members)
    if data.populations:
        merge_populations(model, data.classes, data.populations)
    model.load_state_dict(merge_states([member.state for member in members]))
    model.eval().to(choose_device(config.device))
    logits = {
        name: predict_logits(model, take(data.images, rows), mean=IMAGENET_MEAN, std=IMAGENET_STD)
        for name, rows in (("validation", data.validation_rows), ("test", training.test_rows))
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_arrays(folder / OUTPUTS_FILE, logits)
    params = json.loads(json.dumps(vars(config), default=vars))
    summary = summarize_training(members, params | {"weights": members[0].weights.source}, processes=1)
    history = [[vars(epoch) for epoch in member.history] for member in members]
    packed = {DIGESTS_KEY: training.digests, "torch_version": torch.__version__, "history": history}
    write_json(folder / TRAINING_FILE, {**summary, **packed})


def is_done(folder: Path, packed: Path | None = None) -> bool:
    """Return whether `folder` has the outputs of a packed training as it is now; training.json is written last.

    A training.json without digests, of an earlier release, is not known to be of this training.

    Args:
        folder: that `fit_and_predict` writes.
        packed: the folder of the training (`folder`).
    """
    try:
        return bool(read_json(folder / TRAINING_FILE)[DIGESTS_KEY] == packed_digests(packed or folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_files(root: Path, trials: Sequence[Path]) -> None:
    """Raise DataError if a file that trials name by its digest is missing or not what it was when it was packed."""
    wanted = set()
    for trial in trials:
        kept = _read_config(trial)
        wanted.add(root / "images" / kept["images"])
        if (weights := kept["config"].get("weights", "none")) != "none":
            wanted.add(root / "weights" / weights)
    for path in sorted(wanted):
        if not path.is_file():
            raise DataError(f"{path} is missing; copy all of {root}")
        if sha256_of(path) != path.stem:
            raise DataError(f"{path} is damaged: its SHA-256 is not its name; copy it again")
