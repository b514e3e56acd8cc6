"""What it would cost to decode an image, from its bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr.dicom.cost import scanned_pixels

SCAN = b"\xff\xda"


@given(st.lists(st.sampled_from([SCAN, b"\xff", b"\xda", b"\0"])).map(b"".join))
def test_each_start_of_a_scan_counts_wherever_it_stands(data: bytes) -> None:
    assert scanned_pixels(data, width=3, height=2) == 6 * data.count(SCAN)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xda"])
def test_a_file_too_short_for_a_scan_has_none(data: bytes) -> None:
    assert scanned_pixels(data, width=1, height=1) == 0
