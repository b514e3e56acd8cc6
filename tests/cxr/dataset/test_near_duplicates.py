"""Candidate pairs, correlations and groups of duplicates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cxr.dataset.inspect import perceptual_hash
from cxr.dataset.near_duplicates import candidate_pairs, connected_groups, correlation_of, similar_pairs

Thumbnails = NDArray[np.uint8]


def thumbnails(count: int, seed: int = 0) -> Thumbnails:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), dtype=np.uint8)


def hashes(images: Thumbnails) -> NDArray[np.uint64]:
    return np.array([perceptual_hash(image) for image in images], np.uint64)


def test_exposure_does_not_change_the_hash() -> None:
    image = thumbnails(1)[0] // 2
    assert perceptual_hash(image) == perceptual_hash(image + 40)


@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=6))
def test_hashes_that_differ_in_six_bits_or_fewer_are_always_candidates(one: int, flipped: set[int]) -> None:
    other = one ^ sum(1 << bit for bit in flipped)
    found = np.concatenate([*candidate_pairs(np.array([one, other], np.uint64))])
    assert np.unique(found, axis=0).tolist() == [[0, 1]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60))
def test_pairs_are_unique_and_ordered(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    few = thumbnails(4, seed)[generator.integers(0, 4, count)]
    pairs = [tuple(pair) for pair in similar_pairs(hashes(few), few, at_least=0.98).rows.tolist()]
    assert pairs == sorted(set(pairs))
    assert pairs == [(a, b) for a in range(count) for b in range(a + 1, count) if (few[a] == few[b]).all()]


def test_correlation_equals_numpys_and_is_0_for_a_single_grey_level() -> None:
    images = thumbnails(3)
    images[2] = 7
    found = correlation_of(images, np.array([[0, 1], [0, 2], [2, 2], [0, 0]]))
    expected = np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1]
    np.testing.assert_allclose(found, [expected, 0, 0, 1], atol=1e-5)


def test_a_noisy_copy_is_found_and_other_images_are_not() -> None:
    images = thumbnails(200)
    noise = np.random.default_rng(1).integers(-4, 5, (32, 32))
    images[150] = np.clip(images[3].astype(int) + noise, 0, 255)
    pairs = similar_pairs(hashes(images), images, at_least=0.98)
    assert pairs.rows.tolist() == [[3, 150]]
    assert pairs.correlation[0] == pytest.approx(np.corrcoef(images[3].ravel(), images[150].ravel())[0, 1], abs=1e-5)


def test_there_are_no_pairs_without_images() -> None:
    none = similar_pairs(np.empty(0, np.uint64), np.empty((0, 32, 32), np.uint8), at_least=0.5)
    assert none.rows.shape == (0, 2)


def test_pairs_join_into_groups() -> None:
    groups = connected_groups(5, np.array([[0, 1], [1, 4]]))
    assert groups[0] == groups[1] == groups[4]
    assert len({groups[0], groups[2], groups[3]}) == 3
