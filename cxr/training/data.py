"""The arrays that a training reads."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainingData:
    """Prepared images and who learns from them.

    images           (N, H, W) uint8, may be memory-mapped
    labels           (N,) int64, index into classes
    train_rows, validation_rows   rows of `images`; no row may be in both
    sources          (N,) int64, the set each image comes from; needed for sampling by source alone
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    train_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]
    classes: tuple[str, ...]
    sources: NDArray[np.int64] | None = None
