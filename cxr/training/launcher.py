"""Start a training in several processes through torchrun, with the command for a single process.

`CXR_TORCHRUN` holds torchrun's options; `torchrun OPTIONS -m tasks.train` does the same without it.

    CXR_TORCHRUN="--nproc-per-node 2" ./run train              two processes, or two GPUs, of this machine
    CXR_TORCHRUN="--nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id NAME --rdzv-endpoint HOST:29500"
                                                                         the same command on both machines

Processes of one machine meet in a file and communicate over loopback, so no port is open to the network. Processes of
several machines communicate unencrypted, as torch does: their network must be private.
"""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from cxr.common.errors import ParamsError, Terminated, TrainingError
from cxr.training.distributed import STORE_VARIABLE, PeerLostError

VARIABLE = "CXR_TORCHRUN"
_ELSEWHERE = ("--nnodes", "--rdzv", "--master", "--standalone")
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}


def run_processes(module: str, arguments: list[str], options: str) -> None:
    """Run `python -m MODULE ARGUMENTS` in the processes that torchrun's `options` describe; wait for their end.

    Raises:
        TrainingError: a process failed, and the others were stopped; with its message and exit code if it left any.
        ParamsError: torchrun rejects the options.
        KeyboardInterrupt: this process was interrupted, or terminated by SIGTERM, and the processes were stopped.
    """
    elastic: Any = importlib.import_module("torch.distributed.run")  # untyped
    # It prints a page about a failure, we print one line.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    words = shlex.split(options)
    with tempfile.TemporaryDirectory(prefix="cxr-") as folder:
        if not any(word.startswith(_ELSEWHERE) for word in words):
            words += _on_this_machine(Path(folder))
        try:
            parsed = elastic.parse_args([*words, "--log-dir", folder, "--module", module, *arguments])
        except SystemExit as error:
            raise ParamsError(f"{VARIABLE} must hold options of torchrun, which rejects {options!r}") from error
        try:
            elastic.run(parsed)
        except ChildFailedError as error:
            raise _as_one_line(error.failures) from error
        except SignalException as error:
            raise (Terminated if error.sigval == signal.SIGTERM else KeyboardInterrupt) from error


def _on_this_machine(folder: Path) -> list[str]:
    """Return options with which the processes meet in files in `folder`; set the environment for them."""
    os.environ.update({STORE_VARIABLE: str(folder / "processes"), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
    for name, value in _LOOPBACK.items():
        os.environ.setdefault(name, value)
    meeting = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-id", folder.name]
    return [*meeting, "--rdzv-endpoint", str(folder / "agents"), "--local-addr", "127.0.0.1"]


def _as_one_line(failures: dict[int, ProcessFailure]) -> TrainingError:
    """Return the cause: the first process that failed by itself, not because another had ended."""
    first = sorted(failures.items(), key=lambda failure: failure[1].timestamp)
    own = [failure for failure in first if not _message(failure[1]).startswith(PeerLostError.__name__)]
    rank, cause = (own or first)[0]
    left_message = Path(cause.error_file).is_file()
    if cause.exitcode < 0:
        message = f"process {rank} of the training was killed by {cause.signal_name()} and the others were stopped"
        message += "; run the same command again to resume from the last complete epoch"
    elif left_message:
        message = _message(cause).partition(": ")[2]
    else:
        message = f"process {rank} of the training ended with exit code {cause.exitcode}; its messages are above"
    error = TrainingError(message)
    error.exit_code = cause.exitcode if left_message and cause.exitcode > 0 else TrainingError.exit_code
    return error


def _message(failure: ProcessFailure) -> str:
    """Return "Type: text" of the error that a process recorded, which torch keeps as a dict, else torch's text."""
    message: Any = failure.message
    return str(message["message"] if isinstance(message, dict) else message)
