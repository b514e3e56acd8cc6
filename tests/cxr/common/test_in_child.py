"""An item that its process does not survive is its own fault alone; all others have the result that they always had."""

import ctypes
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cxr.common.cli import run_command
from cxr.common.errors import DataError, ImageError, MemoryLimitError, Terminated
from cxr.common.in_child import Fault, Job, map_in_child
from tests.support.faults import fault
from tests.support.moments import in_child
from tests.support.waiting import wait_for

MANY = 200
CRASHES, HANGS, HOGS = 3, 90, 150
OUTCOMES = {CRASHES: Fault.CRASH, HANGS: Fault.TOO_SLOW, HOGS: Fault.TOO_MUCH_MEMORY}


def job(decode: Callable[[int], object], *, seconds: float = 60.0) -> Job[int, int, object]:
    return Job(
        read=lambda item: item,
        decode=lambda item, _: decode(item),
        faulty=lambda _, what: what,
        name=str,
        seconds=seconds,
        memory_bytes=1 << 30,
    )


def hold_everything() -> None:
    """Wait for ever without a thread's turn for anybody else, as native code may."""
    ctypes.PyDLL(None).pause()


def decoded(item: int) -> object:
    if item == CRASHES:
        os.abort()
    if item == HANGS:
        hold_everything()
    if item == HOGS:
        bytearray(2 << 30)
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where so much is not there
    return str(item)


def test_each_item_that_its_process_does_not_survive_is_told_from_all_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = list(map_in_child(job(decoded, seconds=3), range(MANY), workers=4))
    assert found == [OUTCOMES.get(item, str(item)) for item in range(MANY)]
    slow = [re.findall(r"\d+", line) for line in caplog.messages if "took more than 3 s at" in line]
    assert any(str(HANGS) in numbers for numbers in slow)  # whoever waits for it sees which it is


def test_what_a_library_registered_for_the_end_of_its_process_is_not_done_in_a_child_of_it() -> None:
    def fails() -> None:
        raise OSError("it needs a thread that a fork does not have")

    def main() -> None:
        threading._register_atexit(fails)  # type: ignore[attr-defined]  # as anyio and Prefect do
        assert list(map_in_child(job(decoded), [HOGS], workers=1)) == [OUTCOMES[HOGS]]

    assert in_child(main, lambda: None) == 0


@fault("ingest, preprocess, forensics", "the process that decodes is killed from outside, as where memory runs out",
       "no image is called bad; the run ends", "exit code 13, the images that it was at")  # fmt: skip
def test_a_kill_from_outside_is_no_fault_of_an_item(tmp_path: Path) -> None:
    once = tmp_path / "once"

    def decode(item: int) -> int:
        if item == CRASHES and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(MemoryLimitError, match="was ended by SIGKILL at 3; make sure that memory"):
        list(map_in_child(job(decode), range(MANY), workers=1))


def test_a_crash_that_does_not_come_again_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    once = tmp_path / "once"

    def decode(item: int) -> int:
        if item == CRASHES and not once.exists():
            once.touch()
            os.abort()
        return item

    assert list(map_in_child(job(decode), range(MANY), workers=1)) == list(range(MANY))
    assert "was ended by SIGABRT at 3, which decode when done again" in caplog.text


@pytest.mark.parametrize("error", [DataError("a shard is damaged"), ImageError("x is empty", reason="empty")])
def test_what_a_function_raises_comes_out_as_it_is(error: Exception) -> None:
    def decode(item: int) -> int:
        if item == CRASHES:
            raise error
        return item

    with pytest.raises(type(error), match=str(error)) as raised:
        list(map_in_child(job(decode), range(MANY), workers=2))
    assert vars(raised.value) == vars(error)


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may go between opening and reading
        return True


@pytest.mark.parametrize(
    ("whom", "number", "code"),
    [
        (os.getppid, signal.SIGTERM, Terminated.exit_code),
        (os.getpid, signal.SIGTERM, Terminated.exit_code),  # it may come to all processes of a command
        (os.getppid, signal.SIGKILL, -signal.SIGKILL),
    ],
)
@fault("ingest, preprocess, forensics", "SIGTERM or SIGKILL while images are decoded",
       "the process that decodes ends too", "SIGTERM: exit code 143, run the same command again")  # fmt: skip
def test_child_and_parent_end_together(
    whom: Callable[[], int], number: signal.Signals, code: int, tmp_path: Path
) -> None:
    pid, said = tmp_path / "pid", tmp_path / "said"

    def decode(item: int) -> int:
        if item == HANGS:
            pid.write_text(str(os.getpid()))
            os.kill(whom(), number)
            hold_everything()
        return item

    def main() -> None:
        list(map_in_child(job(decode), range(MANY), workers=2))

    assert in_child(lambda: run_command(main), lambda: None, said=said) == code
    wait_for(lambda: is_gone(int(pid.read_text())))
    assert said.read_text().splitlines() == ["terminated; run the same command again to continue"] * (code > 0)
