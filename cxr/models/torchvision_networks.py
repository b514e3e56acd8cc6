"""torchvision's networks, imported without torch's compiler."""

from cxr.models.compiler_on_use import left_out_of_torchvision

__all__ = ["models"]

with left_out_of_torchvision():
    from torchvision import models
