"""Agreement of readers by month, with Wilson's interval."""

import pytest

from cxr.inference.feedback import Feedback
from cxr.monitoring.agreement import agreement_by_month, wilson_interval


def said(image: int, label: str, *, month: str = "2026-03", version: str = "12") -> Feedback:
    return Feedback(f"{month}-01T00:00:00+00:00", f"{image:064x}", version, "viral", label)


def test_an_image_counts_once_in_the_month_of_the_last_word_on_it() -> None:
    rows = [
        said(1, "normal", month="2026-02"),
        said(1, "viral"),
        said(2, "viral", month="2026-02"),
        said(3, "normal"),
        said(4, "normal", version="11"),
    ]
    february, march = agreement_by_month(rows, version="12")
    assert (february.month, february.images, february.agreed) == ("2026-02", 1, 1)
    assert (march.month, march.images, march.agreed, march.share) == ("2026-03", 2, 1, 0.5)
    assert 0 < march.low < 0.5 < march.high < 1


# Newcombe 1998, table I.
@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_that_of_newcombes_examples(hits: int, of: int, low: float, high: float) -> None:
    assert wilson_interval(hits, of) == pytest.approx((low, high), abs=5e-5)
