"""The open run of a training: epochs as they end, files at the end, and a run below it for each member of an ensemble.

A store that does not answer stops a training before its first step, while nothing is lost yet. Once a training runs,
the store may go away: each epoch that could not be recorded is kept and sent with the next one. What is still unsent
at the end is in the training's files; the run stays open, and `register` or the study completes it from them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.common.errors import RegistryError
from cxr.evaluation.training_record import CURVES_FILE, RECORD_FILE, VALIDATION_FILE
from cxr.registry.runs import (
    PARENT_TAG,
    TRAINING_FOLDER,
    children,
    complete_run,
    finish_run,
    is_finished,
    log_files,
    log_metrics,
    log_params,
    now_ms,
    start_run,
)
from cxr.registry.tracking_store import tracking_uri

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("cxr.registry.runs")


@dataclass
class TrainingRun:
    """An open run; its `run_id` belongs in the checkpoint, so that a killed training resumes the same run."""

    run_id: str
    _unsent: list[tuple[dict[str, float], int, int]] = field(default_factory=list)
    _files_lost: bool = False
    _members: list[TrainingRun] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether everything has been recorded, the members too."""
        return not (self._unsent or self._files_lost) and all(member.complete for member in self._members)

    def open_members(self, described: Sequence[tuple[str, Mapping[str, Any]]], tags: Mapping[str, str]) -> None:
        """Open a run below this one for each member, or that of an interrupted training; before the first step.

        Args:
            described: name and parameters of each.
            tags: of all.
        """
        known = {name: run_id for run_id, name in children(self.run_id).items()}
        for name, params in described:
            below = {**tags, PARENT_TAG: self.run_id}
            member = TrainingRun(start_run(run_id=known.get(name), name=name, tags=below))
            member.log_params(params)
            self._members.append(member)

    def member(self, number: int) -> TrainingRun:
        """Return the run of a member, from 0; this run itself where there is one network."""
        return self._members[number] if self._members else self

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; see `cxr.registry.runs.log_params`."""
        log_params(self.run_id, params)

    def log_epoch(self, metrics: Mapping[str, float], step: int) -> None:
        """Record an epoch and those before it that are not recorded yet; a dead store never stops a training."""
        self._unsent.append((dict(metrics), step, now_ms()))
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                metrics, step, at_ms = self._unsent[0]
                log_metrics(self.run_id, metrics, step, at_ms=at_ms)
                self._unsent.pop(0)
        except RegistryError as error:
            log.warning("%d epochs are not in the tracking store yet: %s", len(self._unsent), error)

    def log_files(self, files: Sequence[Path]) -> None:
        """Copy files such as curves.csv and training.json into the run; a dead store is a warning."""
        self._send()
        try:
            log_files(self.run_id, files, TRAINING_FOLDER)
        except RegistryError as error:
            self._files_lost = True
            log.warning("the training's files are not in the tracking store yet: %s", error)


def complete_training(run_id: str, curves: pd.DataFrame, model: Path) -> None:
    """Complete a run that is still open from the training's files: the store did not answer when the training ended.

    Args:
        run_id: of the run.
        curves: a row an epoch, see cxr.evaluation.training_record.read_curves.
        model: folder with the training's files.
    """
    if is_finished(run_id):
        return
    rows = curves.set_index("epoch").to_dict("index")
    epochs = {int(str(epoch)): {str(name): float(value) for name, value in row.items()} for epoch, row in rows.items()}
    files = [model / name for name in (CURVES_FILE, RECORD_FILE, VALIDATION_FILE)]
    complete_run(run_id, epochs, [file for file in files if file.is_file()])


@contextmanager
def training_run(
    *, name: str, run_id: str | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[TrainingRun]:
    """Open or resume the run of a training, with system metrics; close it when the block ends.

    Args:
        name: of a new run, for people.
        run_id: the run in the checkpoint of an interrupted training.
        tags: see `cxr.registry.lineage.lineage`.

    Raises:
        RegistryError: the store does not answer at the start. At the end that is a warning, and the run stays open.
    """
    resumed = run_id
    run = TrainingRun(start_run(run_id=run_id, name=name, tags=tags or {}))
    monitor = _start_monitor(run.run_id, resume=resumed == run.run_id)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        monitor.finish()
        _close(run, status)


def _close(run: TrainingRun, status: str) -> None:
    """Close the run; a finished one stays open until everything is recorded."""
    if status == "FINISHED" and not run.complete:
        log.warning("run %s stays open in the tracking store; `register` will complete it", run.run_id)
        return
    try:
        for one in [*run._members, run]:
            finish_run(one.run_id, status)
    except RegistryError as error:
        log.warning("the run stays open in the tracking store: %s", error)


def _start_monitor(run_id: str, *, resume: bool) -> Any:
    from mlflow.system_metrics import system_metrics_monitor

    module: Any = system_metrics_monitor  # it has no types
    monitor = module.SystemMetricsMonitor(run_id, resume_logging=resume, tracking_uri=tracking_uri())
    monitor.start()
    return monitor
