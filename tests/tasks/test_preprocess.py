"""The image array has the manifest's order and is written atomically; bad images are named."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cxr.common.errors import DataError
from cxr.common.params import Paths, PreprocessParams, override, read_params
from cxr.dataset.image_array import read_image_array
from cxr.dataset.manifest import MANIFEST_COLUMNS, write_table
from cxr.imaging.decode import image_from_bytes
from cxr.imaging.preprocess import Preprocessing
from tasks.preprocess import preprocess
from tests.support.faults import fault
from tests.support.images.raw_folder import pack, unpacked
from tests.support.project import PROJECT
from tests.support.projects.stage_files import write_verdict

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


def write_images(raw: Path, count: int = 5, size: int = 80) -> pd.DataFrame:
    """Write `count` images and their manifest."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (size, size), np.uint8) for _ in range(count)]
    pack(raw, {f"images/{row}.png": bytes(cv2.imencode(".png", image)[1]) for row, image in enumerate(pixels)})
    values: dict[str, object] = dict.fromkeys(MANIFEST_COLUMNS, "x")
    values |= {
        "image_id": [f"id-{row:04d}" for row in range(count)],
        "width": size,
        "height": size,
        "bytes": 1,
        "acquisition_number": 1,
    }
    manifest = pd.DataFrame(values | {"path": [f"images/{row}.png" for row in range(count)]})
    write_table(manifest, MANIFEST_COLUMNS, raw / "manifest.parquet")
    write_verdict(raw.parents[1] / "reports" / "validation.json", raw)
    return manifest


def paths_in(folder: Path) -> Paths:
    paths = read_params(PROJECT / "params.yaml").paths
    return paths.model_copy(update={name: folder / getattr(paths, name) for name in Paths.model_fields})


def test_each_row_is_a_prepared_image(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    manifest = write_images(paths.raw)
    preprocess(PARAMS, paths)
    packed = read_image_array(paths.images)
    assert packed.image_ids == manifest["image_id"].tolist()
    expected = Preprocessing(48, "stretch", "clahe", 2.0, 4, 10**6, border_crop=0.1)
    assert packed.preprocessing == expected
    for row, name in enumerate(manifest["path"]):
        assert np.array_equal(packed.images[row], image_from_bytes(unpacked(paths.raw)[name], expected, name=name))


def test_unreadable_images_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    write_images(paths.raw)
    pack(paths.raw, unpacked(paths.raw) | {"images/1.png": b"", "images/3.png": b"text"})
    with pytest.raises(DataError) as caught:
        preprocess(PARAMS, paths)
    message = str(caught.value)
    assert message.startswith("2 of 5 images cannot be prepared: images/1.png is empty")
    assert "images/3.png is not an image" in message
    assert not paths.images.exists()
    assert list(paths.images.parent.glob(".*partial*")) == []


@fault("preprocess", "an image of the manifest is in no shard", "nothing is written", "exit code 5 and the image")
def test_a_missing_image_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    write_images(paths.raw)
    images = unpacked(paths.raw)
    del images["images/3.png"]
    pack(paths.raw, images)
    with pytest.raises(DataError, match=r"images/3\.png"):
        preprocess(PARAMS, paths)
    assert not paths.images.exists()


def test_a_long_list_of_failures_is_shortened(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    write_images(paths.raw, count=12)
    pack(paths.raw, dict.fromkeys(unpacked(paths.raw), b""))
    with pytest.raises(DataError, match=r"12 of 12 images .*; and 2 more\. Run"):
        preprocess(PARAMS, paths)


@fault(
    "preprocess",
    "SIGKILL while images are prepared",
    "no array, or the earlier one",
    "the next run gives the same bytes",
)
def test_a_run_after_a_killed_one_gives_the_same_array(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    write_images(paths.raw, count=150, size=900)
    params_file = tmp_path / "params.yaml"
    params_file.write_text((PROJECT / "params.yaml").read_text())
    override(params_file, {f"paths.{name}": str(getattr(paths, name)) for name in Paths.model_fields})
    command = [sys.executable, "-m", "tasks.preprocess", "--params", str(params_file)]
    started = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL)
    partial = paths.images.with_name(f".{paths.images.name}.partial") / "images.npy"
    while not partial.is_file():
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    assert not paths.images.exists()
    subprocess.run(command, cwd=PROJECT, check=True, stderr=subprocess.DEVNULL)
    again = read_image_array(paths.images).images
    preprocess(read_params(params_file).preprocess, paths)
    assert np.array_equal(again, read_image_array(paths.images).images)
