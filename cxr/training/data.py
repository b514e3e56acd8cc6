"""The input arrays of a training."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainingData:
    """Prepared images, their labels, and the rows of each split.

    images           (N, H, W) uint8, may be memory-mapped
    labels           (N,) int64, index into classes
    train_rows, validation_rows   disjoint rows of `images`
    sources          (N,) int64, source of each image; needed only for sampling by source
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    train_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]
    classes: tuple[str, ...]
    sources: NDArray[np.int64] | None = None
