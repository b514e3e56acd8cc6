"""The stages of dvc.yaml: in which order, and how one of them is run through DVC. No Prefect here."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.common.cli import TELEMETRY_OFF
from cxr.common.errors import CxrError
from cxr.common.params import IngestParams
from flows import remote_cache
from flows.dvc.process import DVC

SKIPPED = ("didn't change, skipping", "is cached - skipping run")
BUSY = ("is busy", "Unable to acquire lock")
NETWORK_PREFIXES = ("http://", "https://", "s3://")


class StageFailedError(CxrError):
    """A stage ended with an error; the message is the stage's own."""


class StageBusyError(StageFailedError):
    """Another DVC command holds what the stage needs; trying again later is right."""


@dataclass(frozen=True)
class StageRun:
    """How a stage ended: run, or found unchanged and skipped."""

    name: str
    cached: bool
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The stages of dvc.yaml, each after those it reads from, and those of them that `dvc repro` would skip."""

    order: tuple[str, ...]
    unchanged: frozenset[str]


def plan(root: Path) -> Plan:
    """Ask DVC once about all stages of root/dvc.yaml: a second where asking stage by stage takes seven.

    Nothing counts as unchanged while another DVC command is busy, and where runs share their outputs, since a stage is
    then pushed as well.

    Raises:
        StageFailedError: DVC cannot read the project.
    """
    heal_path_lock(root)
    lines: list[str] = []
    code = DVC.run("flows.dvc.graph", folder=root, on_line=lines.append, environment=child_environment())
    if code != 0:
        raise StageFailedError(f"dvc.yaml: {last_words(lines, code)}")
    answer = json.loads(lines[-1])
    unchanged = [] if remote_cache.is_shared() else answer["unchanged"]
    return Plan(tuple(answer["order"]), frozenset(unchanged))


def run_stage(
    name: str, *, root: Path, on_line: Callable[[str], None], environment: Mapping[str, str] | None = None
) -> StageRun:
    """Bring one stage up to date with `./run dvc repro -s`; see flows.remote_cache for runs that share their outputs.

    Raises:
        RemoteError: it ran, and its outputs could not be pushed; the next try finds them cached and pushes them.
        StageBusyError: another DVC command is at work on the same files.
        StageFailedError: the stage failed; carries its last words.
    """
    heal_path_lock(root)
    started = time.monotonic()
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        on_line(line)

    shared, settings = remote_cache.is_shared(), child_environment(environment)
    arguments = ["--wait-for-lock", "repro", "-s", name, *(["--pull"] if shared else [])]
    code = DVC.run("dvc", *arguments, folder=root, on_line=keep, environment=settings)
    if code != 0:
        busy = any(sign in line for line in lines for sign in BUSY)
        raise (StageBusyError if busy else StageFailedError)(f"{name}: {last_words(lines, code)}")
    if shared:
        remote_cache.push(name, root, on_line=on_line, environment=settings)
    cached = any(sign in line for line in lines for sign in SKIPPED)
    return StageRun(name=name, cached=cached, seconds=time.monotonic() - started)


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a stage's process needs beside ours: this Python first on PATH, telemetry off."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**TELEMETRY_OFF, "PATH": path, **(extra or {})}


def reads_network(name: str, ingest: IngestParams) -> bool:
    """Say whether the stage fetches images from an address, so that a failure may pass by itself."""
    return name == "ingest" and any(source.location.startswith(NETWORK_PREFIXES) for source in ingest.sources)


def heal_path_lock(root: Path, *, patience_seconds: float = 1.0) -> bool:
    """Remove DVC's record of busy paths when a killed command left it unreadable, which blocks all later ones.

    A command that is just writing it gets `patience_seconds` to finish. Returns whether it was removed.
    """
    record = root / ".dvc" / "tmp" / "rwlock"
    if _is_json_or_absent(record):
        return False
    time.sleep(patience_seconds)
    if _is_json_or_absent(record):
        return False
    record.unlink(missing_ok=True)
    return True


def _is_json_or_absent(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def last_words(lines: list[str], code: int) -> str:
    """Return the step's own error line where there is one, else DVC's, else the last line."""
    spoken: list[Any] = [line for line in lines if line.strip()]
    for sign in ("error: ", "ERROR: "):
        for line in reversed(spoken):
            if line.startswith(sign):
                return str(line.removeprefix(sign))
    return f"exit code {code}" + (f", last line: {spoken[-1]}" if spoken else "")
