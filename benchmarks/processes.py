"""Run a command in a process of its own and measure it: wall clock, processor time, peak memory."""

import json
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:], stdout=open(sys.argv[1], "wb"), stderr=subprocess.STDOUT)
_, status, used = os.wait4(process.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
"""A small process that starts the command: a child's peak memory is at least what its parent had as it was started."""
_SHOWN_CHARACTERS = 2000


@dataclass(frozen=True)
class Measured:
    """A finished command: seconds of the wall clock and of the processor, peak resident memory in MiB, exit code.

    The peak is that of the largest process.
    """

    seconds: float
    processor_seconds: float
    peak_mib: float
    code: int


def measure(
    command: Sequence[str],
    *,
    output: Path,
    codes: Collection[int] = (0,),
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Measured:
    """Run `python -m COMMAND`, with all that it prints in the file `output`.

    Args:
        command: module and arguments.
        output: is replaced.
        codes: expected exit codes.
        folder, environment: of the process; by default those of this one.

    Raises:
        SystemExit: the command ended with another exit code; shows its last words.
    """
    launched = [sys.executable, "-S", "-c", _LAUNCHER, str(output.resolve()), sys.executable, "-m", *command]
    started = time.perf_counter()
    done = subprocess.run(launched, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds, (code, processor, peak) = time.perf_counter() - started, json.loads(done.stdout)
    if code not in codes:
        said = output.read_text(encoding="utf-8", errors="replace")
        raise SystemExit(f"{' '.join(command)} ended with {code}: {said[-_SHOWN_CHARACTERS:]}")
    return Measured(seconds, processor, peak, code)
