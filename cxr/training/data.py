"""The input arrays of a training."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr.models.populations import SMALLEST_WEIGHT, Population


@dataclass(frozen=True)
class TrainingData:
    """Prepared images, their labels, and the rows of each split.

    images           (N, H, W) uint8, may be memory-mapped
    labels           (N,) int64, index into classes; from len(classes) on, into populations
    train_rows, validation_rows   disjoint rows of `images`
    populations      images of a class that have an output of their own
    sources          (N,) int64, source of each image; needed only for sampling by source
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    train_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]
    classes: tuple[str, ...]
    sources: NDArray[np.int64] | None = None
    populations: tuple[Population, ...] = ()

    @property
    def n_outputs(self) -> int:
        """The number of outputs of the network: classes, then populations."""
        return len(self.classes) + len(self.populations)

    def class_of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class of each of `labels`, which may be outputs of populations."""
        parents = [self.classes.index(population.label) for population in self.populations]
        return np.array([*range(len(self.classes)), *parents], np.int64)[labels]

    def validation_weights(self) -> NDArray[np.float64]:
        """Return how much each validation image (V,) counts: 1, or the weight of its population in an answer.

        A population whose labels hardly count in an answer must not choose the epoch: the better the network tells it
        apart, the more of its images are answered against their labels.
        """
        of_population = [max(population.weight, SMALLEST_WEIGHT) for population in self.populations]
        return np.array([*[1.0] * len(self.classes), *of_population])[self.labels[self.validation_rows]]
