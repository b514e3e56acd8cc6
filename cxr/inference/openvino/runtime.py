"""The exported network on a CPU through OpenVINO, several times faster than torch: loading and running it.

`runtime.xml`, `runtime.weights`   the graph, from prepared images to scores and features, and its tensors
`runtime.json`                     the precisions in which it agreed with torch (cxr/inference/openvino/agreement.py)

Neither torch nor the model's own weights are loaded here, so that a first answer does not wait for them. Nothing
compiled is kept on disk: the graph compiles in less than a second, and a damaged cache would go unnoticed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import WeightsError
from cxr.common.files import read_json

if TYPE_CHECKING:
    from openvino import Core

GRAPH_FILE, GRAPH_WEIGHTS_FILE, RUNTIME_FILE = "runtime.xml", "runtime.weights", "runtime.json"

Precision = Literal["bf16", "f32"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "f32")  # the fastest first


class Runtime:
    """An exported network, compiled for this machine's processor; thread-safe, one call at a time.

    name   for people: "openvino bf16"
    """

    def __init__(self, folder: Path, precision: Precision) -> None:
        """Compile the graph in `folder`.

        Raises:
            WeightsError: the files are missing or damaged.
        """
        core = _core()
        graph, weights = folder / GRAPH_FILE, folder / GRAPH_WEIGHTS_FILE
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            # A pinned thread waits behind whatever else runs on its core, and the others spin until it is done.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            self._request = core.compile_model(
                core.read_model(model=graph, weights=weights), "CPU", settings
            ).create_infer_request()
        except RuntimeError as error:
            raise WeightsError(f"{graph} cannot be loaded ({first_line(error)}); fetch the model again") from error
        self._lock = Lock()
        self.name = f"openvino {precision}"

    def logits_and_features(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the raw scores (N, C) of prepared images (N, H, W) and the features (N, D) that the head takes."""
        with self._lock:
            found = self._request.infer([np.ascontiguousarray(images)])
            return np.array(found[0], np.float32), np.array(found[1], np.float32)


def native_precisions() -> tuple[Precision, ...]:
    """Return the precisions that this processor computes in without emulation, the fastest first."""
    able = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(precision for precision in PRECISIONS if precision == "f32" or "BF16" in able)


def load_runtime(folder: Path) -> Runtime | None:
    """Load the exported network in the bundle `folder`, in the fastest precision accepted for this processor.

    Returns None where the version has no export, or none that agreed with torch in a precision of this processor.

    Raises:
        WeightsError: the files are missing or damaged.
    """
    if not (folder / RUNTIME_FILE).is_file():
        return None
    try:
        agreed = set(read_json(folder / RUNTIME_FILE)["agrees_in"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / RUNTIME_FILE} is not a runtime's description; fetch the model again") from error
    usable = [precision for precision in native_precisions() if precision in agreed]
    return Runtime(folder, usable[0]) if usable else None


def first_line(error: Exception) -> str:
    """Return the line of OpenVINO's error that says what is wrong; the others name lines of its source."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")] or [type(error).__name__]
    telling = [line for line in lines if not line.startswith(("Check ", "Exception from ", "FrontEnd API"))]
    return next((line for line in telling if "No conversion rule" in line), (telling or lines)[0])[:300]


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry, which reports each import to its maker; OpenVINO has a stub for that."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's own mark of what cannot be imported
    return import_module("openvino")


def _core() -> Core:
    core: Core = import_openvino().Core()
    return core
