"""Run a command so that none of its processes outlives the caller.

The command gets its own process group. When it has to stop, or when the calling process ends or is killed, the group
gets one SIGINT, then SIGKILL. Killing `dvc` alone would leave its stage running.

This file is also the small process in between: `python supervised.py GRACE COMMAND...`. A fork of it stops the command
when their standard input closes, which happens whenever the calling process ends. A thread would not do: as a node of
Ray ends, it kills the children of its tasks' processes, and theirs go on.
"""

import codecs
import io
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

GRACE_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_POLL_SECONDS = 0.1
_CHUNK_BYTES = 1 << 16


def run_supervised(
    command: list[str],
    *,
    folder: Path,
    on_line: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> int:
    """Run `command` in `folder`; hand every line it prints, on either stream, to `on_line` as it comes.

    Returns the exit code. On any exception, Ctrl-C and Prefect's cancellation included, the command and
    all its children are stopped before the exception goes on.
    """
    between = start_supervised(command, folder=folder, environment=environment, grace_seconds=grace_seconds)
    with between:
        return follow(between, on_line)


class Supervised(Protocol):
    """The process in between: closing its standard input stops the command; its exit code is the command's."""

    @property
    def stdin(self) -> IO[Any] | None: ...

    @property
    def stdout(self) -> IO[Any] | None: ...

    def wait(self) -> int: ...


def follow(between: Supervised, on_line: Callable[[str], None]) -> int:
    """Hand over every line as it comes and return the exit code; an exception stops the command before it goes on."""
    try:
        if between.stdout:
            for line in _lines(between.stdout.fileno()):
                on_line(line)
        return between.wait()
    finally:
        stop_supervised(between)


def start_supervised(
    command: list[str],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    output: int | IO[str] = subprocess.PIPE,
    grace_seconds: float = GRACE_SECONDS,
) -> "subprocess.Popen[str]":
    """Start `command` in `folder` without waiting; what it prints, on either stream, goes to `output`.

    Returns the process in between, whose exit code is the command's. End it with `stop_supervised` alone.
    """
    return subprocess.Popen(
        [sys.executable, "-u", __file__, str(grace_seconds), *command],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a Ctrl-C in the terminal reaches the command once, through us
    )


def _lines(pipe: int) -> Iterator[str]:
    """Yield the lines of a pipe, and come back to Python every second.

    A time limit set in another thread is an exception that waits for that; in a blocked read it would wait for ever.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
    rest, data = "", b"unread"
    while data:
        if not select.select([pipe], [], [], _LOOK_SECONDS)[0]:
            continue
        data = os.read(pipe, _CHUNK_BYTES)
        *lines, rest = (rest + decoder.decode(data, final=not data)).split("\n")
        yield from lines
    if rest:
        yield rest


def stop_supervised(between: Supervised) -> int:
    """Stop a command that `start_supervised` started, if it still runs; return its exit code."""
    if between.stdin:
        between.stdin.close()
    return between.wait()


def _main(grace: str, *command: str) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    return supervise(child.pid, child.wait, float(grace))


def supervise(group: int, wait: Callable[[], int], grace_seconds: float) -> int:
    """Be the process in between of the process group `group`; `wait` for its first process gives the exit code."""
    watcher = os.fork()
    if not watcher:
        _stop_when_stdin_closes(group, grace_seconds)
    code = wait()
    os.kill(watcher, signal.SIGKILL)
    _signal_group(group, signal.SIGKILL)  # what it started and left behind
    return exit_code(code)


def exit_code(code: int) -> int:
    """Return the exit code that a shell gives a process: 128 and its number for one that a signal ended."""
    return code if code >= 0 else 128 - code


def _stop_when_stdin_closes(group: int, grace_seconds: float) -> NoReturn:
    """Wait for it, away from the signals and the output of the process in between."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.read(0, 1)
    deadline = time.monotonic() + grace_seconds
    _signal_group(group, signal.SIGINT)
    while _signal_group(group, 0) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    _signal_group(group, signal.SIGKILL)
    os._exit(0)


def _signal_group(group: int, number: int) -> bool:
    """Signal what is left of a process group, or only look with 0; return whether anything is."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
