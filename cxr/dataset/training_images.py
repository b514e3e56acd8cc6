"""Which images a training learns from and is validated on, and what it calls them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.dataset.image_array import ImageArray
from cxr.dataset.manifest import Split, read_divided_manifest
from cxr.dataset.populations import population_of

if TYPE_CHECKING:
    from cxr.common.params import PopulationParams


@dataclass(frozen=True)
class TrainingRows:
    """Labels and sources (N,) of an array's images, -1 where a training does not use one, and rows of the splits."""

    labels: NDArray[np.int64]
    sources: NDArray[np.int64]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]


def training_images(raw: Path, split: Split, populations: Sequence[PopulationParams]) -> pd.DataFrame:
    """Return the images of train and validation: image_id, split, fold, label, patient_id, source, population.

    Args:
        raw: folder of the manifest that was split.
        split: from read_split.
        populations: of classes of the split; `population` is the position there, -1 for none.

    Raises:
        DataError: the manifest is another one, or a population does not fit it.
    """
    manifest = read_divided_manifest(raw, split)
    manifest["population"] = population_of(manifest, populations)
    used = split.part("train", "validation")
    return used.merge(manifest[["image_id", "source", "population"]], on="image_id", validate="one_to_one")


def training_rows(packed: ImageArray, images: pd.DataFrame, classes: Sequence[str]) -> TrainingRows:
    """Return what a training needs to know of the images of `training_images`, by their rows in the array.

    A label is a position in `classes`; from len(classes) on, a position among the populations.
    """
    labels, sources = (np.full(len(packed.image_ids), -1, np.int64) for _ in range(2))
    rows = packed.rows(images["image_id"].tolist())
    of_class = [list(classes).index(label) for label in images["label"]]
    labels[rows] = np.where(images["population"] < 0, of_class, len(classes) + images["population"])
    sources[rows] = np.unique(images["source"], return_inverse=True)[1]
    train, validation = (rows[(images["split"] == name).to_numpy()] for name in ("train", "validation"))
    return TrainingRows(labels, sources, train, validation)
