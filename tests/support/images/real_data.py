"""The real images that some tests read; `CXR_TEST_DATA` names the folder that holds `raw/` and `originals/`."""

import os
from pathlib import Path

import pytest

TEST_DATA = Path(os.environ.get("CXR_TEST_DATA", "real-images-are-not-set")).resolve()
RAW = TEST_DATA / "raw"

needs_real_images = pytest.mark.skipif(
    not (RAW / "chest_xray").is_dir(),
    reason="set CXR_TEST_DATA to a folder with raw/chest_xray and raw/Covid19-dataset, as Kaggle's zips unpack",
)
