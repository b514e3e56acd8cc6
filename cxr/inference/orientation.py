"""Which way up an image is: a warning for one that is upside down, on its side, mirrored or inverted.

A small network scores how much an image looks like an upright chest X-ray with bright bones. It scores all 16 versions
of an image, four turns, each mirrored or not, each inverted or not; the softmax over the scores says which version is
upright. The features are edge directions in two resolutions, on grids that a turn, a mirror or an inversion only
reorders, so the network is the same for each of them and the features are computed once.

It holds for any model: `orientation.safetensors` beside this file was fitted by benchmarks/orientation.py, which also
measures it on the images of people, and of a hospital, that it was not fitted on (docs/benchmarks.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from cxr.common.errors import WeightsError

WEIGHTS = Path(__file__).with_name("orientation.safetensors")

INVERTED = "looks inverted, with dark bones on a bright background, or is no chest X-ray: export it with bright bones"
UPSIDE_DOWN = "looks upside down, or is no frontal chest X-ray: turn it by 180 degrees"
ON_ITS_SIDE = "looks turned by 90 degrees, or is no frontal chest X-ray: turn it upright"
MIRRORED = "looks mirrored, with the heart on the wrong side: check the side marker, and export it unmirrored"

VERSIONS = 16
"""0 is the image, 1 to 3 turn it by as many quarters counter-clockwise; 4 to 7 mirror it first; 8 to 15 invert all."""

MIRRORED_LIMIT = 0.99
"""Probability, among upright ones, above which an image is called mirrored: hearts in the middle are common."""

_SIDES_PX = (64, 16)  # outlines of ribs and heart; the shape of the thorax
_CELLS = 8  # a side
_DIRECTIONS = 12  # a multiple of 4, so that a turn by 90 degrees only shifts them
_MAX_CELL = 2.0  # of a cell's edges in units of its neighbourhood's: one hard edge must not decide
_MIN_UPRIGHT = 0.2  # probability that it is neither turned nor inverted, below which a warning says so
_CHUNK = 64  # images at once: bounds the memory


@dataclass(frozen=True)
class OrientationCheck:
    """The fitted network: `hidden` (F, H), `bias` (H,), `output` (H,) for F features.

    An image is called mirrored where its mirror image is upright with a probability above `mirrored_limit`.
    """

    hidden: NDArray[np.float32]
    bias: NDArray[np.float32]
    output: NDArray[np.float32]
    mirrored_limit: float = MIRRORED_LIMIT

    def warnings(self, images: NDArray[np.uint8]) -> list[str | None]:
        """Return the warning for each of images (N, H, W), prepared or not; None for an upright one."""
        chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
        return [warning for chunk in chunks for warning in self.warnings_of(edge_features(chunk))]

    def warnings_of(self, features: NDArray[np.float32]) -> list[str | None]:
        """Return the warning for each of images with these `edge_features` (N, F)."""
        return [_warning(each, self.mirrored_limit) for each in self.probabilities(features)]

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return for each of images with these features (N, F) how probably each version is upright, (N, VERSIONS)."""
        scores = np.column_stack(
            [np.maximum(features[:, order] @ self.hidden + self.bias, 0) @ self.output for order in version_orders()]
        )
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


@cache
def orientation_check() -> OrientationCheck:
    """Return the check that this release ships.

    Raises:
        WeightsError: its file is missing or damaged.
    """
    try:
        arrays = load_file(WEIGHTS)
        hidden, bias, output = (arrays[name].astype(np.float32) for name in ("hidden", "bias", "output"))
        check = OrientationCheck(hidden, bias, output)
        if check.hidden.shape != (feature_count(), len(check.output)):
            raise ValueError(f"expected {feature_count()} features, found {check.hidden.shape[0]}")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{WEIGHTS} is missing or damaged ({error}); restore it with git checkout") from error
    return check


def feature_count() -> int:
    """Return the number of features of an image."""
    return len(_SIDES_PX) * _CELLS * _CELLS * _DIRECTIONS


def edge_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how much edge of each direction each cell of images (N, H, W) holds, (N, feature_count())."""
    fine = np.stack([_resized(image.astype(np.float32) / 255, _SIDES_PX[0]) for image in images])
    coarse = np.stack([_resized(image, _SIDES_PX[1]) for image in fine])
    return np.stack([_cells(fine), _cells(coarse)], axis=1).reshape(len(images), -1)


@cache
def version_orders() -> NDArray[np.int64]:
    """Return the order of an image's features that gives those of each of its versions, (VERSIONS, feature_count())."""
    directions, quarter, half = np.arange(_DIRECTIONS), _DIRECTIONS // 4, _DIRECTIONS // 2
    image = np.arange(feature_count()).reshape(len(_SIDES_PX), _CELLS, _CELLS, _DIRECTIONS)
    mirrored = image[:, :, ::-1][..., (half - directions) % _DIRECTIONS]
    turned = [
        np.rot90(each, turns, axes=(1, 2))[..., (directions + turns * quarter) % _DIRECTIONS]
        for each in (image, mirrored)
        for turns in range(4)
    ]
    inverted = [each[..., (directions + half) % _DIRECTIONS] for each in turned]
    return np.stack([each.ravel() for each in (*turned, *inverted)])


def _resized(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    shrinks = min(image.shape) >= side
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)


def _cells(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the edges of images (N, S, S) by cell and direction, (N, _CELLS, _CELLS, _DIRECTIONS)."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    weight = 1 / (np.sqrt(across * across + down * down) + 1e-6)
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    edges = [_pooled(np.float32(np.cos(a)) * across + np.float32(np.sin(a)) * down, weight) for a in angles]
    cells = np.stack(edges, axis=-1)
    energy = np.pad((cells**2).sum(axis=-1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = sum(energy[:, i : i + _CELLS, j : j + _CELLS] for i in range(3) for j in range(3)) / 9
    return np.minimum(cells / np.sqrt(around + 1e-4)[..., None], _MAX_CELL)


def _pooled(along: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean by cell of the edges `along` a direction, each times its cosine to the fourth power."""
    along = np.maximum(along, 0)
    cosine = along * weight
    edges = along * np.square(np.square(cosine))
    count, side = edges.shape[0], edges.shape[1] // _CELLS
    return np.asarray(edges.reshape(count, _CELLS, side, _CELLS, side).sum(axis=4).sum(axis=2) / side**2, np.float32)


def _warning(probabilities: NDArray[np.float32], mirrored_limit: float) -> str | None:
    """Return the warning for the probabilities (VERSIONS,) of an image."""
    upright, mirrored = probabilities[0], probabilities[4]
    if upright + mirrored >= _MIN_UPRIGHT:
        return MIRRORED if mirrored > mirrored_limit * (upright + mirrored) else None
    if probabilities[VERSIONS // 2 :].sum() > 0.5:
        return INVERTED
    by_turn = probabilities.reshape(4, 4).sum(axis=0)
    return UPSIDE_DOWN if by_turn[2] >= by_turn[1] + by_turn[3] else ON_ITS_SIDE
