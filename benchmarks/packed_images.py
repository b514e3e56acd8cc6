"""Is a packed grey image read faster than its JPEG? Milliseconds an image, and bytes on disk.

    ./run benchmarks.packed_images FOLDER [--images 120]

Each image of the folder is decoded as preprocess does it. It is also packed without loss, its longer side 1,024 px at
most, as ingest would have to, and read from there, as preprocess would. One thread; all take turns on each image.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr.imaging.decode import decode_grey, image_from_bytes
from cxr.imaging.preprocess import Preprocessing, prepare

T = TypeVar("T")
Grey = NDArray[np.uint8]

SIDES_PX = (112, 224)
LONGEST_PX = 1024
MAX_PIXELS = 50_000_000

CODECS = {"lz4": pa.Codec("lz4"), "zstd": pa.Codec("zstd", compression_level=1)}


class Stopwatch:
    """Seconds of each named step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def time(self, name: str, step: Callable[[], T]) -> T:
        """Run a step and keep how long it took."""
        start = time.perf_counter()
        result = step()
        self.seconds[name].append(time.perf_counter() - start)
        return result


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=120)
    given = parser.parse_args()
    files = sorted(given.folder.rglob("*.jpeg"))
    files = random.Random(0).sample(files, min(given.images, len(files)))
    cv2.setNumThreads(1)
    watch, sizes = Stopwatch(), defaultdict[str, int](int)
    for file in files:
        data = file.read_bytes()
        sizes["jpeg"] += len(data)
        measure_jpeg(data, watch)
        grey = decode_grey(data, name=str(file), max_pixels=MAX_PIXELS)
        small = watch.time("shrink to 1,024 px", partial(shrink, grey))
        for name, length in measure_packed(small, watch).items():
            sizes[name] += length
    for name, seconds in watch.seconds.items():
        print(f"{name:28s} mean {1e3 * np.mean(seconds):7.2f} ms, median {1e3 * np.median(seconds):7.2f} ms")
    for name, total in sizes.items():
        print(f"{name:28s} {total / len(files) / 1e3:7.0f} kB an image")


def measure_jpeg(data: bytes, watch: Stopwatch) -> None:
    """Time what ingest (the whole image) and preprocess (at reduced scale) do today."""
    watch.time("jpeg: decode whole", lambda: decode_grey(data, name="image", max_pixels=MAX_PIXELS))
    for side in SIDES_PX:
        watch.time(
            f"jpeg: decode and prepare {side}",
            partial(image_from_bytes, data, _preprocessing(side), name="image"),
        )


def measure_packed(grey: Grey, watch: Stopwatch) -> dict[str, int]:
    """Time packing, unpacking and preparing; return the bytes by form."""
    for side in SIDES_PX:
        watch.time(f"prepare {side} from 1,024 px", partial(prepare, grey, _preprocessing(side)))
    png = watch.time("png: pack", lambda: cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])
    watch.time("png: unpack", lambda: cv2.imdecode(png, cv2.IMREAD_GRAYSCALE))
    watch.time("raw: unpack", grey.copy)
    sizes = {"raw": grey.nbytes, "png": png.nbytes}
    for name, codec in CODECS.items():
        packed = watch.time(f"{name}: pack", partial(_pack, codec, grey))
        watch.time(f"{name}: unpack", partial(_unpack, codec, packed, grey.shape))
        steps = watch.time(f"{name} of steps: pack", partial(_pack_steps, codec, grey))
        watch.time(f"{name} of steps: unpack", partial(_unpack_steps, codec, steps, grey.shape))
        sizes |= {name: len(packed), f"{name} of steps": len(steps)}
    return sizes


def shrink(grey: Grey) -> Grey:
    """Return an image with its longer side at most LONGEST_PX."""
    factor = LONGEST_PX / max(grey.shape)
    if factor >= 1:
        return grey
    return np.asarray(cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)


def _pack(codec: pa.Codec, grey: Grey) -> bytes:
    packed: bytes = codec.compress(grey.tobytes(), asbytes=True)
    return packed


def _unpack(codec: pa.Codec, packed: bytes, shape: tuple[int, ...]) -> Grey:
    size = int(np.prod(shape))
    return np.frombuffer(codec.decompress(packed, decompressed_size=size, asbytes=True), np.uint8).reshape(shape)


def _pack_steps(codec: pa.Codec, grey: Grey) -> bytes:
    """Pack the differences of neighbours in a row, as PNG's filter does."""
    steps = grey.copy()
    steps[:, 1:] -= grey[:, :-1]
    return _pack(codec, steps)


def _unpack_steps(codec: pa.Codec, packed: bytes, shape: tuple[int, ...]) -> Grey:
    return np.cumsum(_unpack(codec, packed, shape), axis=1, dtype=np.uint8)


def _preprocessing(side: int) -> Preprocessing:
    return Preprocessing(side, "stretch", "clahe", 2.0, 8, MAX_PIXELS)


if __name__ == "__main__":
    main()
