"""The audit log on a full disk, and with a clock that jumps."""

import errno
import json
import os
from datetime import datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest

from cxr.pacs import audit_log
from cxr.pacs.audit_log import AuditLog
from tests.support.faults import fault


def test_a_line_that_the_disk_has_no_room_for_is_an_error_and_cut_off_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "audit.jsonl", os.write
    log = AuditLog(path)
    log.add(requested_by="A", sop_uid="1.2", version="1")
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:20]))
    with pytest.raises(OSError, match="jsonl") as full:
        log.add(requested_by="B", sop_uid="1.2", version="1")
    assert full.value.errno == errno.ENOSPC
    monkeypatch.undo()
    AuditLog(path).add(requested_by="C", sop_uid="1.2", version="1")
    assert [json.loads(line)["requested_by"] for line in path.read_text().splitlines()] == ["A", "C"]


def test_a_file_of_another_kind_keeps_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("one\ntwo")
    AuditLog(path)
    assert path.read_text() == "one\ntwo"


@fault("PACS", "the clock jumps back an hour, or forward a day", "lines of the audit log keep their order",
       "the time as the machine gave it")  # fmt: skip
def test_lines_keep_their_order_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for sender, hours in (("A", 0), ("B", -1), ("C", 24)):
        moved = Mock(now=lambda zone, hours=hours: datetime.now(zone) + timedelta(hours=hours))
        monkeypatch.setattr(audit_log, "datetime", moved)
        log.add(requested_by=sender, sop_uid="1.2", version="1")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["requested_by"] for line in lines] == ["A", "B", "C"]
    assert [line["time"] for line in lines] != sorted(line["time"] for line in lines)
