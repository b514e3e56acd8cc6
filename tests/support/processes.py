"""What other processes do: questions to which one that ends meanwhile is an answer too."""

import psutil


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
