"""What other processes do: questions to which one that ends meanwhile is an answer too."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.waiting import wait_for


@dataclass(frozen=True)
class Stopped:
    """How a command ended that a signal stopped; `child` is the process that it had started."""

    code: int
    last_words: bytes
    child: int


def stopped_by(number: signal.Signals, arguments: Sequence[str], *, child: Path, api: str) -> Stopped:
    """Start Python with `arguments`, and send it a signal when its child has written its process id to `child`.

    It has a minute to end. `api` is the address of Prefect's server.
    """
    environment = {**os.environ, "PREFECT_API_URL": api}
    with subprocess.Popen([sys.executable, *arguments], env=environment, stderr=subprocess.PIPE) as process:
        wait_for(lambda: child.exists() and child.read_text())
        process.send_signal(number)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    return Stopped(process.returncode, errors.splitlines()[-1], int(child.read_text()))


def has_ended(pid: int) -> bool:
    """Say whether a process is gone, or only waits for somebody to collect its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def command_of(process: psutil.Process) -> list[str]:
    """Return the command line of a process; nothing of one that has ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
