"""The shared command line: help text, one line for an error, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cxr.common.errors import MemoryLimitError, ParamsError
from tests.support.faults import fault
from tests.support.project import PROJECT

COMMANDS = sorted(path.stem for path in (PROJECT / "tasks").glob("*.py") if "__main__" in path.read_text())


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env=environment or None,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command(name: str) -> None:
    answer = run("-m", f"tasks.{name}", "--help")
    assert answer.returncode == 0
    assert answer.stdout.startswith(f"usage: ./run {name}")


def test_an_error_is_one_line_and_its_own_exit_code() -> None:
    answer = run("-m", "tasks.split", "--params", "gone.yaml")
    assert answer.returncode == ParamsError.exit_code
    assert answer.stderr.startswith("error: gone.yaml is missing")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("imports", "allocate"),
    [
        ("mmap", "bytearray(1 << 40)"),
        ("mmap", "mmap.mmap(-1, 1 << 40)"),
        ("numpy", "numpy.zeros(1 << 40, 'uint8')"),
        ("torch", "torch.zeros(1 << 40)"),
        ("cv2, numpy", "cv2.resize(numpy.zeros((9, 9), 'uint8'), (1 << 15, 1 << 16))"),
    ],
)
@fault(
    "every command", "there is no more memory", "it ends; outputs are written whole or not at all, as always",
    "exit code 13, out of memory, what to lower",
)  # fmt: skip
def test_no_more_memory_is_one_line(imports: str, allocate: str) -> None:
    script = (
        f"import resource, {imports}\nfrom cxr.common.cli import run_command\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + (64 << 20)\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (size, size))\nrun_command(lambda: {allocate})"
    )
    answer = run("-c", script)
    assert answer.returncode == MemoryLimitError.exit_code
    assert answer.stderr.startswith("error: out of memory")
    assert answer.stderr.count("\n") == 1


def test_an_interrupt_is_one_line_and_exit_code_130() -> None:
    script = "from cxr.common.cli import run_command\ndef main():\n    raise KeyboardInterrupt\nrun_command(main)"
    answer = run("-c", script)
    assert answer.returncode == 130
    assert answer.stderr.startswith("interrupted")
    assert answer.stderr.count("\n") == 1


@fault("every command", "SIGTERM, and once more while it tidies up", "it tidies up, then ends",
       "exit code 143, run the same command again")  # fmt: skip
def test_sigterm_is_one_line_and_a_second_one_does_not_stop_what_tidies_up() -> None:
    script = """
import os, signal
from cxr.common.cli import run_command
def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("tidied up", flush=True)
run_command(main)
"""
    answer = run("-c", script)
    assert (answer.returncode, answer.stdout) == (143, "tidied up\n")
    assert answer.stderr == "terminated; run the same command again to continue\n"


def test_a_broken_connection_is_not_taken_for_a_reader_that_left() -> None:
    code = "from cxr.common.cli import run_command\ndef main():\n    raise BrokenPipeError('socket')\nrun_command(main)"
    assert "BrokenPipeError: socket" in run("-c", code).stderr


@pytest.mark.parametrize("write", ["os.write(1, b'x')", "print('x')", "print('x' * 100_000)"])
def test_a_reader_that_left_ends_the_command_without_a_traceback(write: str) -> None:
    code = f"import os\nfrom cxr.common.cli import run_command\nrun_command(lambda: {write} and 0)"
    theirs, ours = os.pipe()
    os.close(theirs)
    ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, stdout=ours, stderr=subprocess.PIPE, check=False)
    os.close(ours)
    assert ended.stderr == b""
    assert ended.returncode == 141


@pytest.mark.parametrize(
    "do",
    [
        "sys.stdin.read() and 0",
        "print(sys.stdout.isatty(), sys.stderr.isatty())",
        "subprocess.run([sys.executable, '-c', 'import sys; sys.exit(None in (sys.stdout, sys.stderr))']).returncode",
    ],
)
def test_a_command_that_was_started_with_closed_streams_ends_well(do: str) -> None:
    code = f"import subprocess, sys; from cxr.common.cli import run_command; run_command(lambda: {do})"
    command = ["sh", "-c", f'exec "{sys.executable}" -c "$0" <&- >&- 2>&-', code]
    assert subprocess.run(command, cwd=PROJECT, check=False).returncode == 0


@pytest.mark.parametrize(
    "open_one",
    [
        "(folder / ('a' * 300)).read_text()",
        "write_json(folder / 'a_folder', {})",
        "write_json(folder / 'a_file' / 'b', {})",
        "write_json(folder / 'a_file' / 'b' / 'c', {})",
    ],
)
def test_a_path_that_cannot_be_is_one_line_that_names_it(open_one: str, tmp_path: Path) -> None:
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "a_file").touch()
    code = (
        "from pathlib import Path\nfrom cxr.common.cli import run_command\nfrom cxr.common.files import write_json\n"
        f"folder = Path({str(tmp_path)!r})\nrun_command(lambda: {open_one})"
    )
    answer = run("-c", code)
    assert answer.returncode == ParamsError.exit_code
    assert answer.stderr.startswith(f"error: {tmp_path}/a")
    assert answer.stderr.endswith("; name another file or folder\n")
    assert answer.stderr.count("\n") == 1


def test_a_file_that_is_larger_than_one_may_be_is_one_line(tmp_path: Path) -> None:
    code = "import resource; from pathlib import Path; from cxr.common.cli import run_command\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n"
    answer = run("-c", f"{code}run_command(lambda: Path({str(tmp_path / 'a')!r}).write_bytes(bytes(99)))")
    assert (answer.returncode, answer.stderr) == (
        ParamsError.exit_code,
        "error: an output: File too large; name another file or folder\n",
    )


def test_a_full_disk_is_named_by_the_copy_and_not_by_the_original() -> None:
    code = (
        "from cxr.common.cli import run_command\ndef main(): raise OSError(28, 'No space', 'here/a', None, 'there/a')\n"
    )
    answer = run("-c", f"{code}run_command(main)")
    assert answer.stderr.startswith("error: there/a: No space; free some space")


def test_a_name_with_a_command_for_the_terminal_leaves_the_error_one_line() -> None:
    code = "from cxr.common.cli import run_command; from cxr.common.errors import ParamsError\n"
    answer = run("-c", f"{code}def main(): raise ParamsError('a\\n\\x1b[2Jb is missing')\nrun_command(main)")
    assert answer.stderr == "error: a\\n\\x1b[2Jb is missing\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_output_cannot_show_ends_no_command(encoding: str) -> None:
    code = "from cxr.common.cli import run_command; run_command(lambda: print('中\\udce9'))"
    answer = run("-c", code, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == ("中\\udce9\n" if encoding == "utf-8" else "\\u4e2d\\udce9\n")


def test_a_name_that_a_file_cannot_hold_is_one_line(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from cxr.common.cli import run_command\nfile = Path({str(tmp_path / 'a')!r})\n"
    answer = run("-c", f"{code}run_command(lambda: file.write_text('b\\udce9', 'utf-8') and 0)")
    assert answer.returncode == ParamsError.exit_code
    assert answer.stderr == "error: a name has \\xe9, which cannot be written as utf-8; choose another name\n"


@pytest.mark.parametrize("where", ["as it starts", "as it runs"])
def test_a_package_that_is_not_installed_is_one_line(where: str) -> None:
    code = "import argparse; from cxr.common.cli import answer_help, run_command\n"
    code += "answer_help(argparse.ArgumentParser())\n" if where == "as it starts" else ""
    code += "def main(): import no_such_package.part\n"
    answer = run("-c", f"{code}main()" if where == "as it starts" else f"{code}run_command(main)")
    assert answer.returncode == ParamsError.exit_code
    assert answer.stderr == (
        "error: no_such_package is not installed, which this command needs: `make setup FOR=use` builds an environment "
        "with it\n"
    )


def test_telemetry_is_off() -> None:
    script = (
        "import os\nfrom cxr.common.cli import run_command\n"
        "run_command(lambda: print(os.environ['DO_NOT_TRACK'], os.environ['GX_ANALYTICS_ENABLED']))"
    )
    bare = {name: value for name, value in os.environ.items() if name not in {"DO_NOT_TRACK", "GX_ANALYTICS_ENABLED"}}
    answer = run("-c", script, **bare)
    assert answer.stdout == "true false\n"


@fault("ingest, validate, split, preprocess, train, evaluate, register",
       "a limit of address space (`ulimit -v`) leaves too little for the libraries",
       "nothing is started", "exit code 13, out of memory, what to lower")  # fmt: skip
def test_too_little_memory_for_the_imports_is_one_line(tmp_path: Path) -> None:
    command = f"ulimit -v 400000; exec {sys.executable} -m tasks.ingest --params {tmp_path}/params.yaml"
    done = subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == MemoryLimitError.exit_code, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: out of memory")
    assert "Traceback" not in done.stderr
