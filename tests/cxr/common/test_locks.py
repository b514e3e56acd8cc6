"""Locks of other processes: they exclude, and a killed holder leaves none behind."""

import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from pathlib import Path

import pytest

from cxr.common.locks import any_file_lock, file_lock
from tests.support.project import PROJECT
from tests.support.waiting import wait_for

HOLD = """
import sys, time
from pathlib import Path
from cxr.common.locks import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Hold a lock in another process, which the block may kill."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_a_lock_is_waited_for_until_its_holder_is_killed(tmp_path: Path) -> None:
    path, other = tmp_path / "made" / "a.lock", tmp_path / "b.lock"

    def take() -> str:
        with file_lock(path):
            return "taken"

    with held_elsewhere(path) as holder, ThreadPoolExecutor() as threads:
        waiting = threads.submit(take)
        with any_file_lock([path, other], waits_for="a study") as free:
            assert free == other
        with pytest.raises(NotYet):
            waiting.result(0.5)
        holder.kill()
        assert waiting.result(60) == "taken"
    with any_file_lock([path, other], waits_for="a study") as free:
        assert free == path


def test_whoever_waits_for_any_of_several_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lock"

    def take() -> None:
        with any_file_lock([path], waits_for="a study"):
            pass

    with ThreadPoolExecutor() as threads:
        with file_lock(path):
            waiting = threads.submit(take)
            wait_for(lambda: caplog.messages)
            with pytest.raises(NotYet):
                waiting.result(0.5)
        waiting.result(60)
    assert caplog.messages == ["waiting for a study to end"]


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    paths = [tmp_path / "a.lock", tmp_path / "b.lock"]

    def take() -> Path:
        with any_file_lock(paths, waits_for="a study") as found:
            return found

    with file_lock(paths[0]), ThreadPoolExecutor() as threads:
        assert threads.submit(take).result() == paths[1]


def test_without_flock_there_is_no_lock_rather_than_one_that_outlives_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "flock is not there")

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(OSError, match="flock is not there"), file_lock(tmp_path / "a.lock"):
        pytest.fail("the lock was taken")
