"""Data on disk in place of memory: what comes back, and what the process still holds."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cxr.common.on_disk import Spool, array_on_disk, release, take


def mapped_mib() -> float:
    """Return the pages of mapped files that count as memory of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return float(status["RssFile"].split()[0]) / 1024


def test_spooled_items_come_back_in_any_order_and_to_several_threads(tmp_path: Path) -> None:
    with Spool[tuple[int, bytes]](tmp_path) as spool:
        for number in range(50):
            spool.append((number, bytes(number)))
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(spool.__getitem__, reversed(range(50))))
        spool.append((50, b"later"))
        assert found == [(number, bytes(number)) for number in reversed(range(50))]
        assert (len(spool), spool[50], spool[0]) == (51, (50, b"later"), (0, b""))
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_what_was_taken_from_a_mapped_array_is_a_copy_and_no_page_stays(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.arange(40 << 20, dtype=np.uint8).reshape(-1, 1024))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    before = mapped_mib()
    whole = sum(int(take(images, range(start, start + 1024)).sum()) for start in range(0, len(images), 1024))
    assert mapped_mib() < before + 10
    assert whole == int(images.sum()), "which maps all of it"
    assert mapped_mib() > before + 30
    release(images)
    assert mapped_mib() < before + 10


def test_an_array_on_disk_keeps_what_was_written_when_its_pages_go(tmp_path: Path) -> None:
    values = array_on_disk(tmp_path, (3, 2048), np.int64)
    assert not values.any()
    values[1] = 7
    release(values)
    assert values.sum(axis=1).tolist() == [0, 7 * 2048, 0]
    assert array_on_disk(tmp_path, (0, 5), np.int64).shape == (0, 5)
    assert not list(tmp_path.iterdir()), "the file has no name"
