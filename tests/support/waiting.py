"""Patience with what takes a while: servers that start, processes that end."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

_SECONDS = 300.0


def wait_for(condition: Callable[[], object], *, log: Path | None = None, seconds: float = _SECONDS) -> None:
    """Wait until `condition` holds; a server that does not answer yet counts as no."""
    deadline, pause = time.monotonic() + seconds, 0.05
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(pause)
        pause = min(pause * 1.2, 0.5)  # a question to a server takes it and us 60 ms of processor time
    pytest.fail(f"waited for {seconds} s in vain; the log ends: {log.read_text()[-2000:] if log else ''}")
