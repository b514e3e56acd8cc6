"""DICOM files, read tag by tag: only what is asked for is parsed, and nothing of it reaches a log or the screen.

pydicom quotes values in its warnings, log lines and errors, a patient's name among them. Here it is silenced for
good, and whatever it raises becomes an ImageError without its words.
"""

import io
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cxr.common.errors import ImageError
from cxr.common.warning_filters import ignore_warnings_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.tag import BaseTag

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"

_PREFIX_AT, _PREFIX = 128, b"DICM"
_PIXEL_DATA = 0x7FE00010
_ELEMENTS_AT_MOST = 20_000
_INFLATED_BYTES_AT_MOST = 1 << 28
_LIBRARIES = ("pydicom", "highdicom")


class UnfitError(Exception):
    """A file that is not taken; `words` go on from its name, and hold no value of a free-text tag."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason, self.words = reason, words


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Turn whatever stops the reading of the DICOM file `name` into an ImageError without a value of its tags."""
    try:
        yield
    except UnfitError as unfit:
        raise ImageError(f"{name} {unfit.words}", reason=unfit.reason) from None
    except ImageError:
        raise
    # pydicom raises whatever its parser met, KeyError to RecursionError, and its words may quote a patient's tag.
    except Exception:
        raise ImageError(
            f"{name} is a DICOM file with a damaged header: expected tags as in DICOM PS3.5; export it again",
            reason="not an image",
        ) from None


def read_dicom(data: bytes, keywords: Sequence[str]) -> "Dataset":
    """Read the tags `keywords` of a file, and no other, without a warning or a log line.

    Raises:
        UnfitError: the file is cut short, or its header is longer than any image's.
        Exception: what pydicom raises; see `refusing`.
    """
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_dataset, read_partial
    from pydicom.uid import UID

    _quiet_libraries()
    tags = [tag for tag in map(tag_for_keyword, keywords) if tag is not None]
    inflated = _inflated(data)
    stream = io.BytesIO(data if inflated is None else inflated)
    watch = _Watch(stream)
    if inflated is None:
        file = read_partial(stream, stop_when=watch, force=True, specific_tags=tags)
        dataset, meta = cast("Dataset", file), file.file_meta
    else:
        dataset = read_dataset(stream, False, True, stop_when=watch, specific_tags=tags)
        meta = _file_meta(data)[0]
    dataset.file_meta = meta
    if watch.cut_short or (watch.saw_pixels and "PixelData" in keywords and "PixelData" not in dataset):
        raise cut_short()
    syntax = str(meta.get("TransferSyntaxUID", "")).strip(" \0")
    if not syntax:  # a file without meta header: pydicom has found out how its elements are written
        implicit, little_endian = dataset.original_encoding
        syntax = IMPLICIT if implicit else EXPLICIT if little_endian else BIG_ENDIAN
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    return dataset


def _quiet_libraries() -> None:
    """Silence pydicom and highdicom for good: their warnings and log lines quote values."""
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        ignore_warnings_of(library)


def _ends_file_meta(tag: "BaseTag", vr: str | None, length: int) -> bool:
    del vr, length  # pydicom passes them
    return tag >> 16 != 2


class _Watch:
    """Is asked before each element: stops after the pixels, and sees whether the file ends inside an element."""

    def __init__(self, stream: io.BytesIO) -> None:
        self._stream, self._size = stream, stream.seek(0, io.SEEK_END)
        stream.seek(0)
        self._elements = 0
        self._ends_at: int | None = None
        self.saw_pixels = self._stopped = False

    @property
    def cut_short(self) -> bool:
        """Whether the last element runs past the file's end, or the file goes on with less than an element."""
        if self._ends_at is None:
            return False
        goes_on = not self.saw_pixels and not self._stopped
        return self._ends_at > self._size or (goes_on and self._ends_at < self._size)

    def __call__(self, tag: "BaseTag", vr: str | None, length: int) -> bool:
        del vr  # pydicom passes it
        self._elements += 1
        if self._elements > _ELEMENTS_AT_MOST:
            raise UnfitError("not an image", f"has more than {_ELEMENTS_AT_MOST:,} DICOM elements; export it again")
        self.saw_pixels |= tag == _PIXEL_DATA
        self._stopped = int(tag) > _PIXEL_DATA
        if not self._stopped:
            self._ends_at = None if length == 0xFFFFFFFF else self._stream.tell() + length
        return self._stopped


def cut_short() -> UnfitError:
    return UnfitError("truncated", "is truncated: its end is missing; copy it again from its source")


def _file_meta(data: bytes) -> "tuple[FileMetaDataset, int]":
    """Return the file meta elements and where the data set begins."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset

    stream = io.BytesIO(data)
    stream.seek(_PREFIX_AT + 4 if data[_PREFIX_AT : _PREFIX_AT + 4] == _PREFIX else 0)
    meta = read_dataset(stream, False, True, stop_when=_ends_file_meta)
    return FileMetaDataset(meta), stream.tell()


def _inflated(data: bytes) -> bytes | None:
    """Return the data set of a deflated file, or None: not deflated. An image inflates to less than its limit."""
    meta, start = _file_meta(data)
    if DEFLATED.encode() not in data[:start]:  # pydicom would inflate without a limit: only what surely is not goes on
        return None
    if str(meta.get("TransferSyntaxUID", "")) != DEFLATED:
        raise UnfitError("not an image", "names two transfer syntaxes; export it again")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data[start:], _INFLATED_BYTES_AT_MOST)
    if inflater.unconsumed_tail:
        raise UnfitError(
            "larger than the pixel limit",
            "inflates to more than an image has; export it again without deflate",
        )
    if not inflater.eof:
        raise cut_short()
    return inflated


def listed(dataset: "Dataset", keyword: str) -> list[Any]:
    """Return the values of a tag; none when it is missing or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, (str, bytes, int, float)) else list(value)


def items(dataset: "Dataset", keyword: str) -> "list[Dataset]":
    """Return the items of a sequence; none when it is missing."""
    return listed(dataset, keyword)


def text(dataset: "Dataset", keyword: str) -> str:
    """Return a tag's first value as text, empty when it is missing."""
    values = listed(dataset, keyword)
    return str(values[0]).strip(" \0") if values else ""


def word(dataset: "Dataset", keyword: str) -> str:
    """Return a tag's first value in capitals, empty when it is missing."""
    return text(dataset, keyword).upper()


def meanings(dataset: "Dataset", keyword: str) -> str:
    """Return in capitals what the codes of a sequence mean."""
    return " ".join(word(item, "CodeMeaning") for item in items(dataset, keyword))


def numbers(dataset: "Dataset", keyword: str) -> list[float]:
    """Return a tag's values as numbers."""
    return [float(value) for value in listed(dataset, keyword) if str(value).strip()]


def number(dataset: "Dataset", keyword: str, absent: int | None = None) -> int:
    """Return a tag's first value as a whole number; `absent` when it is missing.

    Raises:
        UnfitError: it is missing, and there is no number for that.
    """
    found = numbers(dataset, keyword)
    if found:
        return int(found[0])
    if absent is None:
        raise UnfitError("not an image", f"has no {keyword} in its header, which an image has; export it again")
    return absent


def integers(value: Any, *, little_endian: bool) -> list[int]:
    """Return the 16-bit numbers of a value that pydicom may have left as bytes, since its type depends on another."""
    if isinstance(value, bytes):
        whole = value[: len(value) // 2 * 2]
        return [int(each) for each in np.frombuffer(whole, "<u2" if little_endian else ">u2")]
    return [int(each) for each in ([value] if isinstance(value, int) else value or [])]
