"""Read single tags of DICOM files; no value of a tag reaches a log or the screen.

pydicom quotes values in its warnings, log lines and errors, including patients' names. This module silences it
permanently and turns its exceptions into ImageErrors without their text.
"""

import io
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID

from cxr.common.errors import ImageError
from cxr.common.warning_filters import ignore_warnings_of

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"

_PREFIX_AT, _PREFIX = 128, b"DICM"
_PIXEL_DATA = 0x7FE00010
_ELEMENTS_AT_MOST = 20_000
_INFLATED_BYTES_AT_MOST = 1 << 28
_LIBRARIES = ("pydicom", "highdicom")


class DicomError(Exception):
    """A rejected file. `problem` continues the file's name in a message and has no value of a free-text tag."""

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason, self.problem = reason, problem


@contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Turn every exception while reading the DICOM file `name` into an ImageError without values of its tags."""
    try:
        yield
    except DicomError as rejected:
        raise ImageError(f"{name} {rejected.problem}", reason=rejected.reason) from None
    except (ImageError, MemoryError):  # too little memory says nothing about the file
        raise
    # pydicom raises any exception of its parser, from KeyError to RecursionError; its text may quote a patient's tag.
    except Exception:
        raise ImageError(
            f"{name} is a DICOM file with a damaged header: expected tags as in DICOM PS3.5; export it again",
            reason="not an image",
        ) from None


def read_dicom(data: bytes, keywords: Sequence[str]) -> Dataset:
    """Read only the tags `keywords` of a file, without a warning or a log line.

    Raises:
        DicomError: the file is truncated, or its header is longer than that of any image.
        Exception: any exception of pydicom; see `image_errors`.
    """
    quiet_libraries()
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
    if watch.is_truncated or (watch.saw_pixels and "PixelData" in keywords and "PixelData" not in dataset):
        raise truncated()
    syntax = str(meta.get("TransferSyntaxUID", "")).strip(" \0")
    if not syntax:  # a file without meta header: pydicom has detected the encoding
        implicit, little_endian = dataset.original_encoding
        syntax = IMPLICIT if implicit else EXPLICIT if little_endian else BIG_ENDIAN
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    return dataset


def quiet_libraries() -> None:
    """Silence pydicom and highdicom permanently: their warnings and log lines quote values."""
    config.settings.reading_validation_mode = config.IGNORE
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        ignore_warnings_of(library)


def _ends_file_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    del vr, length  # pydicom passes them
    return tag >> 16 != 2


class _Watch:
    """Called before each element: stops after the pixels and detects a file that ends inside an element."""

    def __init__(self, stream: io.BytesIO) -> None:
        self._stream, self._size = stream, stream.seek(0, io.SEEK_END)
        stream.seek(0)
        self._elements = 0
        self._ends_at: int | None = None
        self.saw_pixels = self._stopped = False

    @property
    def is_truncated(self) -> bool:
        """Whether the last element exceeds the file, or bytes that are not an element follow it."""
        if self._ends_at is None:
            return False
        continues = not self.saw_pixels and not self._stopped
        return self._ends_at > self._size or (continues and self._ends_at < self._size)

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        del vr  # pydicom passes it
        self._elements += 1
        if self._elements > _ELEMENTS_AT_MOST:
            raise DicomError("not an image", f"has more than {_ELEMENTS_AT_MOST:,} DICOM elements; export it again")
        self.saw_pixels |= tag == _PIXEL_DATA
        self._stopped = int(tag) > _PIXEL_DATA
        if not self._stopped:
            self._ends_at = None if length == 0xFFFFFFFF else self._stream.tell() + length
        return self._stopped


def truncated() -> DicomError:
    """Return the error for a file whose end is missing."""
    return DicomError("truncated", "is truncated: its end is missing; copy it again from its source")


def _file_meta(data: bytes) -> tuple[FileMetaDataset, int]:
    """Return the file meta elements and the offset of the data set."""
    stream = io.BytesIO(data)
    stream.seek(_PREFIX_AT + 4 if data[_PREFIX_AT : _PREFIX_AT + 4] == _PREFIX else 0)
    meta = read_dataset(stream, False, True, stop_when=_ends_file_meta)
    return FileMetaDataset(meta), stream.tell()


def _inflated(data: bytes) -> bytes | None:
    """Return the inflated data set of a deflated file, or None. The inflated size is limited."""
    meta, start = _file_meta(data)
    if (
        DEFLATED.encode() not in data[:start]
    ):  # pydicom would inflate without a limit, so only files that cannot be deflated pass
        return None
    if str(meta.get("TransferSyntaxUID", "")) != DEFLATED:
        raise DicomError("not an image", "names two transfer syntaxes; export it again")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data[start:], _INFLATED_BYTES_AT_MOST)
    if inflater.unconsumed_tail:
        raise DicomError(
            "larger than the pixel limit",
            "inflates to more bytes than an image has; export it again without deflate",
        )
    if not inflater.eof:
        raise truncated()
    return inflated


def values_of(dataset: Dataset, keyword: str) -> list[Any]:
    """Return the values of a tag; an empty list if it is missing or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, (str, bytes, int, float)) else list(value)


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; an empty list if it is missing."""
    return values_of(dataset, keyword)


def text(dataset: Dataset, keyword: str) -> str:
    """Return the first value of a tag as text, empty if it is missing."""
    values = values_of(dataset, keyword)
    return str(values[0]).strip(" \0") if values else ""


def code_string(dataset: Dataset, keyword: str) -> str:
    """Return the first value of a tag in upper case, empty if it is missing."""
    return text(dataset, keyword).upper()


def code_meanings(dataset: Dataset, keyword: str) -> str:
    """Return the meanings of the codes of a sequence in upper case."""
    return " ".join(code_string(item, "CodeMeaning") for item in items(dataset, keyword))


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return the values of a tag as numbers."""
    return [float(value) for value in values_of(dataset, keyword) if str(value).strip()]


def number(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """Return the first value of a tag as an integer; `default` if it is missing.

    Raises:
        DicomError: it is missing and there is no default.
    """
    found = numbers(dataset, keyword)
    if found:
        return int(found[0])
    if default is None:
        raise DicomError("not an image", f"has no {keyword} in its header; export it again")
    return default


def integers(value: Any, *, little_endian: bool) -> list[int]:
    """Return the 16-bit integers of a value, which pydicom may leave as bytes: its type depends on another tag."""
    if isinstance(value, bytes):
        whole = value[: len(value) // 2 * 2]
        return [int(each) for each in np.frombuffer(whole, "<u2" if little_endian else ">u2")]
    return [int(each) for each in ([value] if isinstance(value, int) else value or [])]
