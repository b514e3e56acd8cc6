"""A population is a range of the order of acquisition; one that holds no image, or another's, is an error."""

from typing import Any

import pandas as pd
import pytest

from cxr.common.errors import DataError
from cxr.common.params import PopulationParams
from cxr.dataset.populations import population_of

MANIFEST = pd.DataFrame(
    {
        "label": ["bacterial", "bacterial", "viral", "bacterial", "bacterial"],
        "source": ["a", "a", "a", "b", "a"],
        "acquisition_series": ["bacteria", "bacteria", "virus", "bacteria", None],
        "acquisition_number": pd.array([5, 12, 12, 12, None], "Int64"),
    }
)


def population(**changes: Any) -> PopulationParams:
    values = {"name": "late", "label": "bacterial", "source": "a", "series": "bacteria", "weight": 0.1}
    return PopulationParams.model_validate(values | {"first": 10, "last": None} | changes)


def test_only_images_of_the_class_series_and_range_belong_to_it() -> None:
    assert population_of(MANIFEST, [population()]).tolist() == [-1, 0, -1, -1, -1]
    early = population(name="early", first=0, last=9)
    assert population_of(MANIFEST, [population(), early]).tolist() == [1, 0, -1, -1, -1]


def test_a_population_without_images_or_with_anothers_is_an_error() -> None:
    with pytest.raises(DataError, match="'late' holds no image"):
        population_of(MANIFEST, [population(series="bacterium")])
    with pytest.raises(DataError, match="'all' shares images"):
        population_of(MANIFEST, [population(), population(name="all", first=0)])
