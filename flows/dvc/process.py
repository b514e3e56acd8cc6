"""Run DVC's commands without DVC's start: a process that has imported DVC forks one for each.

DVC takes 0.7 s of processor time to start, and a rebuild needs it once a stage. The process that forks has a single
thread and runs nothing of DVC itself, so that it holds no lock, file or database of it. Every command begins as
`python -m dvc` does after its imports, and ends as a Python of its own; flows.supervised says how it is stopped.

`python -m flows.dvc.process FD` is that process. It reads requests from the socket FD and ends when that closes,
which happens whenever the calling process ends.
"""

import contextlib
import importlib
import json
import os
import runpy
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from flows.supervised import GRACE_SECONDS, exit_code, follow, supervise

_LENGTH = struct.Struct("!I")
_KILLED = 137

# What a command of DVC imports, and would else import on its way: a second of processor time in all.
_IMPORTED = (
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.data_cloud",
    "dvc.dirs",
    "dvc.lock",
    "dvc.repo.artifacts",
    "dvc.repo.datasets",
    "dvc.repo.graph",
    "dvc.repo.index",
    "dvc.repo.metrics",
    "dvc.repo.open_repo",
    "dvc.repo.params",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.repo.stage",
    "dvc.rwlock",
    "dvc.scm",
    "dvc.utils.strictyaml",
    "dvc_data.hashfile.db.local",
    "flows.dvc.graph",
    "networkx",
    "pyparsing",
    "ruamel.yaml",
)


class DvcProcess:
    """The process that has imported DVC: started when it is first needed, and again should it have been killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    def start(self) -> None:
        """Start the process unless it runs; returns at once, while it imports DVC."""
        with self._lock:
            self._running()

    def run(
        self,
        module: str,
        *arguments: str,
        folder: Path,
        on_line: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Run `python -m MODULE ARGUMENTS` in `folder` as `run_supervised` does; commands take turns."""
        request = {
            "module": module,
            "arguments": arguments,
            "folder": str(folder),
            "environment": {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        }
        with _Command() as command:
            with self._lock:
                command.send(self._running(), json.dumps(request).encode())
            return follow(command, on_line)

    def stop(self) -> None:
        """End the process; the next command starts another."""
        with self._lock:
            if self._process and self._requests:
                self._requests.close()
                self._process.wait()

    def _running(self) -> socket.socket:
        if self._process and self._requests and self._process.poll() is None:
            return self._requests
        if self._requests:
            self._requests.close()
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.dvc.process", str(theirs.fileno())],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C in the terminal is for the caller
            )
        return self._requests


DVC = DvcProcess()
"""That of this process."""


class _Command:
    """The caller's ends of a command's pipes: its standard input, its output, and its exit code when it has ended."""

    def __init__(self) -> None:
        self._stdin, self.stdin = _pipe()
        self.stdout, self._stdout = _pipe()
        self._code, self._write_code = _pipe()

    def __enter__(self) -> "_Command":
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self.stdin, self.stdout, self._code, self._stdin, self._stdout, self._write_code):
            end.close()

    def send(self, requests: socket.socket, request: bytes) -> None:
        """Ask for the command, and give its ends of the pipes away."""
        theirs = (self._stdin, self._stdout, self._write_code)
        socket.send_fds(requests, [_LENGTH.pack(len(request))], [end.fileno() for end in theirs])
        requests.sendall(request)
        for end in theirs:
            end.close()

    def wait(self) -> int:
        """Return the exit code, as of a SIGKILL where the process that forks was killed."""
        return int(self._code.read() or _KILLED)


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    return os.fdopen(read, "rb", buffering=0), os.fdopen(write, "wb", buffering=0)


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork a command for each request; returns its request in the command, None in the end."""
    while True:
        head, pipes, _, _ = socket.recv_fds(requests, _LENGTH.size, 3)
        if not head:
            return None
        request: dict[str, Any] = json.loads(_read(requests, _LENGTH.unpack(head)[0]))
        between = os.fork()
        if not between:
            requests.close()
            _fork_supervised(*pipes)
            return request
        code = _wait(between)
        with contextlib.suppress(BrokenPipeError):  # the caller was killed
            os.write(pipes[2], str(exit_code(code)).encode())
        for pipe in pipes:
            os.close(pipe)


def _read(requests: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (part := requests.recv(length - len(data))):
        data += part
    return data


def _fork_supervised(stdin: int, stdout: int, code: int) -> None:
    """Become the process in between and fork the command; returns in the command alone."""
    os.setsid()
    os.close(code)
    for number, pipe in enumerate((stdin, stdout, stdout)):
        os.dup2(pipe, number)
    os.close(stdin)
    os.close(stdout)
    command = os.fork()
    if command:
        os.setpgid(command, command)  # here and in the command: whoever comes first
        os._exit(supervise(command, lambda: _wait(command), GRACE_SECONDS))
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _become(module: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Go on as `python -m MODULE ARGUMENTS` in `folder`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in _IMPORTED:
        importlib.import_module(name)
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked:
        _become(**asked)
