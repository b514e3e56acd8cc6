"""What a check of `make doctor` found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "FAILED"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's; `advice` is empty only where nothing is to be done."""

    check: str
    level: Level
    said: str
    advice: str = ""


def ok(check: str, said: str) -> Finding:
    """Return a finding of something that is as it should be."""
    return Finding(check, "ok", said)


def warning(check: str, said: str, advice: str) -> Finding:
    """Return a finding of something to know of, with which work can go on."""
    return Finding(check, "warning", said, advice)


def failed(check: str, said: str, advice: str) -> Finding:
    """Return a finding of something that will stop a run or already does."""
    return Finding(check, "FAILED", said, advice)
