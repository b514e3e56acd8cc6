"""The order of the training images, and the weight of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr.common.errors import DataError

if TYPE_CHECKING:
    from cxr.common.params import TrainParams
    from cxr.training.data import TrainingData


def epoch_order(data: TrainingData, config: TrainParams, generator: torch.Generator) -> NDArray[np.int64]:
    """Return the rows of one epoch: shuffled, or drawn with replacement with equal probability of each stratum."""
    rows = data.train_rows
    if config.class_balance in {"none", "weights"}:
        chosen = torch.randperm(len(rows), generator=generator)
    else:
        weights = torch.from_numpy(_sampling_weights(data, by_source=config.class_balance == "sampling_by_source"))
        chosen = torch.multinomial(weights, len(rows), replacement=True, generator=generator)
    return np.asarray(rows[chosen.numpy()], np.int64)


def _sampling_weights(data: TrainingData, *, by_source: bool) -> NDArray[np.float64]:
    """Return a weight for each training image, with equal sums over classes and, if `by_source`, over their sources."""
    labels = data.labels[data.train_rows]
    weights = 1.0 / np.bincount(labels, minlength=data.n_outputs)[labels]
    if not by_source:
        return weights
    if data.sources is None:
        raise DataError("train.class_balance sampling_by_source needs the source of each image, and the data have none")
    _, stratum, counts = np.unique(
        np.stack([labels, data.sources[data.train_rows]]), axis=1, return_inverse=True, return_counts=True
    )
    sources_of_class = np.bincount(np.unique(np.stack([labels, stratum.ravel()]), axis=1)[0])
    return 1.0 / (counts[stratum.ravel()] * sources_of_class[labels])


def class_weights(data: TrainingData, config: TrainParams) -> Tensor:
    """Return a weight per class or population: 1, or the inverse of its share, scaled to a mean over images of 1.

    One without a training image weighs nothing: label smoothing would teach the network to give every image to it.
    """
    if config.class_balance != "weights":
        return torch.ones(data.n_outputs)
    counts = np.bincount(data.labels[data.train_rows], minlength=data.n_outputs)
    weights = np.where(counts, counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0)
    return torch.tensor(weights, dtype=torch.float32)
