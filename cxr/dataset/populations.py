"""Which images belong to a population that is trained with an output of its own (see cxr.models.populations)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from cxr.common.errors import DataError

if TYPE_CHECKING:
    from cxr.common.params import PopulationParams


def population_of(manifest: pd.DataFrame, populations: Sequence[PopulationParams]) -> pd.Series:
    """Return for each image of `manifest` the position of its population, -1 for none.

    Raises:
        DataError: a population holds no image, or two of them hold the same.
    """
    found = pd.Series(-1, index=manifest.index)
    numbers = manifest["acquisition_number"]
    for position, population in enumerate(populations):
        inside = (
            (manifest["label"] == population.label)
            & (manifest["source"] == population.source)
            & (manifest["acquisition_series"] == population.series)
            & (numbers >= population.first).fillna(False)
        )
        if population.last is not None:
            inside &= (numbers <= population.last).fillna(False)
        name = f"train.populations {population.name!r}"
        if not inside.any():
            raise DataError(
                f"{name} holds no image: none of source {population.source!r} and series {population.series!r} is "
                f"labelled {population.label} and numbered from {population.first}; correct or remove it"
            )
        if (found[inside] >= 0).any():
            raise DataError(f"{name} shares images with another population; give them ranges that do not overlap")
        found[inside] = position
    return found
