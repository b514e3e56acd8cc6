"""What a person at the command line sees: help at once, one line for an error, an exit code of its kind."""

import os
import subprocess
import sys

import pytest

from tests.support.project import PROJECT

COMMANDS = sorted(path.stem for path in (PROJECT / "tasks").glob("*.py") if "__main__" in path.read_text())
HEAVY = {"torch", "pandas", "numpy", "mlflow", "great_expectations", "cv2", "pydantic"}


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
def test_help_says_what_the_command_does_and_loads_nothing_heavy(name: str) -> None:
    answer = run("-X", "importtime", "-m", f"tasks.{name}", "--help")
    assert answer.returncode == 0
    assert answer.stdout.startswith(f"usage: ./run {name}")
    loaded = {line.rsplit("|", 1)[-1].strip() for line in answer.stderr.splitlines()}
    assert not loaded & HEAVY


def test_error_is_one_line_with_an_exit_code_of_its_kind() -> None:
    answer = run("-m", "tasks.split", "--params", "gone.yaml")
    assert answer.returncode == 2
    assert answer.stderr == "error: gone.yaml is missing; run from the project's root, where params.yaml is\n"


def test_interrupt_says_that_the_command_can_be_run_again() -> None:
    script = "from cxr.common.cli import run_command\ndef main():\n    raise KeyboardInterrupt\nrun_command(main)"
    answer = run("-c", script)
    assert answer.returncode == 130
    assert answer.stderr == "interrupted; run the same command again to go on\n"


def test_telemetry_is_off_in_every_process_of_ours() -> None:
    script = (
        "import os\nfrom cxr.common.cli import run_command\n"
        "run_command(lambda: print(os.environ['DO_NOT_TRACK'], os.environ['GX_ANALYTICS_ENABLED']))"
    )
    bare = {name: value for name, value in os.environ.items() if name not in {"DO_NOT_TRACK", "GX_ANALYTICS_ENABLED"}}
    answer = run("-c", script, **bare)
    assert answer.stdout == "true false\n"
