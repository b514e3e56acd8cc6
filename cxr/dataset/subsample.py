"""Which of the images that a split has placed are left out again: pure functions, seeded, for fair comparisons.

`split.subsample: paper_quotas`  as many images of each class in each split as the paper has
`split.train_sources`        only images of these sources train
`split.train_share`          a share of the training images of each class, for learning curves

They apply in this order; the last two touch the training images alone. What is left out is `unused`, so whoever does
not cross before does not cross afterwards.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.common.classes import CLASSES, LABELS, Label
from cxr.common.errors import DataError
from cxr.common.params import SplitParams

UNUSED = "unused"
_STREAMS = {"train": 1, "validation": 2, "test": 3, "share": 4}  # not 0: numpy takes [seed, 1, 0] for [seed, 1]


def has_quotas(params: SplitParams) -> bool:
    """Say whether each split holds the paper's numbers of images rather than shares of all images."""
    return params.protocol == "paper" or params.subsample == "paper_quotas"


def quotas_of(params: SplitParams) -> dict[str, dict[Label, int]]:
    """Return images as {split: {label: n}} for the classes of the task; quotas of other classes do not count."""
    quotas = {"train": params.paper_train, "test": params.paper_test, "validation": params.paper_validation}
    return {name: {label: quota[label] for label in CLASSES[params.task]} for name, quota in quotas.items()}


def kept_of(images: int, train_share: float) -> int:
    """Return how many of a class's training images `train_share` keeps: at least one."""
    return max(1, round(images * train_share))


def subsample(placed: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Return `placed` (image_id, source, label, split, sorted by image_id) with what is left out as `unused`.

    Raises:
        DataError: a split has fewer images of a class than its quota, a source is unknown, or the sources leave a
            class without training images.
    """
    placed = placed.assign(split=placed["split"].to_numpy(object))
    if params.subsample == "paper_quotas" and params.protocol != "paper":
        placed = _to_quotas(placed, params)
    if params.train_sources:
        placed = _to_sources(placed, params)
    if params.train_share < 1:
        for label in CLASSES[params.task]:
            rows = _rows(placed, "train", label)
            kept = kept_of(len(rows), params.train_share)
            placed = _leave_out(placed, _shuffled(rows, params.seed, label, "share")[kept:])
    return placed


def _to_quotas(placed: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    lacking = []
    for name, quota in quotas_of(params).items():
        for label, wanted in quota.items():
            rows = _rows(placed, name, label)
            if len(rows) < wanted:
                lacking.append(f"{name} has {len(rows)} {label} and needs {wanted}")
            placed = _leave_out(placed, _shuffled(rows, params.seed, label, name)[wanted:])
    if lacking:
        raise DataError(
            f"too few images for split.subsample paper_quotas: {'; '.join(lacking)}; add images, lower the quotas "
            "split.paper_train, paper_test and paper_validation, or set split.subsample to none"
        )
    return placed


def _to_sources(placed: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    there = sorted(set(placed["source"]))
    unknown = [name for name in params.train_sources if name not in there]
    if unknown:
        raise DataError(
            f"split.train_sources names {', '.join(unknown)}, and the images of task {params.task} come from "
            f"{', '.join(there)}; name one of those, or add the source to ingest.sources"
        )
    others = (placed["split"] == "train") & ~placed["source"].isin(params.train_sources)
    placed = _leave_out(placed, np.flatnonzero(others))
    absent = [label for label in CLASSES[params.task] if not len(_rows(placed, "train", label))]
    if absent:
        raise DataError(
            f"split.train_sources {', '.join(params.train_sources)} leaves no training images of class "
            f"{', '.join(absent)}; add a source that has them, or choose a split.task without that class"
        )
    return placed


def _rows(placed: pd.DataFrame, split: str, label: Label) -> NDArray[np.int64]:
    return np.flatnonzero((placed["split"] == split) & (placed["label"] == label))


def _shuffled(rows: NDArray[np.int64], seed: int, label: Label, stream: str) -> NDArray[np.int64]:
    return np.random.default_rng([seed, LABELS.index(label), _STREAMS[stream]]).permutation(rows)


def _leave_out(placed: pd.DataFrame, rows: NDArray[np.int64]) -> pd.DataFrame:
    split = placed["split"].to_numpy(object, copy=True)
    split[rows] = UNUSED
    return placed.assign(split=split)
