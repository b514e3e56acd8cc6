"""Scoring a folder or a bucket: every image once, despite interruptions, with the same numbers as predict."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from cxr.common.errors import ImageError, ParamsError, SourceError
from cxr.common.notices import NOT_CLINICAL
from cxr.common.s3 import Prefix, RemoteObject
from cxr.dataset.synthetic_image import KERMANY_LOOK
from cxr.imaging.decode import image_from_bytes
from cxr.inference.score_store import read_scores
from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.models.reference import MEASURES, REFERENCE_FILE, Reference, image_measures, make_reference, write_reference
from cxr.registry import runs, tracking_store, versions
from cxr.registry.champion import aliases
from cxr.registry.registration import register_version
from tasks import predict, score
from tests.support.faults import fault
from tests.support.images.reference_images import synthetic_images
from tests.support.project import PROJECT
from tests.support.projects.registry_project import CLASSES, call, enter_project, spec
from tests.support.services.servers import SECRET_KEY, s3_settings, serve_s3

BUCKET = "images"
N_IMAGES = 21  # more than a batch, and the last one not full
PREPROCESSING = spec(image_size_px=32).preprocessing


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking store with a champion; registering takes seconds, so the tests share it."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        enter_project(folder, patch, tmp_path_factory)
        make_champion(seed=2, refer_below=0.6, with_reference=True)
    return folder / "mlruns"


@pytest.fixture(autouse=True)
def _project(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracking_store.STORE_VARIABLE, raising=False)
    monkeypatch.setenv(tracking_store.FOLDER_VARIABLE, str(store))
    monkeypatch.chdir(tmp_path)
    shutil.copy2(PROJECT / "params.yaml", tmp_path)
    (tmp_path / "cxr").mkdir()
    (tmp_path / "cxr" / "code.py").write_text("x = 1\n")


def make_champion(*, seed: int, refer_below: float | None, with_reference: bool) -> None:
    """Register a network with random weights whose answers differ from image to image, and make it champion."""
    torch.manual_seed(seed)
    state = build("small_cnn", 3).state_dict()
    state["fc.weight"] = state["fc.weight"] * 100
    folder = Path(f"made-{seed}")
    described = replace(spec(image_size_px=32, backbone="small_cnn"), refer_below=refer_below)
    written = write_bundle(folder, state, described)
    if with_reference:
        write_reference(folder / REFERENCE_FILE, some_reference())
    run_id = runs.start_run(run_id=None, name="n", tags={})
    before = versions.champion()
    version, _ = register_version(folder, written, run_id=run_id, lineage={}, evaluation={})
    aliases.move_champion(
        version.number, instead_of=before.number if before else "", kind="promote", approved_by="ann", reason="test"
    )


def some_reference() -> Reference:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (20, 32, 32), np.uint8)
    return make_reference(
        classes=CLASSES,
        images=np.column_stack(list(image_measures(images).values())),
        features=rng.normal(size=(20, 256)).astype(np.float32),
        probabilities=rng.dirichlet((1, 1, 1), 20),
        patients=np.arange(20).astype(object),
    )


def image(number: int) -> bytes:
    """Return an image that is surely classified, or, for an odd number, a picture that gets a warning."""
    if number % 2:
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        return bytes(cv2.imencode(".png", cv2.resize(coarse, (48, 40), interpolation=cv2.INTER_CUBIC))[1])
    return bytes(cv2.imencode(".png", synthetic_images(KERMANY_LOOK, 1, seed=number)[0])[1])


@pytest.fixture
def images() -> Path:
    """Images in two folders, one empty file, and a text file."""
    folder = Path("images")
    (folder / "deeper").mkdir(parents=True)
    for number in range(N_IMAGES):
        (folder / ("deeper" if number % 2 else ".") / f"{number:02}.png").write_bytes(image(number))
    (folder / "broken.jpeg").write_bytes(b"")
    (folder / "notes.txt").write_text("notes")
    return folder


def scores() -> pd.DataFrame:
    return read_scores(Path("scores"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    call(monkeypatch, score.main, *arguments, "--output", "scores")


def test_every_image_is_a_row_with_the_numbers_of_predict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    run(monkeypatch, "images")
    results = capsys.readouterr().out.splitlines()
    with pytest.raises(ImageError):
        call(monkeypatch, predict.main, "--json", str(images))
    predicted = {line["path"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    rows = scores()
    assert sorted(f"images/{path}" for path in rows["path"]) == sorted(predicted)
    assert len(rows) == N_IMAGES + 1
    for row in rows[rows["error"].isna()].to_dict("records"):
        found = predicted[f"images/{row['path']}"]
        assert {name: row[f"p_{name}"] for name in CLASSES} == found["probabilities"]  # to the last bit
        assert (row["predicted_class"], row["refer"]) == (found["predicted_class"], found["refer"])
        assert row["confidence"] == max(found["probabilities"].values())
        assert row["refer"] == (row["confidence"] < 0.6 or pd.notna(row["warning"]))
    referred = int(rows["refer"].eq(True).sum())
    assert 0 < referred < N_IMAGES
    assert results[0].startswith(
        f"{N_IMAGES + 1} images in images: {N_IMAGES} scored by version 1, {referred} referred to a reader, 1 bad, "
        "0 scored before; "
    )
    assert results[1] == NOT_CLINICAL


@pytest.mark.usefixtures("images")
def test_the_summary_file_holds_the_counts_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "images", "--summary", "summary.json")
    first, rows = json.loads(Path("summary.json").read_text()), scores()
    assert (first["found"], first["known"], first["scored"], first["bad"]) == (N_IMAGES + 1, 0, N_IMAGES, 1)
    assert first["classes"] == rows["predicted_class"].value_counts().to_dict()
    assert first["referred"] == rows["refer"].eq(True).sum()
    assert list(first["bad_images"]) == ["broken.jpeg"]
    assert first["images_per_second"] > 0
    run(monkeypatch, "images", "--summary", "summary.json")
    assert json.loads(Path("summary.json").read_text())["known"] == N_IMAGES + 1


def test_a_part_names_its_model_and_code_and_measures_every_image(
    monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    run(monkeypatch, "images")
    (part,) = Path("scores/version-1").glob("*.parquet")
    metadata = pq.read_schema(part).metadata
    assert metadata[b"model"] == b"chest-xray-pneumonia"
    assert metadata[b"weights_sha256"].decode() == versions.get_version("1").tags["weights_sha256"]
    assert len(metadata[b"code_sha256"]) == 64
    rows = scores().set_index("path")
    expected = image_measures(image_from_bytes((images / "00.png").read_bytes(), PREPROCESSING, name="00.png")[None])
    assert rows.loc["00.png", "m_brightness"] == pytest.approx(expected["brightness"][0])
    assert rows.loc["00.png", [f"m_{name}" for name in MEASURES]].notna().all()


def test_an_image_that_cannot_be_read_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    (images / "deeper" / "text.png").write_text("no image")
    run(monkeypatch, "images")
    bad = scores().query("error.notna()").set_index("path")["error"]
    assert bad["broken.jpeg"].startswith("broken.jpeg is empty")
    assert bad["deeper/text.png"].startswith("deeper/text.png is not an image")
    assert len(bad) == 2


@fault("score", "the names of a folder and of two images are not UTF-8", "the images are scored, each once",
       "the names with the bytes as \\xe9")  # fmt: skip
def test_images_whose_names_are_not_utf_8_are_scored_like_others(
    monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"r\xe9sum\xe9")
    images.rename(folder)
    (folder / "00.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    (folder / "02.png").rename(folder / "caf\\xe9.png")  # another name, of letters alone
    (folder / "broken.jpeg").rename(folder / os.fsdecode(b"br\xe9.jpeg"))
    run(monkeypatch, str(folder), "--summary", "summary.json")
    rows = scores().set_index("path")
    assert set(rows["location"]) == {f"{tmp_path}/r\\xe9sum\\xe9"}
    assert rows.loc["caf\\xe9.png_", "sha256"] == hashlib.sha256(image(0)).hexdigest()
    assert rows.loc["caf\\xe9.png", "sha256"] == hashlib.sha256(image(2)).hexdigest()
    assert rows.loc["br\\xe9.jpeg", "error"] == "br\\xe9.jpeg is empty; copy it again from its source"
    run(monkeypatch, str(folder), "--summary", "summary.json")
    assert json.loads(Path("summary.json").read_text())["known"] == N_IMAGES + 1


def test_a_subfolder_that_may_not_be_read_is_named_and_a_location_is_an_error(
    monkeypatch: pytest.MonkeyPatch, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = os.scandir

    def scandir(path: str) -> Any:  # root, who may run the tests, may read any folder
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (images / "deeper" / "locked").mkdir(parents=True)
    run(monkeypatch, "images")
    assert len(scores()) == N_IMAGES + 1
    assert "images/deeper/locked cannot be listed, its images are left out: Permission denied" in caplog.text
    with pytest.raises(SourceError, match="images/deeper/locked cannot be listed: Permission denied"):
        run(monkeypatch, "images/deeper/locked")


def test_the_command_fails_when_no_image_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("images").mkdir()
    Path("images/a.png").write_bytes(b"")
    with pytest.raises(ImageError, match="not one of the 1 images"):
        run(monkeypatch, "images")
    assert len(scores()) == 1


def test_an_empty_folder_is_nothing_to_do_and_a_missing_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images").mkdir()
    run(monkeypatch, "images")
    assert capsys.readouterr().out.startswith("0 images in images: 0 scored by version 1, 0 bad, 0 scored before; ")
    assert scores().empty
    with pytest.raises(SourceError, match="missing"):
        run(monkeypatch, "missing")


def test_an_image_is_scored_again_only_when_its_bytes_or_the_version_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path, store: Path
) -> None:
    shutil.copytree(store, "mlruns")
    monkeypatch.setenv(tracking_store.FOLDER_VARIABLE, str(Path("mlruns").resolve()))
    run(monkeypatch, "images")
    capsys.readouterr()
    (images / "new.png").write_bytes(image(100))
    (images / "00.png").write_bytes(image(101))  # another image under an old name
    os.utime(images / "02.png", ns=(1, 1))  # touched: read, and found to be the same
    run(monkeypatch, "images")
    results = capsys.readouterr().out
    assert ": 2 scored by version 1, " in results
    assert f" 0 bad, {N_IMAGES} scored before; " in results
    assert scores()["path"].value_counts()[["00.png", "02.png", "new.png"]].tolist() == [2, 1, 1]
    make_champion(seed=1, refer_below=None, with_reference=False)
    run(monkeypatch, "images")
    rows = scores()
    assert rows["model_version"].value_counts().to_dict() == {"1": N_IMAGES + 3, "2": N_IMAGES + 2}
    unwarned = rows[(rows["model_version"] == "2") & rows["warning"].isna()]
    assert len(unwarned)
    assert unwarned["refer"].isna().all()
    assert rows["scored_at"].is_monotonic_increasing


def test_shards_share_the_images_and_leave_none_out(monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    counts = []
    for number in (1, 2, 3):
        run(monkeypatch, "images", "--shard", f"{number}/3")
        counts.append(len(scores()))
    assert 0 < counts[0] < counts[1] < counts[2] == N_IMAGES + 1
    assert scores()["path"].is_unique
    run(monkeypatch, "images")
    assert len(scores()) == N_IMAGES + 1
    assert images.is_dir()


@pytest.mark.parametrize("given", ["0/2", "3/2", "1", "a/b"])
def test_an_invalid_shard_is_rejected(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    with pytest.raises(ParamsError, match="counted from 1"):
        run(monkeypatch, "images", "--shard", given)


@pytest.mark.usefixtures("images")
@fault(
    "score",
    "SIGKILL while images are scored",
    "one part is lost at most",
    "the next run scores the rest, nothing twice",
)
def test_a_kill_loses_one_part_at_most_and_the_next_run_scores_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("images_per_part: 500", "images_per_part: 1"))
    # The second batch waits for an image that never comes: a FIFO is a file whose reader waits.
    os.mkfifo("fifo")
    hold = "import cxr.inference.image_source as l, sys; real = l._folder\nfrom tasks.score import _random_order\n"
    hold += "def slow(where):\n    found = real(where)\n    def read(path):\n"
    hold += "        open('fifo').read() if path == max(found.images, key=_random_order).path else None\n"
    hold += "        return found.read(path)\n"
    hold += "    return l.Location(found.name, found.images, read)\nl._folder = slow\n"
    hold += "sys.argv = ['score', 'images', '--output', 'scores']\nfrom tasks.score import main; main()\n"
    process = subprocess.Popen([sys.executable, "-c", hold], env={**os.environ, "PYTHONPATH": str(PROJECT)})
    try:
        for _ in range(3000):
            if list(Path("scores").rglob("*.parquet")) or process.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = len(scores())
    assert 0 < kept < N_IMAGES + 1
    run(monkeypatch, "images")
    assert f"{kept} scored before" in capsys.readouterr().out
    assert scores()["path"].is_unique
    assert len(scores()) == N_IMAGES + 1


@pytest.mark.usefixtures("images")
def test_images_are_scored_in_an_order_unrelated_to_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("params.yaml").write_text(
        Path("params.yaml").read_text().replace("images_per_part: 500", "images_per_part: 1")
    )
    run(monkeypatch, "images")
    paths = scores()["path"].tolist()
    assert len(paths) == N_IMAGES + 1
    assert paths != sorted(paths)


# --- s3 ---


@pytest.fixture(scope="module")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_s3(tmp_path_factory.mktemp("weed"), BUCKET) as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_settings(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    for number in range(3):
        client.put_object(Bucket=BUCKET, Key=f"night/ward/{number}.png", Body=image(number))
    client.put_object(Bucket=BUCKET, Key="night/_SUCCESS", Body=b"")


@pytest.mark.usefixtures("s3")
def test_a_prefix_is_scored_like_a_folder_once_and_no_image_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    before = {path for path in Path().rglob("*") if path.suffix == ".png"}
    run(monkeypatch, f"s3://{BUCKET}/night")
    run(monkeypatch, f"s3://{BUCKET}/night/")
    assert "3 images in s3://images/night: 0 scored by version 1, 0 bad, 3 scored before" in capsys.readouterr().out
    assert {path for path in Path().rglob("*") if path.suffix == ".png"} == before
    in_bucket = scores()
    assert sorted(in_bucket["path"]) == ["ward/0.png", "ward/1.png", "ward/2.png"]
    run(monkeypatch, str(images))
    in_folder = scores().query("location == 'images'").set_index("sha256")
    for row in in_bucket.to_dict("records"):
        assert [row[f"p_{name}"] for name in CLASSES] == in_folder.loc[
            row["sha256"], [f"p_{name}" for name in CLASSES]
        ].tolist()
    kept = b"".join(path.read_bytes() for path in Path("scores").rglob("*.parquet"))
    assert SECRET_KEY.encode() not in kept


@pytest.mark.parametrize(
    ("environment", "location", "found"),
    [
        ({}, "s3://no-such-bucket/night", "there is no bucket no-such-bucket (NoSuchBucket)"),
        ({"AWS_SECRET_ACCESS_KEY": "planted-secret"}, f"s3://{BUCKET}/night", "access denied (SignatureDoesNotMatch)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, f"s3://{BUCKET}/night", "127.0.0.1:9"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_the_error_of_a_bucket_is_one_line_without_a_key(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], location: str, found: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError) as caught:
        run(monkeypatch, location)
    message = str(caught.value)
    assert message.startswith(f"{location}: ")
    assert found in message
    assert "\n" not in message
    assert "planted-secret" not in message
    assert not Path("scores").exists()


@pytest.mark.usefixtures("s3")
@fault("score", "an object is deleted between listing and reading", "the others are scored", "a row that names it")
def test_an_object_that_is_gone_when_it_is_read_is_a_row_and_the_others_are_scored(
    monkeypatch: pytest.MonkeyPatch, s3_endpoint: str
) -> None:
    listed = Prefix.objects

    def then_gone(prefix: Prefix) -> dict[str, RemoteObject]:
        found = listed(prefix)
        boto3.client("s3", endpoint_url=s3_endpoint).delete_object(Bucket=BUCKET, Key="night/ward/1.png")
        return found

    monkeypatch.setattr(Prefix, "objects", then_gone)
    run(monkeypatch, f"s3://{BUCKET}/night")
    errors = scores().set_index("path")["error"]
    assert errors["ward/1.png"] == "ward/1.png does not exist; check whether it was moved"
    assert errors.drop("ward/1.png").isna().all()
    assert len(errors) == 3


@pytest.mark.usefixtures("s3")
def test_machines_without_a_common_folder_share_their_scores_through_a_bucket(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    shared = ("--exchange", f"s3://{BUCKET}/{images.parent.resolve().name}")
    for machine, shard in (("one", "1/2"), ("two", "2/2")):
        call(monkeypatch, score.main, "images", "--shard", shard, "--output", machine, *shared)
        shutil.rmtree(machine)
    call(monkeypatch, score.main, "images", "--output", "scores", *shared)
    assert f"0 scored by version 1, 0 bad, {N_IMAGES + 1} scored before" in capsys.readouterr().out
    assert sorted(scores()["path"]) == sorted(path.relative_to(images).as_posix() for path in images.rglob("*.*g"))


@pytest.mark.parametrize(
    ("exchange", "found"),
    [
        ("s3://no-such-bucket/scores", "s3://no-such-bucket/scores/version-1: there is no bucket no-such-bucket"),
        ("team/scores", "team/scores/version-1 names no bucket; expected s3://bucket/prefix"),
    ],
)
@pytest.mark.usefixtures("s3", "images")
def test_an_exchange_that_cannot_be_used_is_one_line_before_any_image_is_scored(
    monkeypatch: pytest.MonkeyPatch, exchange: str, found: str
) -> None:
    with pytest.raises(SourceError) as caught:
        run(monkeypatch, "images", "--exchange", exchange)
    message = str(caught.value)
    assert message.startswith(found)
    assert "\n" not in message
    assert not [*Path("scores").rglob("*.parquet")]
