"""Data of a step that grow with the number of images, on disk in place of memory.

Pages of a memory-mapped file count as memory of the process as long as they are mapped, though the system may take them
back at any time: a step that went once through a large array seems to hold all of it. `take` and `release` let go.
"""

import math
import mmap
import os
import pickle
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Number = TypeVar("Number", bound=np.generic)


class Spool(Generic[Item]):
    """A list that only grows, with its items on disk and 8 bytes of memory for each.

    Its file has no name, so that no other process writes to it and a killed one leaves nothing behind. The file is
    closed at the end of a `with` block.
    """

    def __init__(self, folder: Path) -> None:
        """Open the file on the disk of `folder`."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._ends = array("Q", [0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._ends) - 1

    def append(self, item: Item) -> None:
        """Add an item, which must pickle."""
        self._ends.append(self._ends[-1] + self._file.write(pickle.dumps(item, pickle.HIGHEST_PROTOCOL)))

    def __getitem__(self, row: int) -> Item:
        """Return a copy of item `row`, from 0. Safe to call from several threads, but not beside `append`."""
        self._file.flush()
        item: Item = pickle.loads(os.pread(self._file.fileno(), self._ends[row + 1] - self._ends[row], self._ends[row]))
        return item


def array_on_disk(folder: Path, shape: tuple[int, ...], dtype: type[Number]) -> NDArray[Number]:
    """Return an array of zeros in a file without a name on the disk of `folder`."""
    if 0 in shape:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        reserve(file, math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=shape)


def reserve(file: IO[bytes], size: int) -> None:
    """Reserve the disk's space for a file now: a full disk would end the process when a page of it is written."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def take(values: NDArray[Number], rows: NDArray[Any] | Sequence[int]) -> NDArray[Number]:
    """Return a copy of some rows, and let go of the pages they were on if the array is memory-mapped."""
    taken = np.array(values[rows])
    release(values)
    return taken


def release(values: NDArray[Any]) -> None:
    """Let go of the pages of a memory-mapped array; what was written to them stays in the file."""
    mapped = getattr(values, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on every system
        mapped.madvise(mmap.MADV_DONTNEED)
