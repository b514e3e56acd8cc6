"""Nothing of a supervised command outlives whoever asked for it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from prefect.utilities.timeout import timeout

from flows.supervised import run_supervised
from tests.support.processes import has_ended
from tests.support.waiting import wait_for

# Starts a child of its own, as dvc starts a stage; says both process ids.
PARENT_AND_CHILD = """
import os, subprocess, sys, time, signal
if "stubborn" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
child.wait()
"""


def test_lines_of_both_streams_arrive_with_the_exit_code(tmp_path: Path) -> None:
    lines: list[str] = []
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    assert run_supervised([sys.executable, "-c", script], folder=tmp_path, on_line=lines.append) == 7
    assert lines == ["out", "err"]


def test_lines_come_whole_however_they_were_written(tmp_path: Path) -> None:
    lines: list[str] = []
    script = """
import os, time
for part in (b"one\\r", b"\\ntwo \\xc3", b"\\xa4\\rthree\\n\\nlast \\xff"):
    os.write(1, part)
    time.sleep(0.2)
"""
    run_supervised([sys.executable, "-c", script], folder=tmp_path, on_line=lines.append)
    assert lines == ["one", "two \u00e4", "three", "", "last \ufffd"]


def test_a_command_killed_by_a_signal_says_which(tmp_path: Path) -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    code = run_supervised([sys.executable, "-c", script], folder=tmp_path, on_line=print)
    assert code == 128 + signal.SIGKILL


def test_the_command_runs_in_the_folder_with_the_given_environment(tmp_path: Path) -> None:
    lines: list[str] = []
    script = "import os; print(os.getcwd(), os.environ['COLOUR'])"
    environment = {"COLOUR": "grey"}
    run_supervised([sys.executable, "-c", script], folder=tmp_path, on_line=lines.append, environment=environment)
    assert lines == [f"{tmp_path.resolve()} grey"]


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
def test_an_interruption_stops_the_command_and_its_children(tmp_path: Path, manner: str) -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.extend(int(pid) for pid in line.split())
        raise KeyboardInterrupt

    command = [sys.executable, "-c", PARENT_AND_CHILD, manner]
    with pytest.raises(KeyboardInterrupt):
        run_supervised(command, folder=tmp_path, on_line=interrupt, grace_seconds=1)
    wait_for(lambda: all(map(has_ended, pids)))


def test_a_time_limit_holds_in_a_thread_where_tasks_of_a_fan_out_run(tmp_path: Path) -> None:
    pids: list[int] = []
    ended: list[BaseException] = []

    def limited() -> None:
        try:
            with timeout(10):  # two Pythons start meanwhile
                command = [sys.executable, "-c", PARENT_AND_CHILD]
                run_supervised(
                    command, folder=tmp_path, on_line=lambda line: pids.extend(map(int, line.split())), grace_seconds=1
                )
        except TimeoutError as error:
            ended.append(error)

    thread = threading.Thread(target=limited)
    thread.start()
    thread.join(300)
    assert len(ended) == 1
    assert len(pids) == 2
    wait_for(lambda: all(map(has_ended, pids)))


@pytest.mark.parametrize("children_too", [False, True], ids=["alone", "after its children, as Ray does"])
def test_killing_the_asking_process_outright_stops_the_command_and_its_children(
    tmp_path: Path, children_too: bool
) -> None:
    asking = f"""
import sys
from pathlib import Path
from flows.supervised import run_supervised
command = [sys.executable, "-c", {PARENT_AND_CHILD!r}]
run_supervised(command, folder=Path({str(tmp_path)!r}), on_line=lambda line: print(line, flush=True), grace_seconds=1)
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", asking], cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        for child in psutil.Process(process.pid).children() if children_too else []:
            child.kill()
        os.kill(process.pid, signal.SIGKILL)
    assert len(pids) == 2
    wait_for(lambda: all(map(has_ended, pids)))
