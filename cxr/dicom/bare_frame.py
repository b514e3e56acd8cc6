"""A compressed frame without what its encoder or a program after it wrote beside the pixels: comments, EXIF, a tail.

The standards let a decoder ignore these segments, so the pixels stay the same bits: JPEG and JPEG-LS (ITU-T T.81 B.1.1,
T.87 C), JPEG 2000 (T.800 A). A frame that is built in an unusual way is not taken apart.
"""

import re

_APP, _COMMENT, _SCAN = range(0xE0, 0xF0), 0xFE, 0xDA
_START, _END = b"\xff\xd8", b"\xff\xd9"  # of a JPEG; a JPEG 2000 codestream ends with the same two bytes
_MARKER_AFTER_SCAN = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # in the data of a scan 0xff is stuffed, but for RST
_START_2000, _COMMENT_2000, _TILE_PART, _TILE_DATA = b"\xff\x4f", 0x64, 0x90, 0x93


class _UnusualError(Exception):
    """The frame is not built as expected."""


def bare_frame(frame: bytes) -> bytes | None:
    """Return a JPEG, JPEG-LS or JPEG 2000 frame with the pixels alone; None for one that cannot be taken apart."""
    try:
        if frame.startswith(_START):
            return _bare_jpeg(frame)
        if frame.startswith(_START_2000):
            return _bare_jpeg_2000(frame)
    except _UnusualError:
        return None
    return None


def _bare_jpeg(frame: bytes) -> bytes:
    kept, at = [_START], len(_START)
    while not frame.startswith(_END, at):
        marker, end = _segment(frame, at)
        if marker not in _APP and marker != _COMMENT:
            kept.append(frame[at:end])
        at = end
        if marker == _SCAN:
            found = _MARKER_AFTER_SCAN.search(frame, at)
            if found is None:
                raise _UnusualError
            kept.append(frame[at : found.start()])
            at = found.start()
    return b"".join([*kept, _END])


def _bare_jpeg_2000(frame: bytes) -> bytes:
    kept, at = [_START_2000], len(_START_2000)
    while (marker := _segment(frame, at)[0]) != _TILE_PART:
        end = _segment(frame, at)[1]
        if marker != _COMMENT_2000:
            kept.append(frame[at:end])
        at = end
    start = at
    while not frame.startswith(_END, at):
        at = _end_of_tile_part(frame, at)
    return b"".join([*kept, frame[start:at], _END])


def _end_of_tile_part(frame: bytes, at: int) -> int:
    """Return where a tile part ends. Its header names its length, so a comment in it cannot be left out."""
    marker, inside = _segment(frame, at)
    length = int.from_bytes(frame[at + 6 : at + 10], "big")
    while marker != _COMMENT_2000 and not frame.startswith(bytes([0xFF, _TILE_DATA]), inside):
        marker, inside = _segment(frame, inside)
    if marker == _COMMENT_2000 or not inside < at + length < len(frame):
        raise _UnusualError
    return at + length


def _segment(frame: bytes, at: int) -> tuple[int, int]:
    """Return the marker of the segment at `at`, and where it ends."""
    length = int.from_bytes(frame[at + 2 : at + 4], "big")
    if frame[at : at + 1] != b"\xff" or length < 2 or at + 2 + length >= len(frame):
        raise _UnusualError
    return frame[at + 1], at + 2 + length
