"""A command of `tasks` inside a Prefect task: its lines go into the run's log, its exit code comes back."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import Task, get_run_logger
from prefect.client.schemas.objects import State, TaskRun

from cxr.common.errors import PromotionHeldError, PromotionRejectedError
from cxr.registry.audit_log import CHAMPION_ALREADY
from flows.remote_cache import RemoteError
from flows.stages import StageBusyError, child_environment, last_words
from flows.supervised import run_supervised

VERDICTS = {0: "Promoted", PromotionRejectedError.exit_code: "Rejected", PromotionHeldError.exit_code: "Held"}
"""Exit code of `tasks.promote` -> the name of the Prefect state. All three are results, none is a failure."""


@dataclass(frozen=True)
class StepRun:
    """What `python -m tasks.<name>` printed, on either stream, and its exit code."""

    name: str
    lines: tuple[str, ...]
    code: int

    @property
    def last_words(self) -> str:
        """The step's own error line where there is one, else its last line."""
        return last_words(list(self.lines), self.code)

    @property
    def outcome(self) -> str:
        """The last line of a step that ended well, else its last words."""
        return self.last_words if self.code or not self.lines else self.lines[-1]


def verdict_of(done: StepRun) -> str:
    """Return the name of the Prefect state for a run of `tasks.promote`: `Promoted` only where the alias moved."""
    return "Champion already" if done.outcome.endswith(CHAMPION_ALREADY) else VERDICTS[done.code]


def run_step(name: str, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None) -> StepRun:
    """Run `python -m tasks.<name> ARGUMENTS` in `folder`; it stops with the task run, however that ends."""
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        get_run_logger().info(line)

    command = [sys.executable, "-m", f"tasks.{name}", *arguments]
    code = run_supervised(command, folder=folder, on_line=keep, environment=child_environment(environment))
    return StepRun(name, tuple(lines), code)


def worth_another_try(network: bool) -> Callable[[Task[..., Any], TaskRun, State[Any]], bool]:
    """Return Prefect's question after a failure: what is busy passes by itself, and so may a network's fault."""

    def asked(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
        return network or isinstance(state.result(raise_on_failure=False), StageBusyError | RemoteError)

    return asked
