"""Trials that are packed, trained where only torch is, and collected: the same results as trained here."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr.common.errors import BusyError, DataError, ParamsError, TrainingError
from cxr.common.files import sha256_of, write_json
from cxr.common.locks import sole_lock, worktree_lock
from cxr.common.params import override, read_params
from cxr.registry import runs
from cxr.registry.tracked_runs import read_artifacts, runs_with_tag_prefix
from cxr.registry.tracking_store import FOLDER_VARIABLE, client
from cxr.study.collected import TRAINING_TAG, TrialRecord, collect, write_record
from cxr.study.spec import Study
from cxr.training.packed import (
    check_files,
    is_done,
    pack_training,
    packed_digests,
    packed_trials,
    read_arrays,
    read_training,
)
from flows.study import study_flow
from flows.trials.packed import collect_all, pack
from flows.trials.trial import DIGEST_TAG, Trial, trials
from tests.support.project import PROJECT
from tests.support.projects.sample_project import SMALL

LIBRARIES = (
    "mlflow",
    "prefect",
    "dvc",
    "pydantic",
    "ruamel",
    "pandas",
    "great_expectations",
    "pydicom",
    "cv2",
    "boto3",
)
"""That the machine with the GPU need not have."""

LACKING = f"""
import sys
from importlib.machinery import ModuleSpec

class Lacking: # finds them, as torch asks what there is, and cannot import them
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return ModuleSpec(name, cls) if name.partition(".")[0] in {LIBRARIES!r} else None

    @staticmethod
    def create_module(spec):
        raise ModuleNotFoundError(spec.name, name=spec.name)

    exec_module = create_module

sys.meta_path.insert(0, Lacking)
"""

KILLED = """
import multiprocessing, os, signal, sys

class Killed:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "cxr.training.loop" and multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)

sys.meta_path.insert(0, Killed)
"""
"""Ends a worker as the kernel does where memory runs out, when it begins a training."""

STUDY = Study.model_validate(
    {
        "groups": [
            {
                "name": "short",
                "title": "t",
                "text": "t",
                "tested": True,
                "seeds": [1],
                "set": {"train.members": 2, "train.epochs": 2},
                "rows": [
                    {"name": "one", "label": "as it is"},
                    {"name": "twin", "label": "the same by another name"},
                    {"name": "other", "label": "another rate", "set": {"train.weight_decay": 0.1}},
                ],
            }
        ]
    }
)


@pytest.fixture(scope="module")
def project(tiny_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with the real stages and a small sample."""
    root = tmp_path_factory.mktemp("packed") / "project"
    shutil.copytree(tiny_template, root)
    for name in ("dvc.yaml", "labels-corrected.csv"):
        shutil.copy(PROJECT / name, root)
    shutil.copy(PROJECT / "tasks" / "promote.py", root / "tasks")
    override(root / "params.yaml", SMALL)
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "real stages"]
    subprocess.run(command, cwd=root, check=True)
    return root


@pytest.fixture(autouse=True)
def _inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv(FOLDER_VARIABLE, str(project / "mlruns"))  # MLflow keeps a connection for each relative address


def chosen() -> list[Trial]:
    return trials(STUDY, params=Path("params.yaml"), weights={}, chosen=[])


def train_packed(
    folder: Path, tmp_path: Path, *options: str, machine: str = LACKING
) -> "subprocess.CompletedProcess[str]":
    """Run the trials as a machine does that has none of LIBRARIES."""
    (tmp_path / "sitecustomize.py").write_text(machine)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tasks.packed.train", str(folder), *options]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


def files_of(run_id: str, names: Sequence[str]) -> list[bytes]:
    found = read_artifacts(run_id, list(names))
    return [found[name] for name in names]


def table(data: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(data))


@pytest.fixture(scope="module")
def packed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials that were packed and trained; the twin is left out."""
    folder = tmp_path_factory.mktemp("carried") / "pack"
    before = Path.cwd()
    os.chdir(project)
    try:
        pack(chosen(), project, folder)
    finally:
        os.chdir(before)
    done = train_packed(folder, tmp_path_factory.mktemp("bare"), "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (folder / "trials").iterdir() if is_done(path)} == {"short.one.1", "short.other.1"}
    training = folder / "trials" / "short.one.1" / "training.json"
    write_json(training, json.loads(training.read_text()) | {"torch_version": "2.0 of another machine"})
    return folder


@pytest.mark.usefixtures("prefect_server")
def test_a_collected_trial_has_the_results_that_it_has_here(packed: Path) -> None:
    collect_all(chosen(), packed, Path("params.yaml"))
    one, twin, other = chosen()
    assert all(trial.is_done() for trial in (one, twin, other))
    collected = runs.find_run(one.tag, one.digest)
    assert collected is not None
    assert runs.run_tags(collected)["torch_version"] == "2.0 of another machine"
    assert collected == runs.find_run(twin.tag, twin.digest)
    runs.tag_run(collected, dict.fromkeys((one.tag, twin.tag, "study_digest"), "set aside"))
    assert study_flow([one], 1, return_state=True).is_completed()
    here = runs.find_run(one.tag, one.digest)
    assert here not in {None, collected}
    names = ["training/validation.csv", "training/curves.csv", "evaluation/predictions.csv", "evaluation/metrics.json"]
    (validation, curves, predictions, metrics), ours = (files_of(str(run), names) for run in (here, collected))
    pd.testing.assert_frame_equal(table(ours[0]), table(validation), rtol=1e-5)
    pd.testing.assert_frame_equal(
        table(ours[1]).drop(columns=["seconds", "images_per_second"]),
        table(curves).drop(columns=["seconds", "images_per_second"]),
        rtol=1e-5,
    )
    pd.testing.assert_frame_equal(table(ours[2]), table(predictions), rtol=1e-4)
    found, expected = json.loads(ours[3]), json.loads(metrics)
    for name in ("accuracy", "macro_f1", "macro_auroc", "n_test", "test_set_sha256"):
        assert found[name] == pytest.approx(expected[name]), name
    assert found["ci95"]["macro_f1"] == pytest.approx(expected["ci95"]["macro_f1"])


def test_what_is_done_is_not_trained_again(packed: Path, tmp_path: Path) -> None:
    written = (packed / "trials" / "short.one.1" / "training.json").stat().st_mtime_ns
    done = train_packed(packed, tmp_path)
    assert (done.returncode, done.stdout) == (0, "2 of 2 trials are done\n")
    assert (packed / "trials" / "short.one.1" / "training.json").stat().st_mtime_ns == written


def test_no_trial_starts_after_the_time_is_up(packed: Path, tmp_path: Path) -> None:
    fresh = untrained(packed, tmp_path / "pack")
    done = train_packed(fresh, tmp_path, "--minutes", "0")
    assert done.returncode == 0
    assert done.stdout.endswith("2 trials are left; the same command goes on with them\n")


def test_names_of_images_and_patients_stay_where_they_were_packed(packed: Path) -> None:
    images = pd.read_csv(packed / "records" / "short.one.1" / "images.csv")
    carried = b"".join(
        path.read_bytes() for path in packed.rglob("*") if path.is_file() and "records" not in path.parts
    )
    assert len(images) > 10
    for name in (*images["image_id"], *images["patient_id"]):
        assert str(name).encode() not in carried


def test_a_damaged_array_is_named_before_anything_is_trained(packed: Path, tmp_path: Path) -> None:
    fresh = untrained(packed, tmp_path / "pack")
    (array,) = (fresh / "images").iterdir()
    pixels = np.load(array)
    pixels[0] += 1
    np.save(array, pixels)
    done = train_packed(fresh, tmp_path)
    assert done.returncode == DataError.exit_code
    assert done.stderr == f"error: {array} is damaged: its SHA-256 is not its name; copy it again\n"


def test_a_folder_that_was_not_packed_is_refused(tmp_path: Path) -> None:
    done = train_packed(tmp_path / "nothing", tmp_path)
    assert done.returncode == DataError.exit_code
    assert "write it with `./run flows.study --pack FOLDER`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trial_that_fails_is_named_and_the_others_are_done(packed: Path, tmp_path: Path) -> None:
    fresh = untrained(packed, tmp_path / "pack")
    config = fresh / "trials" / "short.one.1" / "config.json"
    kept = json.loads(config.read_text())
    kept["config"]["backbone"] = "resnet51"
    write_json(config, kept)
    done = train_packed(fresh, tmp_path)
    assert done.returncode != 0
    assert "failed: short.one.1: unknown backbone 'resnet51'" in done.stdout
    assert done.stderr == "error: 1 trials failed, see above; the others are done\n"
    assert is_done(fresh / "trials" / "short.other.1")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_worker_is_one_line(packed: Path, tmp_path: Path, workers: str) -> None:
    fresh = untrained(packed, tmp_path / "pack")
    done = train_packed(fresh, tmp_path, "--workers", workers, machine=LACKING + KILLED)
    assert done.returncode == TrainingError.exit_code
    assert done.stdout == "0 of 2 trials are done\n"
    assert done.stderr == (
        "error: a worker was killed, probably for memory; run the same command with fewer --workers, or where there is "
        "more memory\n"
    )


def test_a_trial_with_other_settings_than_now_is_not_recorded(packed: Path) -> None:
    before = read_params(Path("params.yaml")).train.epochs
    changed = STUDY.model_copy(deep=True)
    changed.groups[0].set["train.epochs"] = before + 5
    now = trials(changed, params=Path("params.yaml"), weights={}, chosen=[])
    with pytest.raises(DataError, match=r"short\.one\.1 was packed with other settings than study\.yaml"):
        collect_all(now, packed, Path("params.yaml"))
    assert not any(trial.is_done() for trial in now)


def test_outputs_of_another_packing_are_refused(packed: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "pack"
    shutil.copytree(packed, fresh)
    outputs = fresh / "trials" / "short.other.1" / "outputs.npz"
    with np.load(outputs) as file:
        parts = dict(file)
    np.savez(outputs, validation=parts["validation"][:-1], test=parts["test"])
    other = chosen()[2]
    run_id = runs.find_run(other.tag, other.digest)
    if run_id:
        runs.tag_run(run_id, {other.tag: "set aside", "study_digest": "set aside"})
    with pytest.raises(DataError, match="they are of two packings; pack and train again"):
        collect_all(chosen(), fresh, Path("params.yaml"))
    assert not other.is_done()


def test_weights_that_would_be_fetched_there_are_refused(project: Path, tmp_path: Path) -> None:
    found = trials(STUDY, params=Path("params.yaml"), weights={"small_cnn": "imagenet"}, chosen=[])
    with pytest.raises(ParamsError, match=r"^short/one/1 starts from .* name a file: --weights small_cnn=FILE$"):
        pack(found, project, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"history": 3}', '{"history": [[{"loss": 1}]]}'])
def test_a_damaged_training_is_named_and_leaves_no_run(packed: Path, tmp_path: Path, text: str) -> None:
    fresh = tmp_path / "pack"
    shutil.copytree(packed, fresh)
    damaged = fresh / "trials" / "short.one.1" / "training.json"
    damaged.write_text(text)
    before = len(runs_with_tag_prefix(""))
    with pytest.raises(DataError, match=r"training\.json cannot be read .* copy FOLDER/trials back again"):
        collect(fresh, "short.one.1", tested=True, params=read_params(Path("params.yaml")).evaluate)
    assert len(runs_with_tag_prefix("")) == before


def damaged_arrays(path: Path) -> list[bytes]:
    """Return the file cut, empty, as other bytes, and damaged in its middle."""
    whole = path.read_bytes()
    third = len(whole) // 3
    return [whole[: len(whole) // 2], b"", b"garbage", whole[:third] + b"\xff" * third + whole[2 * third :]]


@pytest.mark.parametrize("damage", range(4), ids=["cut", "empty", "garbage", "damaged inside"])
def test_damaged_outputs_are_named_and_leave_no_run(packed: Path, tmp_path: Path, damage: int) -> None:
    fresh = tmp_path / "pack"
    shutil.copytree(packed, fresh)
    outputs = fresh / "trials" / "short.one.1" / "outputs.npz"
    outputs.write_bytes(damaged_arrays(outputs)[damage])
    before = len(runs_with_tag_prefix(""))
    with pytest.raises(DataError, match=r"outputs\.npz cannot be read .* copy FOLDER/trials back again"):
        collect(fresh, "short.one.1", tested=True, params=read_params(Path("params.yaml")).evaluate)
    assert len(runs_with_tag_prefix("")) == before


@pytest.mark.parametrize("damage", range(4), ids=["cut", "empty", "garbage", "damaged inside"])
def test_damaged_rows_are_named(packed: Path, tmp_path: Path, damage: int) -> None:
    fresh = untrained(packed, tmp_path / "pack")
    rows = fresh / "trials" / "short.one.1" / "rows.npz"
    rows.write_bytes(damaged_arrays(rows)[damage])
    with pytest.raises(DataError, match=r"short\.one\.1 is not a packed training .* pack it again and copy all of it"):
        read_training(rows.parent)


@pytest.mark.parametrize("text", ["", "[]", '{"images": "a.npy"}'])
def test_a_damaged_config_is_named(packed: Path, tmp_path: Path, text: str) -> None:
    fresh = untrained(packed, tmp_path / "pack")
    config = fresh / "trials" / "short.one.1" / "config.json"
    config.write_text(text)
    with pytest.raises(DataError, match=r"config\.json cannot be read .* pack it again and copy all of it"):
        check_files(fresh, packed_trials(fresh))


def test_a_trial_that_is_packed_the_same_again_stays_done(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "pack")
    assert is_done(pack_again(tmp_path / "pack", "short.one.1"))


@pytest.mark.parametrize("copied_back", [False, True], ids=["kept here", "copied back with the earlier config"])
def test_outputs_of_an_earlier_packing_are_not_recorded(packed: Path, tmp_path: Path, copied_back: bool) -> None:
    fresh = tmp_path / "pack"
    shutil.copytree(packed, fresh)
    folder = pack_again(fresh, "short.one.1", weight_decay=0.5)
    assert not is_done(folder)
    if copied_back:
        shutil.copytree(packed / "trials", fresh / "trials", dirs_exist_ok=True)
    refused_as_of_another_packing(fresh)


def test_outputs_without_digests_are_trained_again_and_not_recorded(packed: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "pack"
    shutil.copytree(packed, fresh)
    folder = fresh / "trials" / "short.one.1"
    training = json.loads((folder / "training.json").read_text())
    del training["packed"]
    write_json(folder / "training.json", training)
    assert not is_done(folder)
    refused_as_of_another_packing(fresh)


def test_an_earlier_packing_is_kept_until_it_is_recorded(project: Path, tmp_path: Path) -> None:
    folder, digest = tmp_path / "pack", "digest of a trial of an earlier packing"
    write_record(folder / "records" / "short.gone.1", TrialRecord(digest, {}, {}), pd.DataFrame())
    write_json(folder / "packed.json", {"trials": [{"name": "short.gone.1"}]})
    with pytest.raises(ParamsError, match=r"earlier packing with short\.gone\.1, .* name another FOLDER$"):
        pack([], project, folder)
    assert [path.name for path in packed_trials(folder)] == ["short.gone.1"]
    runs.start_run(run_id=None, name="recorded", tags={DIGEST_TAG: digest})
    pack([], project, folder)
    assert packed_trials(folder) == []


def test_packed_trials_that_are_not_chosen_are_left_alone(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_aside(chosen())
    one, twin, other = chosen()
    collect_all([twin], packed, Path("params.yaml"))
    assert [trial.is_done() for trial in (one, twin, other)] == [False, True, False]
    assert capsys.readouterr().out == "recorded 1 of 2 packed trials; 0 were not trained yet, 1 not chosen\n"


@pytest.mark.parametrize(
    "moment",
    ["cxr.registry.runs.log_files", "flows.trials.packed.mark_done", "flows.trials.trial.keep_below"],
)
def test_a_killed_collect_goes_on_in_the_same_run(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fresh, other = tmp_path / "pack", chosen()[2]
    shutil.copytree(packed, fresh)
    training = fresh / "trials" / "short.other.1" / "training.json"
    write_json(training, json.loads(training.read_text()) | {"torch_version": f"killed at {moment}"})
    set_aside([other])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(moment, killed)
        collect_all([other], fresh, Path("params.yaml"))
    assert not other.is_done()
    collect_all([other], fresh, Path("params.yaml"))
    (run,) = (run for run in runs_with_tag_prefix(other.tag) if run.tags[other.tag] == other.digest)
    digest = sha256_of(training)
    made = [each.run_id for each in runs_with_tag_prefix(TRAINING_TAG) if each.tags[TRAINING_TAG] == digest]
    assert made == [run.run_id]
    assert runs.is_finished(run.run_id)
    assert [point.step for point in client().get_metric_history(run.run_id, "validation/loss")] == [1, 2]
    assert len(client().get_metric_history(run.run_id, "test/accuracy")) == 1


def test_two_collects_at_once_are_refused(project: Path, packed: Path) -> None:
    with (
        sole_lock(worktree_lock(project, "study-collect"), what="another"),
        pytest.raises(BusyError, match=r"^\./run flows\.study --collect is busy"),
    ):
        collect_all(chosen(), packed, Path("params.yaml"))


def killed(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


def set_aside(some: Sequence[Trial]) -> None:
    """Take the marks of trials from their runs, as if they had not run."""
    for trial in some:
        for run in runs_with_tag_prefix(DIGEST_TAG):
            if run.tags[DIGEST_TAG] == trial.digest:
                runs.tag_run(run.run_id, dict.fromkeys((trial.tag, DIGEST_TAG), "set aside"))
            elif run.tags.get(trial.tag) == trial.digest:
                runs.tag_run(run.run_id, {trial.tag: "set aside"})


def refused_as_of_another_packing(folder: Path) -> None:
    before = len(runs_with_tag_prefix(""))
    with pytest.raises(DataError, match=r"one\.1/training\.json is of another packing, .* copy FOLDER/trials back"):
        collect(folder, "short.one.1", tested=True, params=read_params(Path("params.yaml")).evaluate)
    assert len(runs_with_tag_prefix("")) == before


def pack_again(root: Path, name: str, **changes: object) -> Path:
    """Pack a trial into the folder where it is, with some other settings; return its folder."""
    folder, record = root / "trials" / name, root / "records" / name / "record.json"
    kept = json.loads((folder / "config.json").read_text())
    rows = read_arrays(folder / "rows.npz", ["labels", "sources", "train_rows", "validation_rows", "test_rows"])
    images = root / "images" / kept["images"]
    pack_training(folder, images=images, config=kept["config"] | changes, classes=kept["classes"], rows=rows)
    write_json(record, json.loads(record.read_text()) | {"packed": packed_digests(folder)})
    return folder


def untrained(packed: Path, folder: Path) -> Path:
    """Return a copy without outputs."""
    shutil.copytree(packed, folder, ignore=shutil.ignore_patterns("outputs.npz", "training.json"))
    return folder
