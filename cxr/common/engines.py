"""The engines that compute answers, by the names that commands and functions take."""

from importlib.util import find_spec
from typing import Literal, get_args

from cxr.common.errors import ParamsError

Engine = Literal["torch", "openvino"]
"""`torch`: bit for bit the answers of the evaluation. `openvino`: the exported network, several times faster."""

ENGINES: tuple[Engine, ...] = get_args(Engine)

NO_TORCH = (
    "torch is not installed, which heat maps and the engine torch need: "
    "`make setup FOR=use` builds an environment with it"
)


def has_torch() -> bool:
    """Say whether torch is installed, without importing it: a machine that only answers does without."""
    return find_spec("torch") is not None


def require_torch() -> None:
    """Raise ParamsError where torch is not installed."""
    if not has_torch():
        raise ParamsError(NO_TORCH)
