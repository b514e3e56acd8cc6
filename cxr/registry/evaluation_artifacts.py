"""The evaluation artifacts of a version: its test metrics and its predictions, image by image, as registered.

A folder holds metrics.json and predictions.csv of one evaluation; a tag of the version keeps their common digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cxr.common.errors import DataError
from cxr.dataset.manifest import sha256_of_test_set
from cxr.evaluation.headline import BY_NAME
from cxr.evaluation.result_files import METRICS_FILE, PREDICTIONS_FILE, read_predictions

_AGREEMENT = 1e-3  # between the accuracies of metrics.json and predictions.csv: rounding, not another result


@dataclass(frozen=True)
class EvaluationArtifacts:
    """Metrics and predictions of the test images, and the version's tags. None: missing or not readable.

    images   the test rows of predictions.csv, see cxr.evaluation.predictions.Predictions.to_table
    changed  the files do not have the digest in the version's tag
    """

    metrics: Mapping[str, Any] | None
    images: pd.DataFrame | None
    tags: Mapping[str, str]
    changed: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in order; empty without metrics."""
        return tuple(self.metrics.get("classes", ())) if self.metrics else ()

    @property
    def synthetic(self) -> bool:
        """Trained and tested on synthetic images."""
        return self.tags.get("synthetic") == "true"

    @property
    def test_set_sha256(self) -> str:
        """Digest of the test images and their labels, as splits are named by; "" without predictions."""
        if self.images is None or self.images.empty:
            return ""
        return sha256_of_test_set(self.images)

    def metric(self, name: str) -> float | None:
        """Return a metric of cxr.evaluation.headline; None where it is missing or not a finite number."""
        return BY_NAME[name].stored_in(self.metrics)

    def recall(self, label: str) -> float | None:
        """Return the recall of a class on its test images, 0 to 1; None without any."""
        if self.images is None:
            return None
        of_class = self.images[self.images["label"] == label]
        return float((of_class["predicted_class"] == label).mean()) if len(of_class) else None

    def problems(self) -> list[str]:
        """Return what is missing, changed or contradictory, in words; empty where nothing is."""
        found = []
        if self.metrics is None:
            found.append(f"{METRICS_FILE} is missing or not JSON")
        if self.images is None:
            found.append(f"{PREDICTIONS_FILE} is missing or not a table of predictions")
        elif self.images.empty:
            found.append(f"{PREDICTIONS_FILE} has no test images")
        return found or self._contradictions()

    def _contradictions(self) -> list[str]:
        found = []
        if self.changed:
            found.append("the files were changed after registration")
        if (self.metrics or {}).get("n_test") != (0 if self.images is None else len(self.images)):
            found.append(f"{METRICS_FILE} counts a different number of test images than {PREDICTIONS_FILE}")
        if not self.classes:
            found.append(f"{METRICS_FILE} names no classes")
        if (self.metrics or {}).get("test_set_sha256") != self.test_set_sha256:
            found.append(f"{PREDICTIONS_FILE} is of another test set than {METRICS_FILE}")
        return found + self._contradictory_images()

    def _contradictory_images(self) -> list[str]:
        if self.images is None:
            return []
        found, counted = [], float((self.images["label"] == self.images["predicted_class"]).mean())
        claimed = self.metric("accuracy")  # a missing metric is a matter of its floor
        if claimed is not None and abs(claimed - counted) > _AGREEMENT:
            found.append(f"{METRICS_FILE} says accuracy {claimed:.3f}, {PREDICTIONS_FILE} gives {counted:.3f}")
        probabilities = self.images.filter(regex="^p_")
        if probabilities.empty:
            return [*found, f"{PREDICTIONS_FILE} has no probabilities"]
        if probabilities.isna().to_numpy().any():
            return [*found, f"{PREDICTIONS_FILE} has images without a probability"]
        likeliest = probabilities.idxmax(axis=1).str.slice(len("p_"))
        if wrong := int((likeliest != self.images["predicted_class"]).sum()):
            found.append(f"the predicted class of {wrong} images in {PREDICTIONS_FILE} is not their most probable one")
        return found


def read_evaluation(folder: Path | None, tags: Mapping[str, str], *, sha256: str) -> EvaluationArtifacts:
    """Read metrics.json and predictions.csv in `folder`, as far as they exist and can be read.

    Args:
        folder: where they are; None where the store has none.
        tags: of the version.
        sha256: what the store says evaluation_digest should be.
    """
    if folder is None:
        return EvaluationArtifacts(None, None, tags)
    changed = evaluation_digest(folder) != sha256
    return EvaluationArtifacts(
        _read_metrics(folder / METRICS_FILE), _read_images(folder / PREDICTIONS_FILE), tags, changed=changed
    )


def test_images(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the test rows of predictions.csv."""
    return predictions[predictions["split"] == "test"].reset_index(drop=True)


def evaluation_digest(folder: Path) -> str:
    """Return one SHA-256 over metrics.json and predictions.csv; a version's tag keeps it."""
    digest = hashlib.sha256()
    for name in (METRICS_FILE, PREDICTIONS_FILE):
        path = folder / name
        digest.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def _read_metrics(path: Path) -> Mapping[str, Any] | None:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, RecursionError, ValueError):
        return None
    return metrics if isinstance(metrics, dict) else None


def _read_images(path: Path) -> pd.DataFrame | None:
    try:
        return test_images(read_predictions(path))
    except DataError:
        return None
