"""The result of a check of `make doctor`, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "FAILED"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` is empty only where there is nothing to do."""

    check: str
    level: Level
    message: str
    advice: str = ""


def ok(check: str, message: str) -> Finding:
    """Return a finding of something that is as it should be."""
    return Finding(check, "ok", message)


def warning(check: str, message: str, advice: str) -> Finding:
    """Return a finding that does not stop any run."""
    return Finding(check, "warning", message, advice)


def failed(check: str, message: str, advice: str) -> Finding:
    """Return a finding that stops runs, or will."""
    return Finding(check, "FAILED", message, advice)
