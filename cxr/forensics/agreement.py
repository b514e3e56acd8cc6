"""Agreement of labels with out-of-fold predictions along the order of acquisition: change points, and block by block.

A sequence is the images of one class in one series of one source. Series of a source that share patients, such as the
two agents of Kermany's set, count along one axis: the strongest change point of an axis divides the images of all its
series in an early and a late era; without a change point the median number does.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.dataset.near_duplicates import connected_groups
from cxr.evaluation.bootstrap import MIN_PATIENTS, Interval, Resampling
from cxr.evaluation.rates import Ints
from cxr.forensics.change_points import ChangePoint, SearchSettings, find_change_points, persons_of
from cxr.forensics.style_probes import EARLY, LATE


@dataclass(frozen=True)
class Block:
    """A run of persons: first and last acquisition number, and the rate of agreement with its interval over persons."""

    first: int
    last: int
    persons: int
    images: int
    agreement: float
    interval: Interval | None


@dataclass(frozen=True)
class Sequence:
    """The images of class `label` in `series` along their acquisition numbers."""

    series: str
    label: str
    persons: int
    images: int
    change_points: list[ChangePoint]
    blocks: list[Block]


@dataclass(frozen=True)
class Era:
    """Where the late era of the series on one axis begins, and whether that is a change point."""

    series: tuple[str, ...]
    begins: int
    is_change_point: bool


def sequences_of(images: pd.DataFrame, settings: SearchSettings, *, blocks: int) -> list[Sequence]:
    """Return the sequences of a source that have persons enough for an interval.

    Args:
        images: of one source: series, number (missing where unknown), label, person, agrees (0 or 1).
        settings: `sequences` is replaced by the number of sequences here.
        blocks: largest number of blocks of a sequence.
    """
    ordered = images.dropna(subset=["number"]).astype({"number": "int64"})
    tables = [
        (series, label, table)
        for (series, label), table in ordered.groupby(["series", "label"])
        if table["person"].nunique() >= MIN_PATIENTS
    ]
    search = replace(settings, sequences=max(len(tables), 1))
    return [
        Sequence(
            series=str(series),
            label=str(label),
            persons=table["person"].nunique(),
            images=len(table),
            change_points=find_change_points(persons_of(table), search),
            blocks=_blocks(table, blocks, settings),
        )
        for series, label, table in tables
    ]


def eras_of(images: pd.DataFrame, sequences: list[Sequence]) -> tuple[list[Era], Ints]:
    """Return the eras of a source, and the era of each image: EARLY, LATE or -1.

    Args:
        images: as of `sequences_of`, with patient_id.
        sequences: of these images.
    """
    era = np.full(len(images), -1, np.int64)
    eras = []
    for series in _axes(images):
        rows = np.flatnonzero(images["series"].isin(series) & images["number"].notna())
        numbers = images["number"].iloc[rows].to_numpy(np.int64)
        points = [point for one in sequences if one.series in series for point in one.change_points]
        strongest = max(points, key=lambda point: point.likelihood_ratio, default=None)
        begins = int(np.median(numbers)) if strongest is None else strongest.number
        era[rows] = np.where(numbers >= begins, LATE, EARLY)
        eras.append(Era(series, begins, strongest is not None))
    return eras, era


def high_agreement(images: pd.DataFrame, sequence: Sequence) -> NDArray[np.bool_]:
    """Return for each image of `sequence` whether it is in a run whose agreement is above the mean of the runs."""
    numbers = images["number"].to_numpy(np.int64)
    rates = np.array([sequence.change_points[0].before, *(point.after for point in sequence.change_points)])
    run = np.searchsorted([point.number for point in sequence.change_points], numbers, side="right")
    return np.asarray(rates[run] > rates.mean())


def _axes(images: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return the series that share patients, as sorted groups."""
    known = images.dropna(subset=["number"])
    if not len(known):
        return []
    codes, names = pd.factorize(known["series"], sort=True)
    first = pd.Series(codes).groupby(known["patient_id"].to_numpy()).transform("first").to_numpy()
    group = connected_groups(len(names), np.stack([codes, first], axis=1).astype(np.int64))
    return [tuple(str(name) for name in names[group == one]) for one in np.unique(group)]


def _blocks(table: pd.DataFrame, at_most: int, settings: SearchSettings) -> list[Block]:
    first_number = table.groupby("person")["number"].min()
    persons = first_number.sort_values(kind="stable").index
    count = max(1, min(at_most, len(persons) // MIN_PATIENTS))
    found = []
    for part in np.array_split(persons.to_numpy(), count):
        block = table[table["person"].isin(part)]
        agrees = block["agrees"].to_numpy(np.float64)
        draws = Resampling(block["person"].to_numpy(str), settings.resamples, settings.seed)
        (interval,) = draws.ratios(agrees[:, None], np.ones((len(block), 1)))
        found.append(
            Block(
                int(block["number"].min()),
                int(block["number"].max()),
                len(part),
                len(block),
                float(agrees.mean()),
                interval,
            )
        )
    return found
