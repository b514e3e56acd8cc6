"""The audit log on a full disk."""

import errno
import json
import os
from pathlib import Path

import pytest

from cxr.pacs.audit_log import AuditLog


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
