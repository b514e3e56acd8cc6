"""Malicious files: each gives an image or an ImageError, in bounded memory and time."""

import json
import resource
import subprocess
import sys

import pytest

from cxr.imaging.decode import is_dicom
from tests.support.faults import fault
from tests.support.images.hostile_files import claiming, hostile_file, nested_sequences, read, whole_files
from tests.support.project import PROJECT

MEMORY_LIMIT_BYTES = 3 << 30  # of address space, of which Python and its libraries take two thirds
INPUTS = 300


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the reader of hostile files, which may crash, with a limit on its memory."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))

    return subprocess.run(
        [sys.executable, "-m", "tests.support.images.hostile_files", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=limit,
    )


@fault("decode", "mutated images of every kind", "an image or an error, in bounded memory", "the reason")
def test_hostile_files_give_an_image_or_an_error_in_bounded_memory() -> None:
    done = in_a_process("--inputs", str(INPUTS))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["inputs"] == INPUTS
    assert result["others"] == []
    assert result["peak_mb"] < 400
    assert {"image", "truncated", "not an image"} <= set(result["seen"])


def test_damaged_files_write_no_warnings() -> None:
    done = in_a_process("--inputs", "60")
    assert "Warning" not in done.stderr
    assert "TIFF_" not in done.stderr


def test_every_whole_file_is_an_image_except_those_with_few_grey_levels() -> None:
    few = {"PNG P {}", "PNG 1 {}", "BMP P {}", "TIFF 1 {'compression': 'group4'}"}
    expected = {name: "not a chest X-ray" if name in few else "image" for name in whole_files()}
    assert {name: read(data) for name, data in whole_files().items()} == expected


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "DICOM"])
@pytest.mark.parametrize("side", [50_000, 65_535])
@fault("decode", "a small file claims a huge size", "refused before it is decoded", "larger than the pixel limit")
def test_a_small_file_that_claims_a_huge_size_is_rejected(kind: str, side: int) -> None:
    data = claiming(side, side, kind)
    assert len(data) < 20_000
    assert read(data) == "larger than the pixel limit"


def test_a_png_with_a_chunk_larger_than_the_file_is_truncated() -> None:
    data = bytearray(whole_files()["cv.png"])
    at = data.index(b"IDAT")
    data[at - 4 : at] = (0x7FFF_FFF0).to_bytes(4, "big")  # OpenCV would allocate all of it
    assert read(bytes(data)) == "truncated"


def test_a_png_with_a_second_header_is_rejected() -> None:
    data = whole_files()["cv.png"]
    header = data[8:33]
    assert read(data[:33] + header + data[33:]) == "truncated"


def test_nested_sequences_are_read_or_rejected() -> None:
    assert read(nested_sequences(20)) == "image"
    assert read(nested_sequences(50_000)) == "not an image"


def test_a_compressed_frame_that_claims_a_huge_size_uses_little_memory() -> None:
    data = bytearray(whole_files()["DICOM JPEG 2000"])
    at = data.index(b"\xff\x51")  # the frame's own size
    data[at + 6 : at + 14] = (60_000).to_bytes(4, "big") * 2
    data[at + 22 : at + 30] = (60_000).to_bytes(4, "big") * 2
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert read(bytes(data)) == "not an image"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before < 1 << 20  # kilobytes


def test_a_number_gives_the_same_file_and_numbers_give_all_formats() -> None:
    drawn = [hostile_file(number) for number in range(40)]
    assert drawn == [hostile_file(number) for number in range(40)]
    assert {is_dicom(data) for data in drawn} == {True, False}
