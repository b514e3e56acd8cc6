"""Atomic files and folders, JSON, digests, and names as they may be shown."""

import fcntl
import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
_COMMANDS = {"Cc", "Zl", "Zp"}  # categories of letters that move the cursor, set colours or begin a line
_TURNS = {"LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # and of those that turn the text around them


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it is renamed to `path` when the block ends without an error.

    Of two that write the same file at once, the second waits for the first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with _held(partial):
        try:
            yield partial
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def _held(partial: Path) -> Iterator[None]:
    """Create a file and hold it during the block; wait while another holder has it.

    The file is its own lock, so none is left behind. Whoever waited for it finds it renamed, and creates it anew.
    """
    while True:
        file = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(OSError):  # a file system without flock
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, partial):
                yield
                return
        finally:
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it replaces `path` when the block ends without an error.

    What a killed run left beside it is removed first. Where `path` is a link, all this is true of what it links to.
    """
    path = unlinked(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        move_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_folder(folder: Path, to: Path) -> None:
    """Rename `folder` to `to`; what was there is moved aside first and then removed, so that it is never half there."""
    to = unlinked(to)
    aside = to.with_name(f".{to.name}.old")
    _remove(aside)
    try:
        if to.exists():
            to.replace(aside)
        folder.replace(to)
    except BaseException:  # an interrupt, too
        if aside.exists() and not to.exists():
            aside.replace(to)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    """Remove a folder, or the file that stood in its place."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def unlinked(path: Path) -> Path:
    """Return what `path` links to, so that a link to another disk stays one; a path that is no link stays as it is."""
    return path.resolve() if path.is_symlink() else path


def expanded(path: str) -> Path:
    """Return `path` with the home folder in place of `~`; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def printable(text: str) -> str:
    """Return a text in which what no output takes, and what a terminal takes for a command, is escaped.

    A file may have any name: with a byte that is not UTF-8, which stands as \\xe9, or with an escape sequence.
    """
    return "".join(map(_shown, text))


def _shown(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # what Python reads such a byte as
        return f"\\x{ord(letter) - 0xDC00:02x}"
    is_plain = (
        unicodedata.category(letter) not in _COMMANDS | {"Cs"} and unicodedata.bidirectional(letter) not in _TURNS
    )
    return letter if is_plain else letter.encode("unicode_escape").decode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError for NaN, which is not JSON."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def is_special(path: Path) -> bool:
    """Return whether `path` exists and is no regular file, such as a folder or a pipe, whose reading may never end."""
    return path.exists() and not path.is_file()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
