"""Shards: byte for byte, stable when one image changes, and damage is reported."""

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr.common.errors import DataError
from cxr.dataset.shards import Shards, shard_count, shard_of, write_shards
from tests.support.faults import fault

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\"), min_size=1, max_size=12)
IMAGES = st.dictionaries(NAMES.map("images/{}".format), st.binary(max_size=60), max_size=30)


def packed(folder: Path, images: dict[str, bytes], *, workers: int = 2, shard_bytes: int = 128) -> dict[str, str]:
    """Pack images; return the digest of each shard."""
    sizes = {path: len(data) for path, data in images.items()}
    done = list(write_shards(folder, sizes, images.__getitem__, workers=workers, shard_bytes=shard_bytes))
    assert sum(done) == len(images)
    return {shard.name: hashlib.sha256(shard.read_bytes()).hexdigest() for shard in sorted(folder.iterdir())}


def images_of(count: int) -> dict[str, bytes]:
    return {f"images/kermany/{number:03d}.jpeg": bytes([number]) * 40 for number in range(count)}


@settings(max_examples=50, deadline=None)
@given(images=IMAGES)
def test_every_image_is_read_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("packed") / "images"
    packed(folder, images)
    shards = Shards(folder)
    assert len(shards) == len(images)
    assert {path: shards.read(path) for path in images} == images
    assert "images/of no shard/" not in shards


@settings(max_examples=25, deadline=None)
@given(images=IMAGES, data=st.data())
def test_order_of_images_and_number_of_workers_do_not_change_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    shuffled = {path: images[path] for path in data.draw(st.permutations(sorted(images)))}
    assert packed(folder / "one", images) == packed(folder / "other", shuffled, workers=5)


@settings(max_examples=25, deadline=None)
@given(images=IMAGES.filter(bool), data=st.data())
def test_a_changed_image_changes_only_its_shard(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    path = data.draw(st.sampled_from(sorted(images)))
    changed = images | {path: bytes(byte ^ 1 for byte in images[path]) or b"x"}
    count = shard_count(sum(map(len, images.values())), shard_bytes=10_000)
    before = packed(folder / "before", images, shard_bytes=10_000)
    after = packed(folder / "after", changed, shard_bytes=10_000)
    assert {name for name in before if before[name] != after[name]} == {f"{shard_of(path, count):04d}.zip"}


@settings(max_examples=200, deadline=None)
@given(total=st.integers(0, 10**15), shard_bytes=st.integers(1, 10**9))
def test_the_number_of_shards_is_the_smallest_for_the_mean_size(total: int, shard_bytes: int) -> None:
    count = shard_count(total, shard_bytes=shard_bytes)
    assert count.bit_count() == 1
    assert total <= count * shard_bytes
    assert count == 1 or total > count // 2 * shard_bytes


def test_images_spread_over_the_shards_evenly() -> None:
    counts = [0] * 8
    for number in range(8000):
        counts[shard_of(f"images/kermany/train/person{number}_virus_1.jpeg", 8)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


def test_any_zip_tool_reads_a_shard(tmp_path: Path) -> None:
    packed(tmp_path / "images", images_of(3), shard_bytes=1000)
    with zipfile.ZipFile(tmp_path / "images" / "0000.zip") as opened:
        opened.extractall(tmp_path / "tree")
    assert {path: (tmp_path / "tree" / path).read_bytes() for path in images_of(3)} == images_of(3)


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    images = images_of(200)
    packed(tmp_path / "images", images, shard_bytes=2000)
    shards = Shards(tmp_path / "images")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shards.read, list(images) * 5)) == list(images.values()) * 5


@fault("data/raw", "a byte of a shard is changed", "its checksum reveals it", "the shard, and how to restore it")
def test_a_shard_with_a_changed_byte_is_named(tmp_path: Path) -> None:
    packed(tmp_path / "images", images_of(3), shard_bytes=1000)
    shard = tmp_path / "images" / "0000.zip"
    shard.write_bytes(shard.read_bytes().replace(b"\1" * 40, b"\1" * 39 + b"\2"))
    shards = Shards(tmp_path / "images")
    assert shards.read("images/kermany/000.jpeg") == bytes(40)
    with pytest.raises(DataError) as raised:
        shards.read("images/kermany/001.jpeg")
    assert str(raised.value).startswith(f"{shard} is damaged (images/kermany/001.jpeg")


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    packed(tmp_path / "images", images_of(3), shard_bytes=1000)
    shard = tmp_path / "images" / "0000.zip"
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(DataError) as raised:
        Shards(tmp_path / "images")
    assert str(raised.value).startswith(f"{shard} is damaged (File is not a zip file)")


@pytest.mark.parametrize(("offset", "what"), [(6, b"\xff"), (46, b"\xff")])  # the version of the format, the name
def test_a_shard_with_a_damaged_list_is_named(tmp_path: Path, offset: int, what: bytes) -> None:
    packed(tmp_path / "images", {"images/kermany/Jos\u00e9.jpeg": b"image"})
    shard = tmp_path / "images" / "0000.zip"
    content = bytearray(shard.read_bytes())
    at = content.index(b"PK\x01\x02") + offset
    content[at : at + 1] = what
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"0000\.zip is damaged"):
        Shards(tmp_path / "images")


def test_a_shard_that_was_removed_after_it_was_listed_is_named(tmp_path: Path) -> None:
    packed(tmp_path / "images", images_of(3), shard_bytes=1000)
    shards = Shards(tmp_path / "images")
    (tmp_path / "images" / "0000.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"0000\.zip is damaged"):
        shards.read("images/kermany/000.jpeg")
    (tmp_path / "images" / "0000.zip").unlink()
    with pytest.raises(DataError, match=r"0000\.zip is damaged .*No such file"):
        shards.read("images/kermany/000.jpeg")


def test_a_folder_without_shards_and_an_unknown_image_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards"):
        Shards(tmp_path)
    packed(tmp_path / "images", {})
    with pytest.raises(DataError, match=r"images/a\.png"):
        Shards(tmp_path / "images").read("images/a.png")
