"""What an image measures, and the reference of a model: the same measures of images that it was judged on.

An image is measured when it is scored, so that a comparison months later reads numbers and no images. The reference
comes from validation and test images: training images are too tidy in feature space, for the network has seen them.
It is one file beside the weights, `reference.safetensors`: plain arrays, no code, one digest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

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
"""What `measure` says of each image; see `image_measures` and `FeatureSpace.distance`."""

_CHUNK = 64  # images at once: bounds the float copies
_DARK, _BRIGHT = 26, 229  # a tenth from either end of the grey levels
_FRAME = 16  # the border is a sixteenth of the side
_DIRECTIONS = 32  # of feature space that are told apart
_IMAGES_A_DIRECTION = 8  # fewer images carry fewer directions
_FOLDS = 5
_FORMAT = "1"


@dataclass(frozen=True)
class FeatureSpace:
    """Where the reference's images lie among a network's pooled features.

    centre     (D,)
    directions (K, D), orthonormal, of the largest spread
    spread     (K,) standard deviation along each
    residual   root mean square of what lies outside these directions
    """

    centre: NDArray[np.float32]
    directions: NDArray[np.float32]
    spread: NDArray[np.float32]
    residual: float

    def distance(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how far features (N, D) lie from the centre, (N,), 0 or more; about 1 for the reference's own images.

        The root of the mean square over the directions and what lies outside them, each in units of its own spread:
        a Mahalanobis distance with a covariance that is shrunk to K directions and a remainder.
        """
        moved = features.astype(np.float32) - self.centre
        along = moved @ self.directions.T
        outside = np.maximum((moved**2).sum(1) - (along**2).sum(1), 0) / self.residual**2
        squares = ((along / self.spread) ** 2).sum(1) + outside
        return np.asarray(np.sqrt(squares / (len(self.spread) + 1)), np.float32)

    def outside(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how much of features (N, D) no image of the reference explains, (N,), about 0 to 1.

        Their length outside the directions as a share of their whole length. A picture of another kind excites a
        network less than an image: it lies near the centre, where `distance` sees nothing, and off the directions.
        """
        moved = features.astype(np.float32) - self.centre
        along = moved @ self.directions.T
        outside = np.sqrt(np.maximum((moved**2).sum(1) - (along**2).sum(1), 0))
        length = np.linalg.norm(features.astype(np.float32), axis=1)
        return np.asarray(outside / np.maximum(length, 1e-12), np.float32)


@dataclass(frozen=True)
class Reference:
    """N images that a model was judged on, as numbers.

    classes     in the model's order
    space       see FeatureSpace
    measures    (N, len(MEASURES)), columns as in MEASURES
    confidence  (N,) largest calibrated probability
    predicted   (N,) index into `classes`
    patients    (N,) number of the image's patient, counted from 0; no name
    outside     (N,) `FeatureSpace.outside` of each image, in a space fitted without its patient; None in references
                of before there was such a thing
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
        images: (N, H, W), prepared as the model's spec says.
        features: (N, D), what the network's head saw of the same images (`cxr.models.forward.predict_with_features`).
        reference: of the same model.
    """
    return image_measures(images) | {"feature_distance": reference.space.distance(features)}


def image_measures(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return what N prepared images (N, H, W) measure, arrays (N,); grey levels run from 0 to 1.

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
    """Make the reference of a model from N images that it was judged on.

    Args:
        classes: in the model's order.
        images: (N, len(MEASURES) - 1), their `image_measures` as columns.
        features: (N, D).
        probabilities: (N, C), calibrated.
        patients: (N,) whose image it is.
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
    from sklearn.decomposition import PCA

    count = max(1, min(_DIRECTIONS, len(features) // _IMAGES_A_DIRECTION, features.shape[1] - 1))
    with np.errstate(invalid="ignore"):  # a share of no variance, which is not used
        fitted = PCA(count, svd_solver="randomized", random_state=0).fit(features.astype(np.float64))
    moved = features - fitted.mean_
    outside = (moved**2).sum(1) - ((moved @ fitted.components_.T) ** 2).sum(1)
    tiny = 1e-6 * max(float(np.abs(features).max()), 1e-6)  # features that never vary: no division by zero
    return FeatureSpace(
        centre=fitted.mean_.astype(np.float32),
        directions=np.ascontiguousarray(fitted.components_, np.float32),
        spread=np.maximum(np.sqrt(fitted.explained_variance_), tiny).astype(np.float32),
        residual=max(float(np.sqrt(np.maximum(outside, 0).mean())), tiny),
    )


def folds_of(patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each image (N,) which of five folds its patient is in, drawn by chance."""
    return np.random.default_rng(0).permutation(int(patients.max()) + 1)[patients] % _FOLDS


def _held_out(
    features: NDArray[np.float32], patients: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each image's distance and outside share in a space fitted without its patient: its own fits too well."""
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
    """Write `reference` to one file; return its SHA-256. The same reference gives the same bytes."""
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
    # One key: the order of several in the file is not fixed.
    with atomic_file(path) as partial:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(contiguous, partial, metadata={"reference": json.dumps({"format": _FORMAT} | described)})
    return sha256_of(path)


def read_reference(path: Path) -> Reference:
    """Read what write_reference wrote.

    Raises:
        WeightsError: missing, damaged, or of images measured in another way; says what to do.
    """
    advice = "run `dvc repro -f -s evaluate`, then `dvc repro register`"
    if not path.is_file():
        raise WeightsError(f"{path} is missing: this model was saved without reference statistics; {advice}")
    try:
        with safe_open(path, framework="numpy") as file:
            described = json.loads(file.metadata()["reference"])
        arrays = load_file(path)
        residual = float(described["residual"])
        same = described["format"] == _FORMAT and tuple(described["measures"]) == MEASURES
        space = FeatureSpace(arrays.pop("centre"), arrays.pop("directions"), arrays.pop("spread"), residual)
        reference = Reference(classes=tuple(described["classes"]), space=space, **arrays)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is not a model's reference statistics ({error}); {advice}") from error
    if not same:
        raise WeightsError(f"{path} holds {', '.join(described['measures'])}, this code measures others; {advice}")
    return reference
