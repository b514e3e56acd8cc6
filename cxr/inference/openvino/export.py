"""Export a network from torch to OpenVINO.

The graph takes prepared images (grey levels, uint8) and returns scores and features; its tensors are stored as float16.
It is used only in precisions that cxr.inference.openvino.agreement accepts.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cxr.common.errors import WeightsError
from cxr.inference.openvino.runtime import GRAPH_FILE, GRAPH_WEIGHTS_FILE, RUNTIME_FILE, first_line, import_openvino
from cxr.models.factory import logits_and_features
from cxr.models.forward import to_input

if TYPE_CHECKING:
    from cxr.models.bundle import ModelSpec

_SAVED_WEIGHTS = ".bin"  # OpenVINO's name for them; no file here has the ending of a pickle


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


def remove_runtime(folder: Path) -> None:
    """Remove the files of an export in `folder`, complete or not."""
    leftover = (folder / GRAPH_FILE).with_suffix(_SAVED_WEIGHTS)
    for path in (folder / GRAPH_FILE, folder / GRAPH_WEIGHTS_FILE, folder / RUNTIME_FILE, leftover):
        path.unlink(missing_ok=True)


class _FromImages(nn.Module):
    """A network that takes prepared images."""

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, spec.mean, spec.std

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (N, H, W) uint8 into scores (N, C) and features (N, D)."""
        return logits_and_features(self.network, to_input(images.unsqueeze(1).float() / 255, self.mean, self.std))
