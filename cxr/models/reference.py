"""Measures of an image, and the reference of a model: the same measures of its validation and test images.

Scoring measures each image, so a later comparison reads numbers and no images. Training images are no reference: the
network has fitted them, so they lie closer together in feature space. The reference is one file next to the weights,
`reference.safetensors`, with plain arrays and no code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from cxr.common.errors import WeightsError
from cxr.common.files import atomic_file, sha256_of

REFERENCE_FILE = "reference.safetensors"
MEASURES = (
    "brightness",
    "contrast",
    "dark_share",
    "bright_share",
    "sharpness",
    "border",
    "left_right",
    "feature_distance",
)
"""The measures of an image; see `image_measures` and `FeatureSpace.distance`."""

_CHUNK = 64  # images per step: bounds the memory of the float copies
_DARK, _BRIGHT = 26, 229  # a tenth from either end of the grey levels
_FRAME = 16  # the border is 1/16 of the side
_DIRECTIONS = 32  # principal directions of the feature space, at most
_IMAGES_PER_DIRECTION = 8  # fewer images get fewer directions
_FOLDS = 5
_FORMAT = "1"


@dataclass(frozen=True)
class FeatureSpace:
    """The distribution of the reference's images in a network's pooled features.

    centre      (D,)
    directions  (K, D) orthonormal directions of the largest variance
    spread      (K,) standard deviation along each direction
    residual    root mean square of the features' length outside these directions
    """

    centre: NDArray[np.float32]
    directions: NDArray[np.float32]
    spread: NDArray[np.float32]
    residual: float

    def distance(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the distance (N,) of features (N, D) from the centre, 0 or more; about 1 for the reference's images.

        It is the root mean square over the directions and the residual, each in units of its own spread: a
        Mahalanobis distance with a covariance reduced to K directions and a residual.
        """
        centred = features.astype(np.float32) - self.centre
        along = centred @ self.directions.T
        outside = np.maximum((centred**2).sum(1) - (along**2).sum(1), 0) / self.residual**2
        squares = ((along / self.spread) ** 2).sum(1) + outside
        return np.asarray(np.sqrt(squares / (len(self.spread) + 1)), np.float32)

    def outside(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the share (N,), about 0 to 1, of the length of features (N, D) that lies outside the directions.

        A foreign picture activates a network less than a chest X-ray: it lies near the centre, where `distance` does
        not detect it, and outside the directions.
        """
        centred = features.astype(np.float32) - self.centre
        along = centred @ self.directions.T
        outside = np.sqrt(np.maximum((centred**2).sum(1) - (along**2).sum(1), 0))
        length = np.linalg.norm(features.astype(np.float32), axis=1)
        return np.asarray(outside / np.maximum(length, 1e-12), np.float32)


@dataclass(frozen=True)
class Reference:
    """The measures of N validation and test images of a model.

    classes     in the model's order
    space       see FeatureSpace
    measures    (N, len(MEASURES)), columns as in MEASURES
    confidence  (N,) largest calibrated probability
    predicted   (N,) index into `classes`
    patients    (N,) number of the image's patient, from 0; not an identifier
    outside     (N,) `FeatureSpace.outside` of each image, in a space fitted without its patient; None in references
                older than this field
    """

    classes: tuple[str, ...]
    space: FeatureSpace
    measures: NDArray[np.float32]
    confidence: NDArray[np.float32]
    predicted: NDArray[np.int64]
    patients: NDArray[np.int64]
    outside: NDArray[np.float32] | None = None


def measure(
    images: NDArray[np.uint8], features: NDArray[np.float32], reference: Reference
) -> dict[str, NDArray[np.float32]]:
    """Return each of MEASURES for N images, arrays (N,).

    Args:
        images: (N, H, W), preprocessed as in the model's spec.
        features: (N, D) of the same images, from `cxr.models.forward.predict_with_features`.
        reference: of the same model.
    """
    return image_measures(images) | {"feature_distance": reference.space.distance(features)}


def image_measures(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return the measures of N prepared images (N, H, W), arrays (N,); grey levels are 0 to 1.

    brightness    mean grey level
    contrast      standard deviation of the grey levels
    dark_share    share of nearly black pixels
    bright_share  share of nearly white pixels
    sharpness     mean step between neighbouring pixels, in units of the contrast
    border        mean grey level of the outer frame
    left_right    mean of the right half less that of the left half
    """
    chunks = [_image_measures(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
    names = MEASURES[:-1]
    return {name: np.concatenate([np.zeros(0, np.float32), *(chunk[name] for chunk in chunks)]) for name in names}


def _image_measures(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    grey = np.asarray(images, np.float32) / 255
    height, width = grey.shape[1:]
    contrast = grey.std(axis=(1, 2))
    steps = (np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))) / 2
    top, left = max(1, height // _FRAME), max(1, width // _FRAME)
    inner = grey[:, top:-top, left:-left]
    outside = height * width - inner.shape[1] * inner.shape[2]
    half = width // 2
    return {
        "brightness": grey.mean(axis=(1, 2)),
        "contrast": contrast,
        "dark_share": (images < _DARK).mean(axis=(1, 2), dtype=np.float32),
        "bright_share": (images > _BRIGHT).mean(axis=(1, 2), dtype=np.float32),
        "sharpness": steps / np.maximum(contrast, 1 / 255),
        "border": (grey.sum(axis=(1, 2)) - inner.sum(axis=(1, 2))) / outside,
        "left_right": grey[:, :, -half:].mean(axis=(1, 2)) - grey[:, :, :half].mean(axis=(1, 2)),
    }


def make_reference(
    *,
    classes: tuple[str, ...],
    images: NDArray[np.float32],
    features: NDArray[np.float32],
    probabilities: NDArray[np.floating],
    patients: NDArray[np.object_],
) -> Reference:
    """Make the reference of a model from N validation and test images.

    Args:
        classes: in the model's order.
        images: (N, len(MEASURES) - 1), their `image_measures` as columns.
        features: (N, D).
        probabilities: (N, C), calibrated.
        patients: (N,) patient of each image.
    """
    _, numbers = np.unique(patients.astype(str), return_inverse=True)
    distance, outside = _held_out(features, numbers)
    return Reference(
        classes=classes,
        space=fit_space(features),
        measures=np.column_stack([images, distance]).astype(np.float32),
        confidence=probabilities.max(axis=1).astype(np.float32),
        predicted=probabilities.argmax(axis=1).astype(np.int64),
        patients=numbers.astype(np.int64),
        outside=outside,
    )


def fit_space(features: NDArray[np.float32]) -> FeatureSpace:
    """Fit a FeatureSpace to features (N, D) of at least two images; few images get few directions."""
    from sklearn.decomposition import PCA  # takes seconds to import, and scoring only reads references

    count = max(1, min(_DIRECTIONS, len(features) // _IMAGES_PER_DIRECTION, features.shape[1] - 1))
    with np.errstate(invalid="ignore"):  # the explained share of zero variance, which is not used
        fitted = PCA(count, svd_solver="randomized", random_state=0).fit(features.astype(np.float64))
    centred = features - fitted.mean_
    outside = (centred**2).sum(1) - ((centred @ fitted.components_.T) ** 2).sum(1)
    tiny = 1e-6 * max(float(np.abs(features).max()), 1e-6)  # constant features: no division by zero
    return FeatureSpace(
        centre=fitted.mean_.astype(np.float32),
        directions=np.ascontiguousarray(fitted.components_, np.float32),
        spread=np.maximum(np.sqrt(fitted.explained_variance_), tiny).astype(np.float32),
        residual=max(float(np.sqrt(np.maximum(outside, 0).mean())), tiny),
    )


def folds_of(patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the random fold (N,), 0 to 4, of each image's patient."""
    return np.random.default_rng(0).permutation(int(patients.max()) + 1)[patients] % _FOLDS


def _held_out(
    features: NDArray[np.float32], patients: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each image's distance and outside share in a space that was fitted without its patient."""
    fold = folds_of(patients)
    distance, outside = np.zeros(len(features), np.float32), np.zeros(len(features), np.float32)
    for number in range(_FOLDS):
        held_out = fold == number
        if held_out.any():
            space = fit_space(features[~held_out] if (~held_out).sum() > 1 else features)
            distance[held_out] = space.distance(features[held_out])
            outside[held_out] = space.outside(features[held_out])
    return distance, outside


def write_reference(path: Path, reference: Reference) -> str:
    """Write `reference` to one file and return its SHA-256; equal references give equal bytes."""
    arrays = {
        "centre": reference.space.centre,
        "directions": reference.space.directions,
        "spread": reference.space.spread,
        "measures": reference.measures,
        "confidence": reference.confidence,
        "predicted": reference.predicted,
        "patients": reference.patients,
    } | ({} if reference.outside is None else {"outside": reference.outside})
    described = {"classes": reference.classes, "measures": MEASURES, "residual": reference.space.residual}
    # A single key, because safetensors does not fix the order of several.
    with atomic_file(path) as partial:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        metadata = {"reference": json.dumps({"format": _FORMAT} | described)}
        partial.write_bytes(save(contiguous, metadata=metadata))
    return sha256_of(path)


def read_reference(path: Path) -> Reference:
    """Read a file that `write_reference` wrote.

    Raises:
        WeightsError: the file is missing or damaged, or holds other measures.
    """
    advice = "run `./run dvc repro -f -s evaluate`, then `./run dvc repro register`"
    if not path.is_file():
        raise WeightsError(f"{path} is missing: the model was saved without reference statistics; {advice}")
    try:
        with safe_open(path, framework="numpy") as file:
            described = json.loads(file.metadata()["reference"])
        arrays = load_file(path)
        residual = float(described["residual"])
        same = described["format"] == _FORMAT and tuple(described["measures"]) == MEASURES
        space = FeatureSpace(arrays.pop("centre"), arrays.pop("directions"), arrays.pop("spread"), residual)
        reference = Reference(classes=tuple(described["classes"]), space=space, **arrays)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} does not hold reference statistics ({error}); {advice}") from error
    if not same:
        raise WeightsError(f"{path} holds other measures, {', '.join(described['measures'])}; {advice}")
    return reference
