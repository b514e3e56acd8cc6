"""Trials of a study that run on another machine, which has a GPU and torch alone: what is packed, what is collected."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import pandas as pd
from tqdm import tqdm

from cxr.common.errors import DataError, ParamsError
from cxr.common.files import write_json
from cxr.common.locks import sole_lock, worktree_lock
from cxr.common.params import Params, with_overrides
from cxr.dataset.blocks import acquisition_blocks
from cxr.dataset.image_array import IMAGES_FILE, read_image_array
from cxr.dataset.manifest import Split, read_divided_manifest, read_split
from cxr.dataset.training_images import training_images, training_rows
from cxr.registry import runs
from cxr.registry.lineage import lineage
from cxr.registry.run_metadata import shown_tags
from cxr.study.collected import TrialRecord, collect, read_record, write_record
from cxr.study.spec import TAG_PREFIX
from cxr.training.packed import INDEX_FILE, TRAINING_FILE, pack_training, packed_digests, packed_trials
from flows.trials.trial import DIGEST_TAG, Trial, mark_done, reproduce, trial_workspace

_Collected = Literal["recorded", "known", "untrained", "not chosen"]

log = logging.getLogger("flows.study")


def pack(todo: Sequence[Trial], root: Path, folder: Path) -> None:
    """Write everything that the training of some trials needs into `folder`; of trials with equal settings the first.

    Raises:
        ParamsError: a trial starts from weights that would have to be fetched, or `folder` has other trials that are
            not recorded yet.
        StageFailedError: the split or the preprocessing of a trial fails.
    """
    different: dict[str, Trial] = {}
    for trial in todo:
        different.setdefault(trial.digest, trial)
    _check_earlier(folder, {_folder_name(trial) for trial in different.values()})
    alike: dict[str, list[Trial]] = {}
    for trial in different.values():
        params = with_overrides(root / "params.yaml", trial.settings)
        if params.train.weights == "imagenet":
            raise ParamsError(
                f"{trial.name} starts from weights `imagenet`, which a machine without a network cannot fetch; name a "
                f"file: --weights {params.train.backbone}=FILE"
            )
        key = "\n".join(params.section(name).model_dump_json() for name in ("ingest", "split", "preprocess"))
        alike.setdefault(key, []).append(trial)
    with tqdm(total=len(different), unit=" trials", disable=None) as bar:
        for trials in alike.values():
            with trial_workspace(root, trials[0].settings, of="study", workers=1) as workspace:
                reproduce(workspace, root, ["split", "preprocess"], workers=1, on_line=log.debug)
                for trial in trials:
                    _pack_trial(trial, root, workspace, folder)
                    bar.update()
    # Last: a pack that was killed leaves the earlier list, and the same command goes through.
    write_json(folder / INDEX_FILE, {"trials": [{"name": _folder_name(trial)} for trial in different.values()]})
    print(f"packed {len(different)} trials in {folder}; next, where the GPU is: python -m tasks.packed.train {folder}")


def _check_earlier(folder: Path, names: set[str]) -> None:
    """Raise ParamsError where an earlier packing has trials that are not recorded and not packed again.

    Of those that are trained nothing would say any more that they are there.
    """
    if not (folder / INDEX_FILE).is_file():
        return
    for earlier in packed_trials(folder):
        if earlier.name not in names and not _is_recorded(folder, earlier.name):
            raise ParamsError(
                f"{folder} holds an earlier packing with {earlier.name}, which is not recorded yet: --collect it, or "
                "name another FOLDER"
            )


def _is_recorded(folder: Path, name: str) -> bool:
    return runs.find_run(DIGEST_TAG, read_record(folder / "records" / name).digest) is not None


def collect_all(chosen: Sequence[Trial], folder: Path, params: Path) -> None:
    """Record the packed trials that are chosen, trained and not recorded yet, also for trials with equal settings.

    Raises:
        BusyError: another process collects.
        DataError: a trial was packed with other settings than it has now, or its files are damaged or of an earlier
            packing.
    """
    with sole_lock(worktree_lock(Path.cwd(), "study-collect"), what="./run flows.study --collect"):
        done = Counter(
            _collect_one(chosen, path, params) for path in tqdm(packed_trials(folder), unit=" trials", disable=None)
        )
        for trial in chosen:
            twin = runs.find_run(DIGEST_TAG, trial.digest)
            if twin and not trial.is_done():
                mark_done(trial, twin, Path.cwd())
    print(
        f"recorded {done['recorded']} of {done.total()} packed trials; {done['untrained']} were not trained yet, "
        f"{done['not chosen']} not chosen"
    )


def _collect_one(chosen: Sequence[Trial], path: Path, params: Path) -> _Collected:
    trial = _packed_as(chosen, path)
    if trial is None:
        return "not chosen"
    if trial.is_done():
        return "known"
    if not (path / TRAINING_FILE).is_file():
        return "untrained"
    settings = with_overrides(params, trial.settings).evaluate
    run_id = collect(path.parent.parent, path.name, tested=trial.stage == "evaluate", params=settings)
    mark_done(trial, run_id, Path.cwd())
    return "recorded"


def _packed_as(chosen: Sequence[Trial], path: Path) -> Trial | None:
    """Return the chosen trial with the settings of FOLDER/trials/<trial>, which may be a twin's; None without one."""
    digest = read_record(path.parent.parent / "records" / path.name).digest
    trial = next((trial for trial in chosen if trial.digest == digest), None)
    if trial is None and any(_folder_name(other) == path.name for other in chosen):
        raise DataError(
            f"{path.name} was packed with other settings than study.yaml and params.yaml give it now; go back to "
            "those, or pack the study again"
        )
    return trial


def _folder_name(trial: Trial) -> str:
    return trial.tag.removeprefix(TAG_PREFIX)


def _pack_trial(trial: Trial, root: Path, workspace: Path, folder: Path) -> None:
    params = with_overrides(root / "params.yaml", trial.settings)
    raw, divided = workspace / params.paths.raw, read_split(workspace / params.paths.split)
    packed = read_image_array(workspace / params.paths.images)
    classes = divided.record["classes"]
    train = params.train.with_populations_of(classes)
    rows = training_rows(packed, training_images(raw, divided, train.populations), classes)
    held_out = _held_out(raw, divided)
    name = _folder_name(trial)
    pack_training(
        folder / "trials" / name,
        images=workspace / params.paths.images / IMAGES_FILE,
        config=train.model_dump(mode="json"),
        classes=classes,
        rows={
            "labels": rows.labels,
            "sources": rows.sources,
            "train_rows": rows.train,
            "validation_rows": packed.rows(held_out.loc[held_out["split"] == "validation", "image_id"].tolist()),
            "test_rows": packed.rows(held_out.loc[held_out["split"] == "test", "image_id"].tolist()),
        },
    )
    config = {"train": train.model_dump(), "split": divided.record, "preprocess": asdict(packed.preprocessing)}
    digests = packed_digests(folder / "trials" / name)
    record = TrialRecord(trial.digest, _tags(trial, root, params, divided), config, digests)
    write_record(folder / "records" / name, record, held_out)


def _held_out(raw: Path, divided: Split) -> pd.DataFrame:
    """Return validation, then test images with source and block."""
    manifest = read_divided_manifest(raw, divided)
    manifest["block"] = acquisition_blocks(manifest, blocks=divided.record["blocks"])
    parts = pd.concat([divided.part("validation"), divided.part("test")])
    return parts.merge(manifest[["image_id", "source", "block"]], on="image_id", validate="one_to_one")


def _tags(trial: Trial, root: Path, params: Params, divided: Split) -> dict[str, str]:
    split = divided.record
    origin = lineage(root) | {"protocol": split["protocol"], "synthetic": str(split["synthetic"]).lower()}
    network = f"{params.train.members} x {params.train.backbone}"
    description = f"**{trial.name}**: {network}, protocol {split['protocol']}, trained on another machine."
    return origin | shown_tags(description=description, commit=origin["git_commit"])
