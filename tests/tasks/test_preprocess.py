"""Films are packed in the manifest's order, whole or not at all, and a bad one is named."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cxr.errors import DataError
from cxr.images import Preprocessing, read_film
from cxr.manifest import MANIFEST_COLUMNS, write_table
from cxr.packed import read_packed
from cxr.params import Paths, PreprocessParams, override, read_params
from tasks.preprocess import preprocess

ROOT = Path(__file__).parents[2]
PARAMS = PreprocessParams(
    image_size_px=48,
    border_crop=0.1,
    fit="stretch",
    contrast="clahe",
    clahe_clip_limit=2.0,
    clahe_tiles=4,
    max_pixels=10**6,
    workers=2,
)


def write_films(raw: Path, count: int = 5, size: int = 80) -> pd.DataFrame:
    """Write `count` films and their manifest."""
    (raw / "films").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for row in range(count):
        cv2.imwrite(str(raw / "films" / f"{row}.png"), rng.integers(0, 255, (size, size), np.uint8))
    values: dict[str, object] = dict.fromkeys(MANIFEST_COLUMNS, "x")
    values |= {"image_id": [f"id-{row:04d}" for row in range(count)], "width": size, "height": size, "bytes": 1}
    manifest = pd.DataFrame(values | {"path": [f"films/{row}.png" for row in range(count)]})
    write_table(manifest, MANIFEST_COLUMNS, raw / "manifest.parquet")
    return manifest


def paths_in(folder: Path) -> Paths:
    paths = read_params(ROOT / "params.yaml").paths
    return paths.model_copy(update={name: folder / getattr(paths, name) for name in Paths.model_fields})


def test_each_row_is_its_film_prepared(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    manifest = write_films(paths.raw)
    preprocess(PARAMS, paths)
    packed = read_packed(paths.images)
    assert packed.image_ids == manifest["image_id"].tolist()
    expected = Preprocessing(48, "stretch", "clahe", 2.0, 4, 10**6, border_crop=0.1)
    assert packed.preprocessing == expected
    for row, name in enumerate(manifest["path"]):
        assert np.array_equal(packed.images[row], read_film(paths.raw / name, expected))


def test_unreadable_films_are_all_named_and_nothing_is_left(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    write_films(paths.raw)
    (paths.raw / "films" / "1.png").write_bytes(b"")
    (paths.raw / "films" / "3.png").unlink()
    with pytest.raises(DataError) as caught:
        preprocess(PARAMS, paths)
    message = str(caught.value)
    assert message.startswith(
        f"2 of 5 films cannot be prepared: {paths.raw}/films/1.png is empty; copy it again from its source; "
    )
    assert "3.png" in message
    assert message.endswith("Run `dvc repro ingest` to sort them out")
    assert not paths.images.exists()
    assert list(paths.images.parent.glob(".*partial*")) == []


def test_long_list_of_failures_is_cut_with_the_number_left(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    write_films(paths.raw, count=12)
    for film in (paths.raw / "films").iterdir():
        film.write_bytes(b"")
    with pytest.raises(DataError, match=r"12 of 12 films .*; and 2 more\. Run"):
        preprocess(PARAMS, paths)


def test_killed_in_the_middle_and_run_again_gives_the_same_array(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    write_films(paths.raw, count=150, size=900)
    params_file = tmp_path / "params.yaml"
    params_file.write_text((ROOT / "params.yaml").read_text())
    override(params_file, {f"paths.{name}": str(getattr(paths, name)) for name in Paths.model_fields})
    command = [sys.executable, "-m", "tasks.preprocess", "--params", str(params_file)]
    started = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    partial = paths.images.with_name(f".{paths.images.name}.partial") / "images.npy"
    while not partial.is_file():
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    assert not paths.images.exists()
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    again = read_packed(paths.images).images
    preprocess(read_params(params_file).preprocess, paths)
    assert np.array_equal(again, read_packed(paths.images).images)
