"""Types of parameters with their ranges; what lies outside is a mistake, not an experiment."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field


def _names_something(path: Path) -> Path:
    if not path.name.strip():
        raise ValueError("must name a file or folder other than the project itself")
    return path


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
GreyRange = Annotated[list[Grey], Field(min_length=2, max_length=2)]
Range = Annotated[list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=2, max_length=2)]
Whole = Annotated[int, Field(ge=0, le=1_000_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Resamples = Annotated[int, Field(ge=100, le=1_000_000)]
Workers = Annotated[int, Field(ge=0, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # as NumPy and scikit-learn take them
