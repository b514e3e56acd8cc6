"""How far an exported network is from torch: measured on the validation images, and accepted where it is near enough.

An export is used only in precisions in which it stays within bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cxr.common.files import write_json
from cxr.common.on_disk import take
from cxr.evaluation.metrics import measure
from cxr.inference.openvino.runtime import RUNTIME_FILE, Precision, Runtime, native_precisions
from cxr.models.forward import BATCH_SIZE, calibrated

if TYPE_CHECKING:
    from cxr.models.bundle import ModelSpec


@dataclass(frozen=True)
class ValidationAnswers:
    """Validation images and torch's answers to them.

    images         (N, H, W) prepared images; may be memory-mapped
    rows           (M,) which of them
    labels         (M,) indices of classes
    probabilities  (M, C) of torch, calibrated
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """The difference of an engine from torch on the same images, after calibration; also the bounds of it.

    probability    largest difference of any image's probability of any class
    changed_share  share of the images whose predicted class differs
    accuracy, macro_f1   differences of the metrics
    """

    probability: float
    changed_share: float
    accuracy: float
    macro_f1: float

    def within(self, bounds: Agreement) -> bool:
        """Return whether no figure is larger than in `bounds`."""
        most = asdict(bounds)
        return all(value <= most[name] for name, value in asdict(self).items())

    def __str__(self) -> str:
        return (
            f"probability {self.probability:.4f}, changed classes {self.changed_share:.4f}, "
            f"accuracy {self.accuracy:.4f}, macro-F1 {self.macro_f1:.4f}"
        )


def accept_runtime(
    folder: Path, spec: ModelSpec, validation: ValidationAnswers, bounds: Agreement
) -> dict[Precision, Agreement]:
    """Compare the exported graph in `folder` with torch in each precision of this processor.

    Writes RUNTIME_FILE with the precisions within `bounds`, where there is one.

    Returns:
        The difference by precision, within bounds or not.

    Raises:
        WeightsError: the graph cannot be loaded.
    """
    found = {precision: _agreement(Runtime(folder, precision), spec, validation) for precision in native_precisions()}
    agreed = [precision for precision, agreement in found.items() if agreement.within(bounds)]
    if agreed:
        described = {name: asdict(agreement) for name, agreement in found.items()}
        write_json(
            folder / RUNTIME_FILE,
            {"agrees_in": agreed, "images": len(validation.rows), "agreement": described, "bounds": asdict(bounds)},
        )
    return found


def agreement_of(
    ours: NDArray[np.float64], torchs: NDArray[np.float64], labels: NDArray[np.int64], spec: ModelSpec
) -> Agreement:
    """Compare probabilities (N, C) of the same images, N at least 1, with those of torch."""
    here, there = measure(labels, ours, spec.classes), measure(labels, torchs, spec.classes)
    return Agreement(
        probability=float(np.abs(ours - torchs).max()),
        changed_share=float((ours.argmax(axis=1) != torchs.argmax(axis=1)).mean()),
        accuracy=abs(here.score("accuracy") - there.score("accuracy")),
        macro_f1=abs(here.score("macro_f1") - there.score("macro_f1")),
    )


def tags_of(found: Mapping[Precision, Agreement], bounds: Agreement) -> dict[str, str]:
    """Return the differences as tags of a version."""
    agreed = [precision for precision, agreement in found.items() if agreement.within(bounds)]
    differences = "; ".join(f"{precision}: {agreement}" for precision, agreement in found.items())
    return {
        "runtime": f"openvino {', '.join(agreed)}" if agreed else "none: not within the bounds",
        "runtime_agreement": differences,
        "runtime_bounds": str(bounds),
    }


def _agreement(runtime: Runtime, spec: ModelSpec, validation: ValidationAnswers) -> Agreement:
    logits = []
    with tqdm(total=len(validation.rows), desc=runtime.name, unit=" images", disable=None) as bar:
        for start in range(0, len(validation.rows), BATCH_SIZE):
            images = take(validation.images, validation.rows[start : start + BATCH_SIZE])
            logits.append(runtime.logits_and_features(images)[0])
            bar.update(len(images))
    return agreement_of(calibrated(np.concatenate(logits), spec), validation.probabilities, validation.labels, spec)
