"""The reference statistics of a model, measured on its validation and test images; see cxr.models.reference."""

import numpy as np
from numpy.typing import NDArray

from cxr.common.on_disk import take
from cxr.dataset.image_array import ImageArray
from cxr.evaluation.predictions import Predictions
from cxr.models.reference import MEASURES, Reference, image_measures, make_reference

MOST_IMAGES = 4000
"""More images make the file larger and the comparison no better."""

_CHUNK_IMAGES = 512  # whose pixels are in memory at once


def in_reference(patients: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Choose the images of the reference, (N,): of all patients (N,), or of some, drawn at random.

    A patient is in it with all images or with none; together they have MOST_IMAGES or fewer.
    """
    _, numbers, counts = np.unique(patients.astype(str), return_inverse=True, return_counts=True)
    drawn = np.random.default_rng(0).permutation(len(counts))
    chosen = np.zeros(len(counts), bool)
    chosen[drawn[np.cumsum(counts[drawn]) <= MOST_IMAGES]] = True
    return np.asarray(chosen[numbers])


def measure_reference(packed: ImageArray, images: Predictions, features: NDArray[np.float32]) -> Reference:
    """Return the reference of a model.

    Args:
        packed: the prepared images.
        images: the K images of the reference as the model predicts them.
        features: (K, D), what the network's head saw of them.
    """
    rows = packed.rows(images.image_ids.tolist())
    measured = []
    for start in range(0, len(rows), _CHUNK_IMAGES):
        of_images = image_measures(take(packed.images, rows[start : start + _CHUNK_IMAGES]))
        measured.append(np.column_stack([of_images[name] for name in MEASURES if name in of_images]))
    return make_reference(
        classes=images.classes,
        images=np.concatenate(measured),
        features=features,
        probabilities=images.calibrated,
        patients=images.patients,
    )
