"""What a model says of the images it is measured on, and how its scores become probabilities."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cxr.evaluation.calibration import TEMPERATURE_RANGE, fit_temperature, fit_temperature_and_bias
from cxr.evaluation.metrics import Floats, Ints
from cxr.models.forward import BATCH_SIZE, calibrated, choose_device, predict_logits, softmax_with_temperature

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from cxr.dataset.image_array import ImageArray
    from cxr.models.bundle import ModelSpec

log = logging.getLogger("cxr.evaluate")


@dataclass(frozen=True)
class Predictions:
    """N images of one split with their labels and probabilities before and after calibration.

    image_ids, sources, patients   (N,) of str
    labels                         (N,) indices into `classes`
    uncalibrated, calibrated       (N, C), rows summing to 1
    """

    classes: tuple[str, ...]
    image_ids: NDArray[np.object_]
    sources: NDArray[np.object_]
    patients: NDArray[np.object_]
    labels: Ints
    uncalibrated: Floats
    calibrated: Floats

    def where(self, rows: NDArray[Any]) -> Predictions:
        """Return the images that `rows` (a mask (N,), or row numbers) selects."""
        arrays = {name: value[rows] for name, value in vars(self).items() if name != "classes"}
        return Predictions(self.classes, **arrays)

    def to_table(self, split: str) -> pd.DataFrame:
        """Return predictions.csv: who, where from, the label, the predicted class and each calibrated probability."""
        from pandas import DataFrame

        names = np.array(self.classes, dtype=object)
        columns = {
            "image_id": self.image_ids,
            "split": split,
            "source": self.sources,
            "patient_id": self.patients,
            "label": names[self.labels],
            "predicted_class": names[self.calibrated.argmax(axis=1)],
        }
        return DataFrame(columns | {f"p_{name}": self.calibrated[:, c] for c, name in enumerate(self.classes)})


def predict(
    model: nn.Module, spec: ModelSpec, packed: ImageArray, images: pd.DataFrame, *, fit_bias: bool
) -> tuple[Predictions, Predictions, ModelSpec]:
    """Return what the model says of validation and test images, and its spec as calibrated on the validation images.

    Args:
        model: in evaluation mode; it is moved to the best device there is.
        spec: its description.
        packed: the prepared images.
        images: columns image_id, split ("validation" or "test"), source, patient_id, label.
        fit_bias: fit a bias a class beside the temperature.
    """
    logits, labels = _logits(model, spec, packed, packed.rows(images["image_id"].tolist())), _labels(spec, images)
    is_validation = (images["split"] == "validation").to_numpy()
    final = _calibrated_spec(spec, logits[is_validation], labels[is_validation], fit_bias=fit_bias)
    both = _predictions(final, images, logits)
    return both.where(is_validation), both.where(~is_validation), final


def predict_as_served(model: nn.Module, spec: ModelSpec, packed: ImageArray, images: pd.DataFrame) -> Predictions:
    """Return what a finished model says of images, with the calibration it has; arguments as of `predict`."""
    return _predictions(spec, images, _logits(model, spec, packed, packed.rows(images["image_id"].tolist())))


def _predictions(spec: ModelSpec, images: pd.DataFrame, logits: NDArray[np.float32]) -> Predictions:
    return Predictions(
        classes=spec.classes,
        image_ids=images["image_id"].to_numpy(object),
        sources=images["source"].to_numpy(object),
        patients=images["patient_id"].to_numpy(object),
        labels=_labels(spec, images),
        uncalibrated=softmax_with_temperature(logits, 1.0),
        calibrated=calibrated(logits, spec),
    )


def _labels(spec: ModelSpec, images: pd.DataFrame) -> Ints:
    return np.array([spec.classes.index(label) for label in images["label"]], dtype=np.int64)


def _calibrated_spec(spec: ModelSpec, logits: NDArray[np.float32], labels: Ints, *, fit_bias: bool) -> ModelSpec:
    if fit_bias:
        temperature, bias = fit_temperature_and_bias(logits, labels)
    else:
        temperature, bias = fit_temperature(logits, labels), (0.0,) * len(spec.classes)
    if any(abs(temperature / bound - 1) < 0.01 for bound in TEMPERATURE_RANGE):
        log.warning(
            "the temperature %.2f is at the end of its range: %d validation images may be too few or too easy to "
            "calibrate on",
            temperature,
            len(labels),
        )
    return replace(spec, temperature=temperature, bias=bias)


def _logits(model: nn.Module, spec: ModelSpec, packed: ImageArray, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return raw scores (N, C) in fp32; only one batch of images is in memory."""
    from tqdm import tqdm

    model.to(choose_device("auto"))
    logits = np.zeros((len(rows), len(spec.classes)), np.float32)
    with tqdm(total=len(rows), desc="evaluate", unit=" images", disable=None) as bar:
        for start in range(0, len(rows), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            images = packed.images[rows[part]]
            logits[part] = predict_logits(model, images, mean=spec.mean, std=spec.std, progress=bar.update)
    return logits
