"""torch's compiler, imported when something is compiled.

It takes longer to import than torch and torchvision together, and torch imports it for functions that do nothing where
nothing is compiled: torchvision.ops for one that none of its classifiers calls, an optimizer to say what of itself is
not to be compiled. Here modules stand for it until something else of it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER, _UTILITIES = "torch._dynamo", "torch._dynamo.utils"


class _StandIn(ModuleType):
    """The compiler as an optimizer uses it; whatever else is asked for brings the compiler itself."""

    @staticmethod
    def disable(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        """Return the function, which nothing compiles."""
        return function

    @staticmethod
    def graph_break(*_: object) -> None:
        """Do nothing: no graph is recorded."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked by who looks at all modules, as `inspect` does
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return getattr(import_module(_COMPILER), name)


def leave_out_of_optimizers() -> None:
    """Let an optimizer work without the compiler, unless that is there; it still comes where something is compiled."""
    sys.modules.setdefault(_COMPILER, _StandIn(_COMPILER))


@contextmanager
def left_out_of_torchvision() -> Iterator[None]:
    """Let torchvision be imported without the compiler, unless that is there."""
    if _COMPILER in sys.modules:
        yield
        return
    utilities = ModuleType(_UTILITIES)
    vars(utilities)["is_compile_supported"] = _is_compile_supported
    sys.modules |= {_COMPILER: ModuleType(_COMPILER), _UTILITIES: utilities}
    try:
        yield
    finally:
        del sys.modules[_COMPILER], sys.modules[_UTILITIES]


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))
