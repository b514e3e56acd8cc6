"""Images are decoded in processes that can be killed: what one image does to its process is no other's matter."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cxr.common.errors import ImageError, MemoryLimitError
from cxr.imaging.unattended import TOO_SLOW
from cxr.inference.decoding import decoders
from cxr.inference.decoding.decoders import DecodeProcess
from tests.support.faults import fault
from tests.support.images.planted_decoder import (
    HANGS,
    killed_once,
    limits_of_process,
    planted_pixels,
    process_number,
)
from tests.support.moments import in_child
from tests.support.services.webapp_server import IMAGE, LIMITS, reason, send, send_from, serve_here, tiny_classifier
from tests.support.waiting import wait_for

ACCEPTED = {"name": "image", "max_pixels": 50_000_000, "seconds": 60.0}


@pytest.fixture(scope="module")
def process() -> Iterator[DecodeProcess]:
    process = DecodeProcess(decoders.__name__)
    yield process
    process.kill()


def decodes(process: DecodeProcess) -> bool:
    """Return whether the process makes the model's input of an image."""
    classifier = tiny_classifier()
    made = process.call(decoders.prepared_pixels, IMAGE, classifier.without_network(), "image", **ACCEPTED)
    return made.content == classifier.read(IMAGE, name="image").tobytes()


@fault("web app", "an image crashes its decoder", "one process ends; the next image is decoded", "status 422")
def test_a_crash_is_an_error_of_its_image_alone(process: DecodeProcess) -> None:
    with pytest.raises(ImageError, match="crashes its decoder"):
        process.call(os.abort, **ACCEPTED)
    assert decodes(process)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@fault("web app, PACS, score, predict, external", "a process that decodes is killed while no image is there",
       "another one starts; the next image is decoded", "nothing")  # fmt: skip
def test_the_end_of_an_idle_process_is_no_fault_of_the_next_image(
    process: DecodeProcess, number: signal.Signals
) -> None:
    ended = process.call(process_number, **ACCEPTED).described["process"]
    os.kill(ended, number)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    assert decodes(process)


@fault("web app, PACS, score, predict, external",
       "the process that decodes an image is killed, as where memory runs out", "the image is decoded again in another",
       "one line of log, probably for lack of memory")  # fmt: skip
def test_a_kill_from_outside_is_no_fault_of_an_image(
    process: DecodeProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert process.call(killed_once, tmp_path / "once", **ACCEPTED).content == b"decoded"
    assert caplog.messages == ["a process that decodes image was killed, probably for lack of memory"]


@fault("score, predict, external", "the process that decodes an image is killed, and so is the one that tries it again",
       "no image is called bad; the run ends", "exit code 13, the image, probably for lack of memory")  # fmt: skip
def test_a_second_kill_at_the_same_image_is_a_lack_of_memory(process: DecodeProcess) -> None:
    with pytest.raises(MemoryLimitError, match="decodes image is killed, probably for lack of memory; make sure"):
        process.call(signal.raise_signal, signal.SIGKILL, **ACCEPTED)
    assert decodes(process)


@fault("score, predict, external", "a process that decodes does not start", "no image is called bad; the run ends",
       "exit code 13, does not start")  # fmt: skip
def test_a_process_that_does_not_start_is_no_fault_of_an_image() -> None:
    process = DecodeProcess("cxr.no_such_module")
    with pytest.raises(MemoryLimitError, match="does not start"):
        decodes(process)


def test_the_folder_that_a_command_runs_in_has_no_say_in_what_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cxr").mkdir()
    (tmp_path / "cxr" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    process = DecodeProcess(decoders.__name__)
    assert decodes(process)
    process.kill()


@fault(
    "web app", "decoding asks for more memory than an image of its size needs", "it gets none; the process goes on",
    "status 422, too costly to decode",
)  # fmt: skip
def test_a_decoder_gets_no_more_memory_than_its_image_may_need(process: DecodeProcess) -> None:
    assert decodes(process)
    with pytest.raises(ImageError, match="more memory") as raised:
        process.call(bytearray, 3 << 30, **ACCEPTED)
    assert raised.value.reason == "too costly to decode"
    assert decodes(process)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("max_pixels", [1_000_000, 10_000_000_000])
@fault(
    "web app, PACS, score, predict, external", "the command runs under `ulimit -v`, and a decoder crashes",
    "the lower of both limits of memory holds; no core file with an image is written", "as without `ulimit`",
)  # fmt: skip
def test_under_a_limit_of_memory_a_decoder_has_its_own_limit_and_writes_no_core_file(max_pixels: int) -> None:
    allowed = 64 << 30

    def allow() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))

    def look() -> None:
        process = DecodeProcess(decoders.__name__)
        limits = process.call(limits_of_process, **(ACCEPTED | {"max_pixels": max_pixels})).described
        process.kill()
        assert limits["RLIMIT_CORE"] == [0, 0]
        soft, hard = limits["RLIMIT_AS"]
        assert (soft < allowed, hard) == (max_pixels == 1_000_000, allowed)

    assert in_child(look, allow) == 0


def test_a_process_that_was_killed_for_its_time_gives_no_later_image_the_earlier_answer(process: DecodeProcess) -> None:
    with pytest.raises(ImageError, match=r"image took more than 0\.05 s") as raised:
        process.call(time.sleep, 3600, **(ACCEPTED | {"seconds": 0.05}))
    assert raised.value.reason == TOO_SLOW
    assert decodes(process)


def test_the_process_knows_no_secret(process: DecodeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_PATIENT_KEY", "secret")
    process.kill()
    with pytest.raises(RuntimeError, match="CalledProcessError"):
        process.call(subprocess.check_call, ["printenv", "CXR_PATIENT_KEY"], **ACCEPTED)


@fault(
    "web app", "two images at once that are accepted and take seconds to decode",
    "their processes are killed; another client is answered", "status 422, too slow, for the first two",
)  # fmt: skip
def test_two_slow_images_at_once_do_not_silence_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "prepared_pixels", planted_pixels)  # what is slow on one machine is not on another
    limits = replace(LIMITS, decode_timeout_s=3)
    with serve_here(tiny_classifier(), limits=limits) as served, ThreadPoolExecutor(2) as clients:
        assert send(served, IMAGE).status_code == 200
        refused = [clients.submit(send, served, IMAGE + HANGS) for _ in range(2)]
        wait_for(lambda: served.metric("cxr_images_in_progress") == 2)
        assert send_from("127.0.0.2", served).status_code == 200
        assert [(each.result().status_code, reason(each.result())) for each in refused] == [(422, "too slow")] * 2
        assert send(served, IMAGE).status_code == 200
