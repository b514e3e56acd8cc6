"""One pass of a network over validation and test images: probabilities, and the features of some of the images."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from cxr.common.on_disk import take
from cxr.dataset.image_array import ImageArray
from cxr.evaluation.calibration import TEMPERATURE_RANGE, fit_temperature, fit_temperature_and_bias
from cxr.evaluation.rates import Floats, Ints
from cxr.models.bundle import ModelSpec
from cxr.models.forward import BATCH_SIZE, calibrated, choose_device, predict_with_features, softmax_with_temperature

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("cxr.evaluate")


@dataclass(frozen=True)
class Predictions:
    """N images of one split with their labels and probabilities before and after calibration.

    image_ids, sources, patients   (N,) of str
    blocks                         (N,) see cxr.dataset.blocks; NO_BLOCK without an order of acquisition
    labels                         (N,) indices into `classes`
    uncalibrated, calibrated       (N, C), rows summing to 1
    """

    classes: tuple[str, ...]
    image_ids: NDArray[np.object_]
    sources: NDArray[np.object_]
    patients: NDArray[np.object_]
    blocks: Ints
    labels: Ints
    uncalibrated: Floats
    calibrated: Floats

    def where(self, rows: NDArray[Any]) -> Predictions:
        """Return the images that `rows` (a mask (N,), or row numbers) selects."""
        arrays = {name: value[rows] for name, value in vars(self).items() if name != "classes"}
        return Predictions(self.classes, **arrays)

    def between(self, first: int, second: int) -> Predictions:
        """Return the images of two classes, as if there were no others: their probabilities are scaled to sum to 1."""
        images = self.where((self.labels == first) | (self.labels == second))
        return replace(
            images,
            classes=(self.classes[first], self.classes[second]),
            labels=(images.labels == second).astype(np.int64),
            uncalibrated=_only(images.uncalibrated, first, second),
            calibrated=_only(images.calibrated, first, second),
        )

    def to_table(self, split: str) -> pd.DataFrame:
        """Return the rows of predictions.csv: what is known of each image, predicted class, probabilities."""
        names = np.array(self.classes, dtype=object)
        columns = {
            "image_id": self.image_ids,
            "split": split,
            "source": self.sources,
            "patient_id": self.patients,
            "block": self.blocks,
            "label": names[self.labels],
            "predicted_class": names[self.calibrated.argmax(axis=1)],
        }
        return pd.DataFrame(columns | {f"p_{name}": self.calibrated[:, c] for c, name in enumerate(self.classes)})


@dataclass(frozen=True)
class Outputs:
    """What a network makes of N images: raw scores (N, C) in fp32, and the features (K, D) of K of them, in order."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


def run_network(
    model: nn.Module, spec: ModelSpec, packed: ImageArray, images: pd.DataFrame, *, keep_features: NDArray[np.bool_]
) -> Outputs:
    """Run the network once over images; one batch of pixels is in memory.

    Args:
        model: in evaluation mode; it is moved to the best device there is.
        spec: its description.
        packed: the prepared images.
        images: a row an image, column image_id.
        keep_features: (N,), the images whose features are returned.
    """
    model.to(choose_device("auto"))
    rows = packed.rows(images["image_id"].tolist())
    logits, features = np.zeros((len(rows), len(spec.classes)), np.float32), []
    with tqdm(total=len(rows), desc="evaluate", unit=" images", disable=None) as bar:
        for start in range(0, len(rows), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            pixels = take(packed.images, rows[part])
            logits[part], of_batch = predict_with_features(model, pixels, mean=spec.mean, std=spec.std)
            features.append(of_batch[keep_features[part]])
            bar.update(len(pixels))
    return Outputs(logits, np.concatenate(features) if features else np.zeros((0, 0), np.float32))


def fit_calibration(spec: ModelSpec, logits: NDArray[np.float32], images: pd.DataFrame, *, fit_bias: bool) -> ModelSpec:
    """Return the spec with the temperature, and where asked for a bias a class, that fit the validation images.

    Args:
        spec: of the model.
        logits: (N, C), its raw scores.
        images: N rows, columns split ("validation" or another) and label.
        fit_bias: fit a bias a class beside the temperature.
    """
    is_validation = (images["split"] == "validation").to_numpy()
    logits, labels = logits[is_validation], _labels(spec, images)[is_validation]
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


def make_predictions(spec: ModelSpec, logits: NDArray[np.float32], images: pd.DataFrame) -> Predictions:
    """Return predictions from raw scores (N, C), calibrated as `spec` says.

    Args:
        spec: of the model.
        logits: (N, C).
        images: N rows, columns image_id, source, patient_id, block, label.
    """
    return Predictions(
        classes=spec.classes,
        image_ids=images["image_id"].to_numpy(object),
        sources=images["source"].to_numpy(object),
        patients=images["patient_id"].to_numpy(object),
        blocks=images["block"].to_numpy(np.int64),
        labels=_labels(spec, images),
        uncalibrated=softmax_with_temperature(logits, 1.0),
        calibrated=calibrated(logits, spec),
    )


def predict(model: nn.Module, spec: ModelSpec, packed: ImageArray, images: pd.DataFrame) -> Predictions:
    """Return a finished model's predictions, with the calibration it has; arguments as of the functions above."""
    no_features = np.zeros(len(images), bool)
    return make_predictions(spec, run_network(model, spec, packed, images, keep_features=no_features).logits, images)


def _only(probabilities: Floats, first: int, second: int) -> Floats:
    """Return two columns of probabilities (N, C), scaled so that rows sum to 1: (N, 2)."""
    two = np.maximum(probabilities[:, [first, second]], np.finfo(np.float64).tiny)
    return np.asarray(two / two.sum(axis=1, keepdims=True))


def _labels(spec: ModelSpec, images: pd.DataFrame) -> Ints:
    return np.array([spec.classes.index(label) for label in images["label"]], dtype=np.int64)
