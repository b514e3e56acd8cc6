"""`make fuzz`: what it damages is readable before, and what the product must not raise is found."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support import fuzz

WHOLE = [fuzz.archive, fuzz.labels, fuzz.parameters, fuzz.feedback, fuzz.dicomweb, fuzz.message]


@pytest.fixture(scope="module", autouse=True)
def _servers_end() -> Iterator[None]:
    """End the servers that inputs start: their threads would hold this process for ever."""
    with fuzz.SERVERS:
        yield


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.__name__)
def test_an_input_is_readable_before_it_is_damaged(kind: fuzz.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_PATIENT_KEY", "0" * 64)
    monkeypatch.setattr(fuzz, "damaged", lambda _rng, data: data)
    kind(0, np.random.default_rng(0))


def test_an_error_that_is_not_the_products_own_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(number: int, rng: np.random.Generator) -> None:
        raise KeyError(number, rng)

    monkeypatch.setattr(fuzz, "KINDS", (planted,))
    ((number, outcome),) = fuzz.run_inputs(7, 1, until=float("inf"), at=None)
    assert number == 7
    assert outcome.startswith("FOUND")
    assert "KeyError" in outcome


def test_a_number_always_gives_the_same_bytes() -> None:
    first, again = (fuzz.damaged(np.random.default_rng(5), b"some bytes to damage") for _ in range(2))
    assert first == again
