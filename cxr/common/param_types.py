"""The base of all sections, and types of parameters with their ranges: what lies outside is a mistake."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _names_something(path: Path) -> Path:
    if not path.name.strip() or Path.cwd().is_relative_to(os.path.realpath(path)):
        raise ValueError("must name a file or folder other than the project itself and those around it")
    if ".." in path.parts:
        raise ValueError("must be without `..`; give a folder outside the project from the root on")
    return path


def _rising(limits: list[float]) -> list[float]:
    if limits[0] > limits[1]:
        raise ValueError("the first of two limits must not be above the second")
    return limits


ProjectPath = Annotated[
    Path,
    BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value),
    AfterValidator(_names_something),
]
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Megabytes = Annotated[float, Field(gt=0, le=65_536)]
Grey = Annotated[float, Field(ge=0, le=255)]
Whole = Annotated[int, Field(ge=0, le=1_000_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
_Limits = (Field(min_length=2, max_length=2), AfterValidator(_rising))
GreyRange = Annotated[list[Grey], *_Limits]
CountRange = Annotated[list[Count], *_Limits]
Range = Annotated[list[Annotated[float, Field(gt=0, le=100)]], *_Limits]
Resamples = Annotated[int, Field(ge=100, le=1_000_000)]
Workers = Annotated[int, Field(ge=0, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # as NumPy and scikit-learn take them
Backbone = Literal[
    "alexnet",
    "densenet121",
    "inception_v3",
    "mobilenet_v2",
    "resnet50",
    "small_cnn",
    "vgg16",
    "vgg19",
    "xception",
]


class Section(BaseModel):
    """Base of all sections: strict, frozen, no extra keys, no infinite numbers."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
