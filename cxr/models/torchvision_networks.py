"""torchvision's networks, imported without torch's compiler.

torchvision.ops imports torch._dynamo for one function that none of its classifiers calls, and the compiler takes longer
to import than torch and torchvision together. Here it is imported when that function is called.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["models"]

_COMPILER, _UTILITIES = "torch._dynamo", "torch._dynamo.utils"


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


@contextmanager
def _compiler_on_use() -> Iterator[None]:
    """Give imports a module that stands for the compiler and has that one function, unless the compiler is there."""
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


with _compiler_on_use():
    from torchvision import models
