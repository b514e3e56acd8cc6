"""Change points of agreement: found where planted, several of them, none without cause."""

import numpy as np
import pytest

from cxr.forensics.change_points import Persons, SearchSettings, find_change_points, seeded_intervals

SETTINGS = SearchSettings(alpha=0.01, sequences=1, permutations=199, resamples=200, seed=1)


def persons(rates: list[float], *, images: int = 2, each: int = 60, alike: bool = False, seed: int = 3) -> Persons:
    """Return `each` persons for each rate, numbered from 1; of `alike` persons all images agree, or none."""
    rng = np.random.default_rng(seed)
    rate = np.repeat(rates, each)
    agreeing = images * (rng.random(len(rate)) < rate) if alike else rng.binomial(images, rate)
    return Persons(np.arange(1, len(rate) + 1), np.full(len(rate), images), agreeing)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([0.9, 0.6], [61]),
        ([0.8, 0.2, 0.8], [61, 121]),
        # Up and down: the halves have equal rates, so a single cut of the whole sequence sees nothing.
        ([0.8, 0.2, 0.8, 0.2], [61, 121, 181]),
    ],
)
def test_each_change_is_found_near_its_place(rates: list[float], expected: list[int]) -> None:
    found = find_change_points(persons(rates), SETTINGS)
    assert len(found) == len(expected)
    for point, number, before, after in zip(found, expected, rates, rates[1:], strict=False):
        assert point.interval.low - 3 <= number <= point.interval.high + 3
        assert abs(point.number - number) <= 10
        assert (point.before, point.after) == (pytest.approx(before, abs=0.12), pytest.approx(after, abs=0.12))
        assert point.p_value < SETTINGS.alpha


def test_a_constant_rate_has_no_change_point_more_often_than_alpha_allows() -> None:
    found = [bool(find_change_points(persons([0.7], each=80, seed=seed), SETTINGS)) for seed in range(20)]
    assert sum(found) <= 1


def test_many_images_of_few_persons_are_no_evidence() -> None:
    """As independent images these would show a change in about half of the sequences."""
    found = [
        bool(find_change_points(persons([0.7], images=10, each=80, alike=True, seed=seed), SETTINGS))
        for seed in range(20)
    ]
    assert sum(found) <= 1


def test_persons_of_one_number_are_not_divided() -> None:
    one = persons([0.9, 0.1], each=50)
    same_day = Persons(np.repeat([1, 2], 50), one.images, one.agreeing)
    (point,) = find_change_points(same_day, SETTINGS)
    assert point.number == 2


def test_a_short_sequence_has_no_interval_to_search() -> None:
    assert seeded_intervals(39) == []
    assert find_change_points(persons([1.0, 0.0], each=19), SETTINGS) == []
