"""The command line that all steps share: parameters in, one clear line and an exit code out."""

import argparse
import errno
import inspect
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import TextIOWrapper
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from cxr.common.engines import ENGINES, Engine, has_torch
from cxr.common.errors import CxrError, MemoryLimitError, ParamsError, StorageError, Terminated
from cxr.common.files import printable
from cxr.common.secret_files import read_secret_files

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
_WRONG_PLACE = {
    errno.EEXIST,
    errno.EFBIG,  # more than `ulimit -f`, or the file system, allows
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
}
_NO_ROOM = "free some space or make the folder writable, then run the same command again"
_NO_MEMORY = (
    "out of memory; end other programs, lower `workers` or `batch_size` in params.yaml, or allow more memory, then run "
    "the same command again"
)
_NO_RIGHT = "give this user the right to it, then run the same command again"
_OTHER_PLACE = "name another file or folder"
_NO_MEMORY_MESSAGES = (
    "Cannot allocate memory",  # C
    "Insufficient memory",  # OpenCV
    "CUDA out of memory",  # torch
    "std::bad_alloc",  # C++
    "can't start new thread",  # Python, which gets no stack for it
    "failed to map segment from shared object",  # the loader of libraries
)
_INTERRUPTED = "interrupted; run the same command again to continue"
_TERMINATED = "terminated; run the same command again to continue"

_BROKEN_PIPE = 128 + 13  # as a shell reports a program that SIGPIPE ended

log = logging.getLogger("cxr")


def configure_process() -> None:
    """Configure a process of this project: no telemetry, plain log lines on standard error, and an output for any name.

    Standard input or output is missing where the command was started with a closed one.
    """
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)  # it stands where a child process looks for its own
            setattr(sys, name, stream)
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack a letter of a file's name
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run `main`; print a CxrError, or a lack of disk or memory, as one line and exit with its code."""
    configure_process()
    try:
        read_secret_files()
        with _terminated_by_signal():
            code = main() or 0
        sys.stdout.flush()
        sys.exit(code)
    except CxrError as error:
        _end(error)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        sys.exit(_BROKEN_PIPE)
    except OSError as error:
        if _is_out_of_memory(error):
            _end_without_memory()
        _end_without_place(error)
    except Terminated as terminated:
        print(_TERMINATED, file=sys.stderr)
        sys.exit(terminated.exit_code)
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    except UnicodeEncodeError as error:
        letters = error.object[error.start : error.end]  # not all of it, which may be about a patient
        _end(ParamsError(f"a name has {letters}, which cannot be written as {error.encoding}; choose another name"))
    except ModuleNotFoundError as error:
        if not _is_not_installed(error):
            raise
        _end(_not_installed(error))
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _end_without_memory()


@contextmanager
def _terminated_by_signal() -> Iterator[None]:
    """Raise Terminated where SIGTERM comes, which docker, systemd and Kubernetes send; by default nothing is tidied up.

    A second one is ignored: what the first one has begun to tidy up ends.
    """

    def terminate(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed; of the libraries' own errors only the message says so."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY_MESSAGES)


def _end_without_memory() -> NoReturn:
    print(f"error: {_NO_MEMORY}", file=sys.stderr)
    sys.exit(MemoryLimitError.exit_code)


def _end_without_place(error: OSError) -> NoReturn:
    """End where a file cannot be at its place; an error about two files, as of a copy, is about the second."""
    if error.errno not in _CANNOT_WRITE | _WRONG_PLACE:
        raise error
    what = f"{error.filename2 or error.filename or 'an output'}: {error.strerror}"
    if error.errno in _WRONG_PLACE:
        _end(ParamsError(f"{what}; {_OTHER_PLACE}"))
    _end(StorageError(f"{what}; {_NO_RIGHT if error.errno == errno.EACCES else _NO_ROOM}"))


def _is_not_installed(error: ModuleNotFoundError) -> bool:
    """Return whether a package is missing, and no module of this project."""
    return (error.name or "").partition(".")[0] not in {"", "cxr", "flows", "tasks"}


def _not_installed(error: ModuleNotFoundError) -> ParamsError:
    return ParamsError(
        f"{error.name} is not installed, which this command needs: `make setup FOR=use` builds an environment with it"
    )


def _end(error: CxrError) -> NoReturn:
    print(f"error: {printable(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)


def _nobody_reads() -> bool:
    """Return whether it is standard output that broke, as in `| head -1`; what is still unwritten then goes nowhere.

    The pipe is asked, as a flush cannot tell: the write that failed may have left nothing behind to flush.
    """
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # no event is asked for: a closed pipe reports itself
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def run_step(step: Callable[[Any, Any], None], *, shared: bool = False) -> NoReturn:
    """Run the pipeline step `step(section, paths)` with its own section of params.yaml.

    The function's name is the name of the stage, of the section and of the module; the module's
    docstring is the help text. A second process of the same step in one project ends with a BusyError, unless several
    processes share the step, which then takes the lock itself.
    """

    def main() -> None:
        from cxr.common.locks import step_lock
        from cxr.common.params import read_params  # pydantic; `--help` imports this module and must not wait for it

        arguments = step_parser(inspect.getmodule(step)).parse_args()
        params = read_params(arguments.params)
        with nullcontext() if shared else step_lock(params.paths.checkpoints, step.__name__):
            step(params.section(step.__name__), params.paths)

    run_command(main)


def answer_help(parser: argparse.ArgumentParser) -> None:
    """Answer `--help` and a wrong flag before the imports below, which take seconds, and start the process.

    A task's module calls this between its light and its heavy imports, when it runs as a command; nothing else in it
    has to import lazily. An interrupt or too little memory during those imports is one line, as in `run_command`.
    Secrets are read from their files here, because libraries look for them as they are imported.
    """
    configure_process()
    sys.excepthook = _end_plainly
    parser.parse_args()
    try:
        read_secret_files()
    except CxrError as error:
        _end(error)


def _end_plainly(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(_INTERRUPTED, file=sys.stderr)
    elif isinstance(error, Exception) and _is_out_of_memory(error):
        print(f"error: {_NO_MEMORY}", file=sys.stderr, flush=True)
        os._exit(MemoryLimitError.exit_code)  # a hook cannot choose the code; an import leaves nothing to tidy up
    elif isinstance(error, ModuleNotFoundError) and _is_not_installed(error):
        print(f"error: {_not_installed(error)}", file=sys.stderr, flush=True)
        os._exit(ParamsError.exit_code)
    else:
        sys.__excepthook__(kind, error, traceback)


def number_within(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    """Return the `type` of an argument that is a number from `least` to `most`."""

    def read(given: str) -> float:
        with suppress(ValueError):
            number = kind(given)
            if least <= number <= most:  # NaN is not
                return number
        a_number = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {a_number} from {least} to {most}, got {given!r}")

    return read


port_number = number_within(int, 1, 65535)
"""The `type` of an argument that is a TCP port to listen on."""


def step_parser(module: Any) -> argparse.ArgumentParser:
    """Return the parser that all pipeline steps share."""
    parser = command_parser(module)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    return parser


def add_engine_argument(parser: argparse.ArgumentParser, default: Engine) -> None:
    """Add `--engine`, which `cxr.inference.classifier.load_classifier` takes; without torch openvino is the default."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=default if has_torch() else "openvino",
        help="what computes: torch, bit for bit as evaluated, or openvino, the faster exported network (%(default)s)",
    )


def command_parser(module: Any) -> argparse.ArgumentParser:
    """Return a parser whose program name and help text come from `module`."""
    if module is None or not module.__doc__:
        raise ParamsError("a command needs a module docstring for its help text")
    name = module.__spec__.name if module.__spec__ else module.__name__
    return argparse.ArgumentParser(
        prog=f"./run {name.removeprefix('tasks.')}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
