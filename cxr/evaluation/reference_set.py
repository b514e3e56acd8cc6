"""The reference of a model, measured on its validation and test images: see cxr.models.reference for what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cxr.models.factory import features
from cxr.models.forward import BATCH_SIZE, choose_device, images_to_input
from cxr.models.reference import MEASURES, Reference, image_measures, make_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from cxr.dataset.image_array import ImageArray
    from cxr.evaluation.predictions import Predictions
    from cxr.models.bundle import ModelSpec

MOST_IMAGES = 4000
"""More images make the file larger and the comparison no better."""


def measure_reference(
    model: nn.Module, spec: ModelSpec, packed: ImageArray, judged: Sequence[Predictions]
) -> Reference:
    """Return the reference of `model` from the images of `judged`: of all, or of patients with MOST_IMAGES together.

    Args:
        model: in evaluation mode; it is moved to the best device there is.
        spec: its description.
        packed: the prepared images.
        judged: what it says of its validation and test images.
    """
    ids = np.concatenate([part.image_ids for part in judged])
    patients = np.concatenate([part.patients for part in judged])
    probabilities = np.concatenate([part.calibrated for part in judged])
    kept = _at_most(patients, MOST_IMAGES)
    images, seen = _measure(model, spec, packed, packed.rows(ids[kept].tolist()))
    return make_reference(
        classes=spec.classes,
        images=images,
        features=seen,
        probabilities=probabilities[kept],
        patients=patients[kept],
    )


def _at_most(patients: NDArray[np.object_], most: int) -> NDArray[np.int64]:
    """Return the rows of whole patients, drawn by chance, that have `most` images together or fewer."""
    _, numbers, counts = np.unique(patients.astype(str), return_inverse=True, return_counts=True)
    drawn = np.random.default_rng(0).permutation(len(counts))
    taken = np.zeros(len(counts), bool)
    taken[drawn[np.cumsum(counts[drawn]) <= most]] = True
    return np.flatnonzero(taken[numbers])


def _measure(
    model: nn.Module, spec: ModelSpec, packed: ImageArray, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the image measures (N, M) and the features (N, D) of images; one batch of images is in memory."""
    import torch
    from tqdm import tqdm

    device = choose_device("auto")
    model.to(device)
    measured, seen = [], []
    with torch.inference_mode(), tqdm(total=len(rows), desc="reference", unit=" images", disable=None) as bar:
        for start in range(0, len(rows), BATCH_SIZE):
            images = packed.images[rows[start : start + BATCH_SIZE]]
            of_images = image_measures(images)
            measured.append(np.column_stack([of_images[name] for name in MEASURES if name in of_images]))
            x = images_to_input(images, device, mean=spec.mean, std=spec.std)
            seen.append(features(model, x).float().cpu().numpy())
            bar.update(len(images))
    return np.concatenate(measured), np.concatenate(seen)
