"""Leave out some of the images assigned to a split: pure, seeded functions, for learning curves and comparisons.

`split.subsample: paper_quotas`  as many images of each class in each split as in the paper
`split.train_sources`            training images of these sources only
`split.train_share`              a share of the training images of each class

They are applied in this order; the last two change the training images only. Images that are left out become `unused`,
so a split by patient stays a split by patient.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.common.classes import CLASSES, LABELS, Label
from cxr.common.errors import DataError
from cxr.common.params import SplitParams

UNUSED = "unused"
_STREAMS = {"train": 1, "validation": 2, "test": 3, "share": 4}  # not 0: numpy treats [seed, 1, 0] like [seed, 1]


def has_quotas(params: SplitParams) -> bool:
    """Return whether splits have the paper's numbers of images, and not shares of all images."""
    return params.protocol == "paper" or params.subsample == "paper_quotas"


def quotas_of(params: SplitParams) -> dict[str, dict[Label, int]]:
    """Return the quotas as {split: {label: n}} for the classes of the task."""
    quotas = {"train": params.paper_train, "test": params.paper_test, "validation": params.paper_validation}
    return {name: {label: quota[label] for label in CLASSES[params.task]} for name, quota in quotas.items()}


def kept_count(images: int, train_share: float) -> int:
    """Return how many of the `images` training images of a class `train_share` keeps: at least one."""
    return max(1, round(images * train_share))


def subsample(assigned: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Return `assigned` (image_id, source, label, split, sorted by image_id) with images left out as `unused`.

    Raises:
        DataError: a split has fewer images of a class than its quota, a source is unknown, or the sources leave a
            class without training images.
    """
    assigned = assigned.assign(split=assigned["split"].to_numpy(object))
    if params.subsample == "paper_quotas" and params.protocol != "paper":
        assigned = _to_quotas(assigned, params)
    if params.train_sources:
        assigned = _to_sources(assigned, params)
    if params.train_share < 1:
        for label in CLASSES[params.task]:
            rows = _rows(assigned, "train", label)
            kept = kept_count(len(rows), params.train_share)
            assigned = _leave_out(assigned, _shuffled(rows, params.seed, label, "share")[kept:])
    return assigned


def _to_quotas(assigned: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    lacking = []
    for name, quota in quotas_of(params).items():
        for label, wanted in quota.items():
            rows = _rows(assigned, name, label)
            if len(rows) < wanted:
                lacking.append(f"{name} has {len(rows)} {label} and needs {wanted}")
            assigned = _leave_out(assigned, _shuffled(rows, params.seed, label, name)[wanted:])
    if lacking:
        raise DataError(
            f"too few images for split.subsample paper_quotas: {'; '.join(lacking)}; add images, lower the quotas "
            "split.paper_train, paper_test and paper_validation, or set split.subsample to none"
        )
    return assigned


def _to_sources(assigned: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    there = sorted(set(assigned["source"]))
    unknown = [name for name in params.train_sources if name not in there]
    if unknown:
        raise DataError(
            f"split.train_sources: unknown source {', '.join(unknown)}; images of task {params.task} have the sources "
            f"{', '.join(there)}; name one of these, or add the source to ingest.sources"
        )
    others = (assigned["split"] == "train") & ~assigned["source"].isin(params.train_sources)
    assigned = _leave_out(assigned, np.flatnonzero(others))
    absent = [label for label in CLASSES[params.task] if not len(_rows(assigned, "train", label))]
    if absent:
        raise DataError(
            f"split.train_sources {', '.join(params.train_sources)} leaves no training images of class "
            f"{', '.join(absent)}; add a source with such images, or choose a split.task without the class"
        )
    return assigned


def _rows(assigned: pd.DataFrame, split: str, label: Label) -> NDArray[np.int64]:
    return np.flatnonzero((assigned["split"] == split) & (assigned["label"] == label))


def _shuffled(rows: NDArray[np.int64], seed: int, label: Label, stream: str) -> NDArray[np.int64]:
    return np.random.default_rng([seed, LABELS.index(label), _STREAMS[stream]]).permutation(rows)


def _leave_out(assigned: pd.DataFrame, rows: NDArray[np.int64]) -> pd.DataFrame:
    split = assigned["split"].to_numpy(object, copy=True)
    split[rows] = UNUSED
    return assigned.assign(split=split)
