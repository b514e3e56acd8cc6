"""Rows of the image array are found by image_id; array and index have to match."""

from pathlib import Path

import numpy as np
import pytest

from cxr.common.errors import DataError
from cxr.dataset.image_array import read_image_array, write_index
from cxr.imaging.preprocess import Preprocessing

PREPROCESSING = Preprocessing(4, "stretch", "none", 2.0, 8, 100)


def pack(folder: Path, ids: list[str], count: int) -> None:
    np.save(folder / "images.npy", np.arange(count * 16, dtype=np.uint8).reshape(count, 4, 4))
    write_index(folder, ids, PREPROCESSING)


def test_rows_have_the_order_of_the_image_ids(tmp_path: Path) -> None:
    pack(tmp_path, ["a", "b", "c"], 3)
    packed = read_image_array(tmp_path)
    assert packed.rows(["c", "a"]).tolist() == [2, 0]
    assert packed.preprocessing == PREPROCESSING
    assert isinstance(packed.images, np.memmap)


def test_an_unknown_image_id_is_named(tmp_path: Path) -> None:
    pack(tmp_path, ["a", "b", "c"], 3)
    with pytest.raises(DataError) as caught:
        read_image_array(tmp_path).rows(["a", "x"])
    assert "dvc repro preprocess" in str(caught.value)


def test_array_and_index_of_different_length_are_an_error(tmp_path: Path) -> None:
    pack(tmp_path, ["a", "b"], 3)
    with pytest.raises(DataError, match="3 images"):
        read_image_array(tmp_path)


def test_a_missing_array_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images\.npy is missing; run `./run dvc repro preprocess`"):
        read_image_array(tmp_path)
