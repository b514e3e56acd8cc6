"""Malicious files by seed: mutated, spliced, with huge lengths; and a program that reads them.

    python -m tests.support.images.hostile_files --first 0 --inputs 5000 --seconds 600

Reads every file like the product and prints one JSON line: inputs, results by reason, exceptions other than ImageError,
the slowest input, the peak memory. The file named by --at holds the number of the current input, which identifies the
input that crashed the process. A number always gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cxr.common.errors import ImageError
from cxr.imaging.decode import is_dicom, open_image
from cxr.imaging.preprocess import Preprocessing
from cxr.inference.input_checks import prepare_chest_xray
from tests.support.images.dicom_images import BIG_ENDIAN, EXPLICIT, LOSSLESS, dicom_image, picture

MAX_PIXELS = 50_000_000
PREPARATION = Preprocessing(112, "stretch", "clahe", 2.0, 8, MAX_PIXELS, 0.05)
_LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 0x80000000)
_HEAD = 400  # bytes with headers: half of all mutations are there

Mutation = Callable[[np.random.Generator, bytearray, list[bytes]], None]


@cache
def whole_files() -> dict[str, bytes]:
    """Return one readable image of each kind."""
    grey, deep = picture(96, 120).astype(np.uint8), picture(96, 120, 12)
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    files = {f"cv{suffix}": cv2.imencode(suffix, grey)[1].tobytes() for suffix in (".jpg", ".png", ".bmp", ".tif")}
    files["png16"] = cv2.imencode(".png", deep * 16)[1].tobytes()
    files["progressive"] = cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    files |= {
        f"{kind} {mode} {options}": _by_pillow(colour, kind, mode, options)
        for kind, mode, options in (
            ("PNG", "P", {}),
            ("PNG", "RGBA", {}),
            ("PNG", "1", {}),
            ("BMP", "P", {}),
            ("JPEG", "CMYK", {}),
            ("TIFF", "RGB", {"compression": "tiff_deflate"}),
            ("TIFF", "L", {"compression": "tiff_lzw"}),
            ("TIFF", "1", {"compression": "group4"}),
            ("TIFF", "L", {"compression": "jpeg"}),
            ("TIFF", "L", {"compression": "packbits"}),
        )
    }
    files |= {f"DICOM {name}": dicom_image(deep, bits=12, syntax=syntax) for name, syntax in LOSSLESS.items()}
    files["DICOM JPEG"] = dicom_image(grey, syntax="1.2.840.10008.1.2.4.50")
    files["DICOM bare"] = dicom_image(deep, bits=12, preamble=False)
    files["DICOM signed, big"] = dicom_image(deep, bits=12, syntax=BIG_ENDIAN, PixelRepresentation=1)
    files["DICOM rich"] = dicom_image(
        deep,
        bits=12,
        syntax=EXPLICIT,
        WindowCenter="4000",
        WindowWidth="9000",
        RescaleSlope="2",
        RescaleIntercept="-5",
        PixelSpacing=["0.2", "0.3"],
        PatientOrientation=["R", "H"],
        PixelPaddingValue=("US", 0),
    )
    return files


def hostile_file(number: int) -> bytes:
    """Return the file of this number."""
    rng = np.random.default_rng(number)
    files = list(whole_files().values())
    data = bytearray(files[int(rng.integers(len(files)))])
    others = files
    for _ in range(int(rng.integers(1, 5))):
        _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](rng, data, others)
    return bytes(data[: 1 << 22])


def claiming(width: int, height: int, kind: str) -> bytes:
    """Return a small file that claims to be an image of this size."""
    if kind == "PNG":
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        body = b"IDAT" + zlib.compress(b"\0" * 100_000)
        parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, body, b"IEND")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    if kind == "DICOM":
        return dicom_image(picture(), Rows=height, Columns=width)
    data = bytearray(whole_files()["cv.jpg" if kind == "JPEG" else "cv.bmp"])
    if kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", min(height, 65535), min(width, 65535))
    else:
        data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def many_scans(width: int, height: int, scans: int) -> bytes:
    """Return a progressive JPEG of a few kilobytes whose last scan is repeated: each costs a pass over all pixels."""
    buffer = io.BytesIO()
    Image.new("L", (width, height), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue().removesuffix(b"\xff\xd9")
    return data + data[data.rindex(b"\xff\xda") :] * scans + b"\xff\xd9"


def nested_sequences(depth: int) -> bytes:
    """Return a DICOM file with `depth` nested sequences."""
    image = bytearray(whole_files()["DICOM implicit"])
    at = image.index(b"\x28\x00\x02\x00")  # before the group that describes the image
    opened = struct.pack("<HHI", 0x0008, 0x1140, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closed = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return bytes(image[:at] + opened * depth + closed * depth + image[at:])


def many_items(count: int) -> bytes:
    """Return a DICOM file with a sequence of empty items, of 8 bytes each, which take long to read."""
    image = whole_files()["DICOM implicit"]
    at = image.index(b"\x28\x00\x02\x00")
    opened, closed = struct.pack("<HHI", 0x0008, 0x1140, 0xFFFFFFFF), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return image[:at] + opened + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * count + closed + image[at:]


def _by_pillow(colour: np.ndarray, kind: str, mode: str, options: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(colour).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _position(rng: np.random.Generator, data: bytearray) -> int:
    reach = min(len(data), _HEAD) if rng.random() < 0.5 else len(data)
    start = 0 if data[128:132] != b"DICM" or rng.random() < 0.2 else 128
    return int(rng.integers(start, max(start + reach, start + 1)))


def _flip_bits(rng: np.random.Generator, data: bytearray, _others: list[bytes]) -> None:
    for _ in range(int(rng.integers(1, 20))):
        at = _position(rng, data)
        if at < len(data):
            data[at] ^= 1 << int(rng.integers(8))


def _overwrite(rng: np.random.Generator, data: bytearray, _others: list[bytes]) -> None:
    at = _position(rng, data)
    data[at : at + 8] = rng.bytes(int(rng.integers(1, 9)))


def _enlarge_length(rng: np.random.Generator, data: bytearray, _others: list[bytes]) -> None:
    at, value = _position(rng, data) & ~1, int(rng.choice(np.array(_LENGTHS, np.uint64)))
    order, size = ("little" if rng.random() < 0.5 else "big"), 4 if rng.random() < 0.6 else 2
    data[at : at + size] = (value & (256**size - 1)).to_bytes(size, order)


def _truncate(rng: np.random.Generator, data: bytearray, _others: list[bytes]) -> None:
    del data[_position(rng, data) :]


def _cut_out(rng: np.random.Generator, data: bytearray, _others: list[bytes]) -> None:
    at = _position(rng, data)
    del data[at : at + int(rng.integers(1, 64))]


def _repeat(rng: np.random.Generator, data: bytearray, _others: list[bytes]) -> None:
    at, size = _position(rng, data), int(rng.integers(1, 200))
    data[at:at] = bytes(data[at : at + size]) * int(rng.integers(1, 50))


def _splice(rng: np.random.Generator, data: bytearray, others: list[bytes]) -> None:
    other = others[int(rng.integers(len(others)))]
    at = _position(rng, data)
    data[at:] = other[int(rng.integers(len(other))) :]


def _noise(rng: np.random.Generator, data: bytearray, _others: list[bytes]) -> None:
    at = int(rng.choice([4, 8, 132]))
    data[at:] = rng.bytes(int(rng.integers(0, 2000)))


_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits,
    _flip_bits,
    _overwrite,
    _overwrite,
    _enlarge_length,
    _enlarge_length,
    _truncate,
    _cut_out,
    _repeat,
    _splice,
    _noise,
)


def read(data: bytes) -> str:
    """Read `data` like the product; return "image", the reason of an ImageError, or another result."""
    try:
        image = prepare_chest_xray(open_image(data, name="image", max_pixels=MAX_PIXELS), PREPARATION)
    except ImageError as error:
        return error.reason
    return "image" if image.shape == (112, 112) and image.dtype == np.uint8 else f"OTHER {image.shape} {image.dtype}"


def _peak_mb() -> int:
    """Return the peak memory of this process; that of getrusage includes the parent process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) // 1024


def main() -> None:
    """Read the command line, then hostile files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--at", type=Path)
    given = parser.parse_args()
    seen: Counter[str] = Counter()
    others, slowest, began = [], (0.0, -1), time.monotonic()
    number = given.first
    for number in range(given.first, given.first + given.inputs):
        if time.monotonic() - began > given.seconds:
            break
        if given.at:
            given.at.write_text(str(number))
        data, start = hostile_file(number), time.monotonic()
        try:
            outcome = read(data)
            if not is_dicom(data):
                open_image(data, name="image", max_pixels=MAX_PIXELS)
        except ImageError:
            pass
        except Exception as error:  # what this program looks for
            outcome = f"OTHER {type(error).__name__}: {error}"
        if outcome.startswith("OTHER"):
            others.append((number, outcome))
        seen[outcome[:40]] += 1
        slowest = max(slowest, (time.monotonic() - start, number))
    report = {
        "first": given.first,
        "inputs": sum(seen.values()),
        "seconds": round(time.monotonic() - began, 1),
        "seen": dict(seen.most_common()),
        "others": others,
        "slowest_s": round(slowest[0], 2),
        "slowest": slowest[1],
        "peak_mb": _peak_mb(),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    sys.exit(bool(others))


if __name__ == "__main__":
    main()
