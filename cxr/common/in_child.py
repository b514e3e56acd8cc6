"""Work through many items in threads of a child process, so that one that crashes or hangs its decoder is named.

The child is a fork: it starts in milliseconds, and the functions that it calls need not pickle. It notes in shared
memory which items it is at. If it dies, or is at one of them for too long, each of these is done again in a child of
its own, with a limit of memory, and a new child goes on with the others. What then happens again is the item's fault.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import pickle
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from multiprocessing import Pipe, get_context
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from cxr.common.errors import MemoryLimitError, Terminated
from cxr.common.threads import map_in_order, most_pending

_LOOKS = 30
"""How often the parent looks for an item that takes too long, within the time that one may take."""

_PR_SET_PDEATHSIG = 1

Item = TypeVar("Item")
Given = TypeVar("Given")
Result = TypeVar("Result")

log = logging.getLogger("cxr")


class Fault(Enum):
    """What an item does to the process that decodes it, and nothing else."""

    CRASH = auto()
    TOO_SLOW = auto()
    TOO_MUCH_MEMORY = auto()


@dataclass(frozen=True)
class Job(Generic[Item, Given, Result]):
    """What is done with each item.

    read          returns what `decode` takes; in the child, where it may wait for a disk as long as it must
    decode        the part that may crash or hang; in the child, and its result must pickle
    faulty        returns the result of an item that `decode` does not survive
    name          of an item, in messages
    seconds       that `decode` may take
    memory_bytes  that `decode` may need
    """

    read: Callable[[Item], Given]
    decode: Callable[[Item, Given], Result]
    faulty: Callable[[Item, Fault], Result]
    name: Callable[[Item], str]
    seconds: float
    memory_bytes: int


def map_in_child(job: Job[Item, Given, Result], items: Sequence[Item], *, workers: int) -> Iterator[Result]:
    """Yield the result of each item, in their order.

    Args:
        job: what is done.
        items: the items.
        workers: threads of the child; 0 means one per core.

    Raises:
        MemoryLimitError: the child was killed, or ended, and no item is to blame.
        Exception: what a function of `job` raises.
    """
    decided: dict[int, Result] = {}
    row = 0
    while row < len(items):
        try:
            left = [each for each in range(row, len(items)) if each not in decided]
            with _Child(job, items, left, workers=workers) as child:
                while row < len(items):
                    result = decided.pop(row) if row in decided else child.result()
                    row += 1
                    yield result
        except _StoppedError as stopped:
            decided |= _decided(job, items, stopped)


def _decided(job: Job[Item, Given, Result], items: Sequence[Item], stopped: _StoppedError) -> dict[int, Result]:
    """Do each item again that the child was at, by itself."""
    names = ", ".join(job.name(items[row]) for row in stopped.rows)
    if stopped.is_slow:
        log.warning("decoding took more than %g s at %s; each is now decoded by itself", job.seconds, names)
    results = {row: _alone(job, items, row) for row in stopped.rows}
    if not any(is_faulty for _, is_faulty in results.values()):
        if stopped.was_killed or not stopped.rows:
            raise _none_to_blame(stopped, names)
        log.warning("a process that decodes %s at %s, which decode when done again", stopped, names)
    return {row: result for row, (result, _) in results.items()}


def _alone(job: Job[Item, Given, Result], items: Sequence[Item], row: int) -> tuple[Result, bool]:
    """Return the result of one item, and whether it is faulty."""
    try:
        with _Child(job, items, [row], workers=1, memory_bytes=job.memory_bytes) as child:
            return child.result(), False
    except MemoryError:
        fault = Fault.TOO_MUCH_MEMORY
    except _StoppedError as stopped:
        if stopped.was_killed or not stopped.rows:
            raise _none_to_blame(stopped, job.name(items[row])) from None
        fault = Fault.TOO_SLOW if stopped.is_slow else Fault.CRASH
    return job.faulty(items[row], fault), True


def _none_to_blame(stopped: _StoppedError, names: str) -> MemoryLimitError:
    return MemoryLimitError(
        f"a process that decodes {stopped} at {names or 'no image'}; make sure that memory is left (lower `workers` in "
        "params.yaml, end other programs) and that the installation is whole, then run the same command again"
    )


class _StoppedError(Exception):
    """The child ended before it was done, with an exit code, or was killed because it is `is_slow`, at some rows."""

    def __init__(self, rows: Sequence[int], exit_code: int, *, is_slow: bool = False) -> None:
        how = f"was ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with code {exit_code}"
        super().__init__("took too long" if is_slow else how)
        self.rows, self.is_slow = rows, is_slow
        self.was_killed = exit_code == -signal.SIGKILL and not is_slow


class _Child(Generic[Item, Given, Result]):
    """A fork of this process that works on some rows of the items, and sends the results in their order.

    It is a context, and ends with it.
    """

    def __init__(
        self,
        job: Job[Item, Given, Result],
        items: Sequence[Item],
        rows: Sequence[int],
        *,
        workers: int,
        memory_bytes: int | None = None,
    ) -> None:
        self._job, self._items, self._rows, self._workers = job, items, rows, workers
        self._memory_bytes = memory_bytes
        self._slots = most_pending(workers)
        shared = memoryview(mmap.mmap(-1, 16 * self._slots))  # no file, and the child's too
        self._at_row, self._since = shared[: 8 * self._slots].cast("q"), shared[8 * self._slots :].cast("d")
        self._results, self._theirs = Pipe(duplex=False)
        self._ready = select.poll()  # cheaper than that of the connection
        self._ready.register(self._results, select.POLLIN)
        self._process = get_context("fork").Process(target=self._run, args=(os.getpid(),), daemon=True)

    def __enter__(self) -> _Child[Item, Given, Result]:
        try:
            self._process.start()
        except BaseException:
            self._close()
            raise
        self._theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._results.close()
        self._theirs.close()

    def result(self) -> Result:
        """Return the next result. Raises what the child raises, and _StoppedError where it does not survive."""
        while not self._ready.poll(1000 * self._job.seconds / _LOOKS):
            at = self._at()
            if any(since < time.monotonic() - self._job.seconds for since in at.values()):
                raise _StoppedError(sorted(at), 0, is_slow=True)
        try:
            result, error = pickle.loads(self._results.recv_bytes())
        except (EOFError, OSError):
            raise self._ended() from None
        if error is not None:
            raise error
        made: Result = result
        return made

    def _at(self) -> dict[int, float]:
        """Return the rows that are being decoded, and since when."""
        return {row: since for row, since in zip(self._at_row, self._since, strict=True) if since}

    def _ended(self) -> BaseException:
        """Return why there are no more results."""
        self._process.join()
        code = self._process.exitcode or 0
        if code == MemoryLimitError.exit_code:
            return MemoryError()
        if code in {-signal.SIGTERM, -signal.SIGINT}:  # sent to all processes of the command, so to this one too
            return Terminated() if code == -signal.SIGTERM else KeyboardInterrupt()
        return _StoppedError(sorted(self._at()), code)

    def _run(self, parent: int) -> None:
        """Send the results, and end; in the child.

        It ends at once: what libraries registered for the end of the parent may need threads that a fork does not have.
        """
        _end_with(parent)
        if self._memory_bytes is not None:
            _limit_memory(self._memory_bytes)
        code = 0
        try:
            for result in map_in_order(self._do, enumerate(self._rows), workers=self._workers):
                self._send((result, None))
        except BrokenPipeError:
            pass  # the parent needs no more
        except MemoryError:
            code = MemoryLimitError.exit_code
        except Exception as error:
            self._send((None, error))
        os._exit(code)

    def _send(self, message: tuple[Result | None, Exception | None]) -> None:
        self._theirs.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def _do(self, numbered: tuple[int, int]) -> Result:
        number, row = numbered
        item, slot = self._items[row], number % self._slots
        given = self._job.read(item)
        self._at_row[slot] = row
        self._since[slot] = time.monotonic()  # one clock for all processes of a machine
        try:
            return self._job.decode(item, given)
        finally:
            self._since[slot] = 0.0


def _end_with(parent: int) -> None:
    """Let a signal end this process at once, as the parent's handlers are not for it, and so does the parent's end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold images
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _limit_memory(more: int) -> None:
    """Limit the address space of this process to what it has and `more` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
