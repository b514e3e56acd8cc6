"""Records of stages: what an older release wrote is no damage, and one command makes all of it again."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cxr.common.errors import DataError
from cxr.common.files import read_json, write_json
from cxr.dataset.ingest_record import read_ingest_record, require_passed
from cxr.dataset.manifest import read_split
from tests.support.images.raw_folder import raw_folder
from tests.support.projects.stage_files import write_split_files, write_verdict


@pytest.mark.parametrize(
    ("file", "key", "read"),
    [
        ("raw/ingest.json", "tables_sha256", lambda root: read_ingest_record(root / "raw")),
        ("validation.json", "manifest_sha256", lambda root: require_passed(root / "validation.json", root / "raw")),
        ("split/split.json", "splits_sha256", lambda root: read_split(root / "split")),
    ],
)
def test_a_record_without_a_digest_is_of_an_older_release(
    tmp_path: Path, file: str, key: str, read: Callable[[Path], object]
) -> None:
    raw_folder(tmp_path / "raw", patients_per_class=3).write(tmp_path / "raw")
    write_verdict(tmp_path / "validation.json", tmp_path / "raw")
    table = pd.DataFrame({"image_id": ["a", "b"], "split": ["train", "test"], "label": ["normal", "viral"]})
    write_split_files(tmp_path / "split", table)
    read(tmp_path)
    record = read_json(tmp_path / file)
    del record[key]
    write_json(tmp_path / file, record)
    message = f"{tmp_path / file} has no {key}: written by an older release; run `./run dvc repro`"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        read(tmp_path)
