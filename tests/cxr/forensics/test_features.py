"""Measuring images: files that are unusual, and a cache that is damaged."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr.dataset.shards import Shards, write_shards
from cxr.forensics import features
from cxr.forensics.features import Extraction, extract
from cxr.forensics.measure import measure_image

IMAGE = np.random.default_rng(0).integers(0, 255, (300, 280), dtype=np.uint8)


def jpeg(*, table: int = 0) -> bytes:
    """Return a JPEG whose quantisation table has the number `table`."""
    data = bytearray(cv2.imencode(".jpg", IMAGE)[1].tobytes())
    data[data.find(b"\xff\xdb") + 4] = table
    data[data.find(b"\xff\xc0") + 12] = table
    return bytes(data)


def test_the_quantiser_is_that_of_the_table_that_luma_names() -> None:
    usual, other = (measure_image(jpeg(table=n), name="x.jpg", max_pixels=10**6).compression for n in (0, 1))
    assert usual[1] > 0
    np.testing.assert_array_equal(usual, other)


@pytest.mark.parametrize("kept", [0, 100, 2000])
def test_a_damaged_file_of_the_cache_is_measured_again(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(write_shards(tmp_path / "images", {"a.jpg": len(jpeg())}, lambda _: jpeg(), workers=1))
    shards, how = Shards(tmp_path / "images"), Extraction(10**6, None, "", tmp_path / "cache", 1)
    first = extract(shards, ["a"], ["a.jpg"], how)
    (stored,) = how.cache.iterdir()
    whole = stored.read_bytes()
    stored.write_bytes(whole[:kept])
    again = extract(shards, ["a"], ["a.jpg"], how)
    np.testing.assert_array_equal(first.border, again.border)
    assert stored.read_bytes() == whole
    monkeypatch.setattr(features, "_measured", None)
    np.testing.assert_array_equal(extract(shards, ["a"], ["a.jpg"], how).border, first.border)
