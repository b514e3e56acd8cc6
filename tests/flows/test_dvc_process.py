"""Commands forked from a process that has imported DVC: like those that start by themselves, and stopped like them."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.dvc.process import DVC, DvcProcess
from tests.flows.test_supervised import PARENT_AND_CHILD
from tests.support.faults import fault
from tests.support.processes import command_of, has_ended
from tests.support.project import PROJECT
from tests.support.waiting import wait_for


@pytest.fixture
def forks() -> Iterator[DvcProcess]:
    DVC.stop()  # tests of flows in this process may have used it
    process = DvcProcess()
    yield process
    process.stop()


def serving() -> list[psutil.Process]:
    """Return the processes of this one that fork."""
    return [child for child in psutil.Process().children() if "flows.dvc.process" in command_of(child)]


def test_lines_exit_code_arguments_folder_and_environment_are_the_commands_own(
    forks: DvcProcess, tmp_path: Path
) -> None:
    (tmp_path / "speak.py").write_text(
        "import os, sys; print(os.getcwd(), sys.argv[1:], os.environ['COLOUR'], repr(sys.stdin.read()));"
        "print('err', file=sys.stderr); sys.exit(7)"
    )
    lines: list[str] = []
    code = forks.run("speak", "a", "b", folder=tmp_path, on_line=lines.append, environment={"COLOUR": "grey"})
    assert code == 7
    assert lines == [f"{tmp_path.resolve()} ['a', 'b'] grey ''", "err"]


def test_dvc_lock_has_the_bytes_of_dvc_itself(forks: DvcProcess, tiny: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(tiny, tmp_path / "twin")
    for name in ("ingest", "train"):
        assert forks.run("dvc", "repro", "-s", name, folder=tiny, on_line=print) == 0
        subprocess.run([sys.executable, "-m", "dvc", "repro", "-s", name], cwd=twin, check=True)
    assert (tiny / "dvc.lock").read_bytes() == (twin / "dvc.lock").read_bytes()


def test_the_process_that_forks_has_one_thread(forks: DvcProcess, tmp_path: Path) -> None:
    forks.run("dvc", "--version", folder=tmp_path, on_line=print)
    assert [process.num_threads() for process in serving()] == [1]


@fault("flows.rebuild", "the process that starts DVC is killed", "the next command starts another", "nothing")
def test_a_killed_process_is_replaced_and_a_command_that_a_signal_ended_says_which(
    forks: DvcProcess, tmp_path: Path
) -> None:
    (tmp_path / "end.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    for _ in range(2):
        assert forks.run("end", folder=tmp_path, on_line=print) == 128 + signal.SIGTERM
        (process,) = serving()
        process.kill()
        process.wait()


def test_an_interruption_stops_the_command_and_its_children(forks: DvcProcess, tmp_path: Path) -> None:
    (tmp_path / "both.py").write_text(PARENT_AND_CHILD)
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.extend(int(pid) for pid in line.split())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forks.run("both", folder=tmp_path, on_line=interrupt)
    assert len(pids) == 2
    wait_for(lambda: all(map(has_ended, pids)))
    assert forks.run("dvc", "--version", folder=tmp_path, on_line=print) == 0


def test_killing_the_asking_process_outright_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "both.py").write_text(PARENT_AND_CHILD)
    asking = f"""
from pathlib import Path
from flows.dvc.process import DVC
DVC.run("both", folder=Path({str(tmp_path)!r}), on_line=lambda line: print(line, flush=True))
"""
    command = [sys.executable, "-c", asking]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        pids += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        os.kill(process.pid, signal.SIGKILL)
        assert process.stderr.read() == ""  # until the last process that could write is gone
    assert len(pids) > 2
    wait_for(lambda: all(map(has_ended, pids)))
