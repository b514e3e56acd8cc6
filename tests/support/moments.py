"""Moments at which a stage commits something, and a child process in which it is stopped there.

The child is a fork of this process, so that nothing has to be imported again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import cv2
import torch
from sqlalchemy.orm import Session

Command = Callable[[], object]
Moment = Callable[[int, Command], None]
"""Calls a command when this process does something for the n-th time."""
_MOST_SECONDS = 300


def before_rename(number: int, do: Command) -> None:
    """Call `do` right before this process renames a file or folder for the n-th time."""
    _before(Path, "replace", number, do)


def before_commit(number: int, do: Command) -> None:
    """Call `do` right before this process commits to its store for the n-th time."""
    _before(Session, "commit", number, do)


def before_removal(number: int, do: Command) -> None:
    """Call `do` right before this process removes a folder for the n-th time."""
    _before(shutil, "rmtree", number, do)


def _before(owner: Any, name: str, number: int, do: Command) -> None:
    whole, left = getattr(owner, name), [number]

    def method(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            do()
        return whole(*arguments, **named)

    setattr(owner, name, method)


def signals_itself(number: signal.Signals) -> Command:
    """Return a function that sends a signal to its own process."""
    return lambda: os.kill(os.getpid(), number)


def in_child(command: Command, prepare: Command, *, said: Path | None = None) -> int:
    """Call `prepare`, then `command`, in a child; return its exit code, or the negative number of the signal.

    What it says on standard error goes to the file `said`.
    """
    child = _started(command, prepare, said)
    child.join(_MOST_SECONDS)
    if child.is_alive():
        child.kill()
        raise TimeoutError(f"the child did not end within {_MOST_SECONDS} s")
    return int(child.exitcode or 0)


@contextlib.contextmanager
def held_in_child(command: Command, moment: Moment, number: int) -> Iterator[None]:
    """Run `command` in a child, which waits at a moment while the block runs; it must then end well."""
    context = multiprocessing.get_context("fork")
    reached, free = context.Event(), context.Event()

    def wait() -> None:
        reached.set()
        free.wait(_MOST_SECONDS)

    child = _started(command, lambda: moment(number, wait), None)
    try:
        while not reached.wait(0.1):
            assert child.is_alive(), "it ended before the moment came"
        yield
    finally:
        free.set()
        child.join()
    assert child.exitcode == 0


def _started(command: Command, prepare: Command, said: Path | None) -> ForkProcess:
    child = multiprocessing.get_context("fork").Process(target=_run, args=(command, prepare, said))
    child.start()
    return child


def _run(command: Command, prepare: Command, said: Path | None) -> None:
    torch.set_num_threads(1)  # the pools of the parent's threads are not in the child
    cv2.setNumThreads(0)
    if said:
        sys.stderr = said.open("w", buffering=1)
    code: int | str | None = 0
    try:
        prepare()
        command()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
        code if isinstance(code, int) else int(code is not None)
    )  # earlier tests leave work for an exit, which may fail
