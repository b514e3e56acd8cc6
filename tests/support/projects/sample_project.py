"""A project whose seven stages have run, in this process, on a very small sample; tests copy it and break a file."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from cxr.common.params import override, read_params
from cxr.registry import tracking_store
from tests.support.project import PROJECT

STAGES = ("ingest", "validate", "split", "preprocess", "train", "evaluate", "register")

SMALL = {
    "ingest.sample_patients_per_class": 12,
    "ingest.workers": 1,
    "validate.min_images_per_class": {"normal": 1, "viral": 1, "bacterial": 1},
    "validate.max_quarantined_share": 0.5,
    "split.share_tolerance": 0.5,
    "split.validation_share": 0.2,
    "split.test_share": 0.3,
    "preprocess.image_size_px": 32,
    "preprocess.workers": 1,
    "train.backbone": "small_cnn",
    "train.epochs": 1,
    "evaluate.bootstrap_resamples": 100,
    "evaluate.gradcam_per_class": 1,
    "evaluate.most_confident_errors": 1,
    "evaluate.attention_images": 3,
    "evaluate.sanity_images": 1,
    "evaluate.audit_images": 6,
}


def make_sample_project(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Run every stage in `folder`, with a store of its own below mlruns."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("params.yaml", "dvc.yaml", "labels-corrected.csv"):
        shutil.copy2(PROJECT / name, folder)
    override(folder / "params.yaml", SMALL)
    enter(folder, patch)
    for stage in STAGES:
        run_stage(stage)


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make `folder` the current directory and its mlruns the store."""
    patch.delenv(tracking_store.STORE_VARIABLE, raising=False)
    patch.setenv(tracking_store.FOLDER_VARIABLE, str(folder / "mlruns"))
    patch.chdir(folder)


def run_stage(stage: str) -> None:
    """Run a stage of the project in the current directory, as `python -m tasks.STAGE` does, in this process."""
    from importlib import import_module

    step = getattr(import_module(f"tasks.{stage}"), stage)
    params = read_params(Path("params.yaml"))
    step(params.section(stage), params.paths)


def command(task: str, *arguments: str) -> Callable[[], None]:
    """Return what `./run TASK ARGUMENTS` calls, in this process."""

    def main() -> None:
        from importlib import import_module

        with mock.patch.object(sys, "argv", [task, *arguments]):
            import_module(f"tasks.{task}").main()

    return main


def copy_project(source: Path, target: Path) -> None:
    """Copy a project by hard links, which a stage never writes through: it replaces its files."""
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns("mlruns", "downloads"))
    if (source / "mlruns").exists():
        shutil.copytree(source / "mlruns", target / "mlruns", copy_function=os.link)
        for database in (target / "mlruns").glob("*.db"):
            database.unlink()
            shutil.copy2(source / "mlruns" / database.name, database)
