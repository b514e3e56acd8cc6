"""What the PACS worker keeps, and where."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from cxr.pacs.feed import PacsUnavailableError
from cxr.pacs.worker import PacsWorker, WorkerSummary
from tasks.pacs import MAX_RETRY_SECONDS, STATE_FILE, beside, command_line, pacs
from tests.support.faults import fault
from tests.support.logs import own_messages


def test_each_state_file_has_its_own_journal() -> None:
    assert beside(STATE_FILE, ".found") == Path(".checkpoints/pacs.found")  # as in 0.7.0
    names = ("pacs.json", "pacs.site1.json", "pacs.site2.json", "pacs.1", "pacs.2")
    assert len({beside(Path(name), ".found") for name in names}) == len(names)


@dataclass
class Outage:
    """Stands for a worker whose PACS does not respond to the first `left` calls, then once; a Ctrl-C ends the test."""

    left: int
    summary: WorkerSummary = field(default_factory=WorkerSummary)

    def process_next(self) -> bool:
        self.left -= 1
        if self.left == -1:
            return False
        if self.left < -1:
            raise KeyboardInterrupt
        raise PacsUnavailableError("it does not respond")


@fault("PACS", "it does not respond for a day", "the worker asks every 30 seconds, and goes on when it responds",
       "one line with the address, and one when it responds")  # fmt: skip
def test_an_outage_of_a_day_does_not_end_the_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="cxr")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(KeyboardInterrupt):
        pacs(cast(PacsWorker, Outage(2880)), once=False, poll_seconds=5)
    assert pauses[:6] == [1, 2, 4, 8, 16, MAX_RETRY_SECONDS]
    assert set(pauses[5:]) == {MAX_RETRY_SECONDS}
    assert len(pauses) == 2880
    assert own_messages(caplog) == [
        "pacs: it does not respond. Retrying until it responds",
        "pacs: connection restored",
    ]


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--poll-interval", "-1"),
        ("--poll-interval", "nan"),
        ("--poll-interval", "inf"),
        ("--decode-timeout", "-1"),  # each image would be skipped, and for good
        ("--days", "-3"),  # nothing would be found
        ("--days", "99999999"),
        ("--max-object-mb", "0"),  # no connection would be accepted
    ],
)
def test_a_number_that_the_worker_cannot_work_with_is_refused_at_once(
    option: str, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line().parse_args([option, given])
    assert ended.value.code == 2
    assert f"argument {option}: expected a " in capsys.readouterr().err
