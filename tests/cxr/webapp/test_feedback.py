"""What a reader says is stored with the image's digest alone, and hostile requests are not."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from cxr.inference.feedback import read_feedback
from tests.support.services.webapp_server import Served, reason

SAID = {"sha256": "a" * 64, "model_version": "1", "answer": "viral", "label": "normal", "note": "clear lungs"}


def table(served: Served) -> Path:
    return served.webapp.service.feedback.table


def give(served: Served, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{served.address}/feedback", content=content, headers=headers, timeout=60)


def test_what_a_reader_says_is_a_row_of_the_table(served: Served) -> None:
    before = len(read_feedback(table(served)))
    assert give(served, SAID).json() == {"status": "stored"}
    assert give(served, {**SAID, "label": "viral", "note": ""}).is_success
    corrected, agreed = read_feedback(table(served))[before:]
    assert (corrected.image_sha256, corrected.model_version, corrected.note) == ("a" * 64, "1", "clear lungs")
    assert (corrected.agrees, agreed.agrees) == (False, True)


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({**SAID, "label": "fungal"}, 422, "invalid feedback"),
        ({**SAID, "sha256": "A" * 64}, 422, "invalid feedback"),
        ({**SAID, "model_version": "../../x"}, 422, "invalid feedback"),
        ({**SAID, "file": "Jane Sorrowful.png"}, 422, "invalid feedback"),
        ({**SAID, "note": "x" * 501}, 422, "invalid feedback"),
        (b"\xff", 422, "invalid feedback"),
        (b" " * 10_000, 413, "upload too large"),
    ],
)
def test_anything_else_is_rejected_and_not_stored(served: Served, body: Any, status: int, expected: str) -> None:
    before = len(read_feedback(table(served)))
    response = give(served, body)
    assert (response.status_code, reason(response)) == (status, expected)
    assert "image may" not in response.text
    assert len(read_feedback(table(served))) == before


def test_another_site_cannot_give_feedback(served: Served) -> None:
    assert give(served, SAID, Origin="http://elsewhere.example").status_code == 403


def test_a_table_that_cannot_be_written_is_said(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.webapp.service.feedback, "table", Path("/proc/nowhere/feedback.csv"))
    response = give(served, SAID)
    assert (response.status_code, reason(response)) == (503, "not stored")
