"""The route that takes what a reader says about an answer, and adds it to the table on this machine."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from cxr.common.classes import Label
from cxr.inference.feedback import MOST_NOTE_CHARACTERS, Feedback, add_feedback
from cxr.webapp.fair_turns import client_of
from cxr.webapp.limits import Admission, Limits, RejectedError, read_body
from cxr.webapp.rate_limit import RateLimit
from cxr.webapp.schemas import Status

FEEDBACK_PATH = "/feedback"

_MOST_BYTES = 8192

log = logging.getLogger("cxr.webapp")


class ReaderFeedback(BaseModel):
    """What a reader says about the answer to one image."""

    model_config = ConfigDict(extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the image file, as /predict returned it")
    model_version: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="As /predict returned it")
    answer: Label = Field(description="The predicted class, as /predict returned it")
    label: Label = Field(description="The reader's class; the same as `answer`: the reader agrees")
    note: str = Field(default="", max_length=MOST_NOTE_CHARACTERS, description="In words, without names")


FEEDBACK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "What a reader says about the answer to one image",
        "content": {"application/json": {"schema": ReaderFeedback.model_json_schema()}},
    }
}


class FeedbackRoute:
    """Adds feedback to `table`."""

    def __init__(self, table: Path, limits: Limits) -> None:
        self.table, self._limits = table, replace(limits, max_upload_bytes=_MOST_BYTES)
        self._rate = RateLimit(limits.max_feedback_per_minute, "corrections")
        # A count of its own: readers' feedback takes no room from images, nor the other way round.
        self.admission = Admission(self._limits)

    async def add(self, request: Request) -> Status:
        """Store what a reader says about an answer: the image's digest, never its name."""
        self._rate.take(client_of(request))
        with self.admission.admit(request):
            body = await read_body(request, self._limits)
            return await self._store(body)

    async def _store(self, body: bytes) -> Status:
        try:
            said = ReaderFeedback.model_validate_json(body)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors())
            raise RejectedError(422, "invalid feedback", wrong) from None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = Feedback(now, said.sha256, said.model_version, said.answer, said.label, said.note)
        try:
            await asyncio.to_thread(add_feedback, self.table, row)
        except OSError as error:
            log.warning("app: feedback cannot be stored: %s", error.strerror)
            raise RejectedError(503, "not stored", "the service cannot store feedback; see its log") from None
        return Status(status="stored")
