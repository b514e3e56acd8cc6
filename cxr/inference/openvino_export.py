"""Export a network to OpenVINO and measure how far the export is from torch.

The graph takes prepared images (grey levels, uint8) and returns scores and features; its tensors are stored as float16.
It is used only in precisions in which it stays within bounds on the validation images.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from cxr.common.errors import WeightsError
from cxr.common.files import write_json
from cxr.evaluation.metrics import measure
from cxr.inference.openvino import (
    GRAPH_FILE,
    GRAPH_WEIGHTS_FILE,
    RUNTIME_FILE,
    Precision,
    Runtime,
    first_line,
    import_openvino,
    native_precisions,
)
from cxr.models.factory import logits_and_features
from cxr.models.forward import BATCH_SIZE, calibrated, to_input

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cxr.models.bundle import ModelSpec

_SAVED_WEIGHTS = ".bin"  # OpenVINO's name for them; no file here has the ending of a pickle


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


def export_runtime(network: nn.Module, spec: ModelSpec, folder: Path) -> None:
    """Write the graph of `network`, in evaluation mode on the CPU, and its tensors into `folder`.

    Raises:
        WeightsError: OpenVINO cannot express this network.
    """
    openvino = import_openvino()

    side = spec.preprocessing.image_size_px
    example = torch.zeros((2, side, side), dtype=torch.uint8)
    with _root_log_level_kept(), warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of sizes that are constants of this graph
        try:
            graph = openvino.convert_model(_FromImages(network, spec).eval(), example_input=example)
            graph.reshape([-1, side, side])
            openvino.save_model(graph, folder / GRAPH_FILE, compress_to_fp16=True)
        except Exception as error:  # its converter raises many types
            raise WeightsError(f"OpenVINO cannot express this network: {first_line(error)}") from error
    (folder / GRAPH_FILE).with_suffix(_SAVED_WEIGHTS).replace(folder / GRAPH_WEIGHTS_FILE)


@contextmanager
def _root_log_level_kept() -> Iterator[None]:
    """Restore the level of the root logger: after a failure OpenVINO's converter leaves it at ERROR for the process."""
    level = logging.root.level
    try:
        yield
    finally:
        logging.root.setLevel(level)


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


def remove_runtime(folder: Path) -> None:
    """Remove the files of an export in `folder`, complete or not."""
    leftover = (folder / GRAPH_FILE).with_suffix(_SAVED_WEIGHTS)
    for path in (folder / GRAPH_FILE, folder / GRAPH_WEIGHTS_FILE, folder / RUNTIME_FILE, leftover):
        path.unlink(missing_ok=True)


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
            images = validation.images[validation.rows[start : start + BATCH_SIZE]]
            logits.append(runtime.logits_and_features(images)[0])
            bar.update(len(images))
    return agreement_of(calibrated(np.concatenate(logits), spec), validation.probabilities, validation.labels, spec)


class _FromImages(nn.Module):
    """A network that takes prepared images."""

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, spec.mean, spec.std

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (N, H, W) uint8 into scores (N, C) and features (N, D)."""
        return logits_and_features(self.network, to_input(images.unsqueeze(1).float() / 255, self.mean, self.std))
