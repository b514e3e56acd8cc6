"""Runs of a small study as a tracking store holds them, made without training anything."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cxr.evaluation.metrics import measure
from cxr.study.results import RunRecord
from cxr.study.spec import Group, Row, Study

ONE_STAGE = """
stages:
  train:
    cmd: python step.py
    params: [train, split]
    outs: ["${paths.model}"]
"""
"""A dvc.yaml whose training is any step.py."""

CLASSES = ("normal", "viral", "bacterial")
INTERVAL = [0.5, 0.9]


def predictions(*, skill: float, seed: int, images: int = 60, first: int = 0) -> pd.DataFrame:
    """Return images numbered from `first`, two a patient, with probabilities that are right the more the skill."""
    labels = np.arange(images) % 3
    scores = skill * np.eye(3)[labels] + np.random.default_rng(seed).normal(size=(images, 3))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    numbers = range(first, first + images)
    table = pd.DataFrame(
        {
            "image_id": [f"image-{n:04d}" for n in numbers],
            "patient_id": [f"patient-{n // 2}" for n in numbers],
            "source": "kermany",
            "label": np.array(CLASSES)[labels],
        }
    )
    return table.assign(**{f"p_{name}": probabilities[:, c] for c, name in enumerate(CLASSES)})


def record(
    group: Group, row: Row, seed: int, *, skill: float, first: int = 0, params: Mapping[str, str] | None = None
) -> RunRecord:
    """Return the run of a row with a seed; it is tested where the group is. Images are numbered from `first`."""
    test = predictions(skill=skill, seed=seed + 100, first=1000 + first)
    labels = np.array([CLASSES.index(label) for label in test["label"]])
    measured = measure(labels, test[[f"p_{name}" for name in CLASSES]].to_numpy(), CLASSES).to_json()
    metrics = measured | {"ci95": dict.fromkeys(("accuracy", "macro_f1", "macro_auroc"), INTERVAL)}
    name = f"{group.name}-{row.name}-{seed}"
    validation = predictions(skill=skill, seed=seed, first=first)
    parts = [validation.assign(split="validation"), test.assign(split="test")]
    return RunRecord(
        run_id=name.encode().hex()[-32:],
        tags={group.tag(row, seed): "digest", "git_commit": "c0ffee" + "0" * 34, "git_dirty": "false"},
        params=recorded(group, row, seed) | dict(params or {}),
        training=training(),
        validation=validation,
        metrics=metrics if group.tested else None,
        predictions=pd.concat(parts, ignore_index=True) if group.tested else None,
    )


def recorded(group: Group, row: Row, seed: int) -> dict[str, str]:
    """Return parameters as a training records them: numbers as text."""
    settings = {key: str(value) for key, value in group.settings(row, seed).items()}
    counts = {f"split.counts.train.{name}": "400" for name in CLASSES}
    return {"preprocess.image_size_px": "96", "train.epochs": "3"} | counts | settings


def training() -> dict[str, Any]:
    """Return training.json."""
    parts = {"loaded": ["stem", "layer1"], "partial": [], "random": ["head"]}
    return {
        "seconds": 90.0,
        "hardware": "1 cores, x86_64",
        "epochs_run": 3,
        "params": {"members": 1},
        "weights": {"source": "imagenet", "sha256": "ab" * 32, **parts},
    }


def small_study(**changes: Any) -> Study:
    """Return a study of one untested group with a baseline, two seeds; `changes` are of the group."""
    group: dict[str, Any] = {
        "name": "ablation",
        "title": "One thing at a time",
        "text": "On validation.",
        "tested": False,
        "seeds": [1, 2],
        "baseline": "plain",
        "rows": [
            {"name": "plain", "label": "unchanged"},
            {"name": "mixup", "label": "with mixup", "set": {"train.mixup": 0.2}},
        ],
    }
    return Study.model_validate({"groups": [group | changes]})
