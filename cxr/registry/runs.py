"""What a training and an evaluation write into the tracking store (cxr.registry.tracking_store).

A store that does not answer stops a training before its first step, while nothing is lost yet. Once a training runs,
the store may go away: each epoch that could not be recorded is kept and sent with the next one. What is still unsent
at the end is in the training's files; the run stays open, and `register` completes it from them.

MLflow's parts are imported where they are used, after `client()`: see cxr.registry.tracking_store.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxr.common.errors import RegistryError
from cxr.registry.tracking_store import (
    client,
    is_server,
    mlruns_folder,
    public_uri,
    store_errors,
    tracking_uri,
)

EXPERIMENT = "chest-xray-pneumonia"
TRAINING_FOLDER = "training"
_MAX_PARAM_CHARACTERS = 6000
_MAX_DIGEST_CHARACTERS = 36
_BATCH = 100

log = logging.getLogger("cxr.registry.runs")


def experiment_id(name: str = EXPERIMENT) -> str:
    """Return the id of the experiment, which is made when it is missing."""
    store = client()
    with store_errors(f"opening the experiment {name}"):
        found = store.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(store.create_experiment(name, artifact_location=_artifact_location()))


def _artifact_location() -> str | None:
    """Return where a new experiment keeps its files: beside a local database; a server decides for itself."""
    uri = tracking_uri()
    if is_server(uri):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else mlruns_folder()
    return (folder / "artifacts").resolve().as_uri()


def run_exists(run_id: str | None) -> bool:
    """Say whether the experiment has this run and it is not deleted.

    A search: asked for a run by its id, a server with accounts answers "no right" to all but administrators where there
    is none.
    """
    if not run_id:
        return False
    store = client()
    with store_errors(f"looking for the run {run_id}"):
        experiment = store.get_experiment_by_name(EXPERIMENT)
        wanted = f"attributes.run_id = '{run_id}'"
        return experiment is not None and bool(store.search_runs([experiment.experiment_id], wanted, max_results=1))


def start_run(*, run_id: str | None, name: str, tags: Mapping[str, str]) -> str:
    """Resume the run `run_id` when the store has it, else start a new one; return its id.

    Raises:
        RegistryError: the store does not answer.
    """
    store = client()
    if run_id and run_exists(run_id):
        with store_errors(f"resuming the run {run_id}"):
            store.update_run(run_id, status="RUNNING")
            for key, value in tags.items():
                store.set_tag(run_id, key, value)
        log.info("tracking: resuming run %s in %s", run_id, public_uri())
        return run_id
    experiment = experiment_id()
    with store_errors("starting a run"):
        new_id = str(store.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id)
    log.info("tracking: run %s in %s", new_id, public_uri())
    return new_id


def log_params(run_id: str, params: Mapping[str, Any]) -> None:
    """Record parameters under dotted names; nested mappings are flattened, lists are written as JSON.

    A value longer than MLflow accepts is cut, and the log says so. MLflow never changes a parameter of a run: a
    resumed run keeps the value it began with, and the log names what differs now.
    """
    store = client()
    from mlflow.entities import Param

    flat = _flatten(params)
    with store_errors(f"recording parameters of run {run_id}"):
        known = store.get_run(run_id).data.params
        changed = sorted(name for name in flat if name in known and known[name] != flat[name])
        if changed:
            log.warning("tracking: run %s keeps the first values of %s", run_id, ", ".join(changed))
        new = [Param(name, value) for name, value in flat.items() if name not in known]
        for start in range(0, len(new), _BATCH):
            store.log_batch(run_id, params=new[start : start + _BATCH])


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        if len(text) > _MAX_PARAM_CHARACTERS:
            log.warning("tracking: the value of %s is cut to %d characters", name, _MAX_PARAM_CHARACTERS)
        flat[name] = text[:_MAX_PARAM_CHARACTERS]
    return flat


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Record metrics of one step, an epoch or 0."""
    store = client()
    from mlflow.entities import Metric

    now_ms = time.time_ns() // 1_000_000
    batch = [Metric(name, float(value), now_ms, step) for name, value in metrics.items()]
    with store_errors(f"recording metrics of run {run_id}"):
        store.log_batch(run_id, metrics=batch)


def log_dataset(run_id: str, *, name: str, source: Path, sha256: str, context: str) -> None:
    """Record which data a run used, as `mlflow.log_input` does.

    Args:
        run_id: the run.
        name: name of the data set.
        source: the manifest. MLflow rejects addresses of other kinds than its own, so this is a path.
        sha256: of the manifest. MLflow's digest holds 36 characters; the whole one is the input's tag `sha256`.
        context: "training" or "evaluation".
    """
    store = client()
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    dataset = Dataset(
        name=name,
        digest=sha256[:_MAX_DIGEST_CHARACTERS],
        source_type="local",
        source=json.dumps({"uri": source.as_posix()}),
    )
    tags = [InputTag(MLFLOW_DATASET_CONTEXT, context), InputTag("sha256", sha256)]
    with store_errors(f"recording the data of run {run_id}"):
        store.log_inputs(run_id, [DatasetInput(dataset, tags)])


def run_tags(run_id: str) -> dict[str, str]:
    """Return the tags of a run, MLflow's own left out."""
    store = client()
    with store_errors(f"reading run {run_id}"):
        tags = store.get_run(run_id).data.tags
    return {key: value for key, value in tags.items() if not key.startswith("mlflow.")}


def find_run(tag: str, value: str) -> str | None:
    """Return the first run of the experiment that carries a tag, None where there is none."""
    experiment = experiment_id()
    store = client()
    with store_errors("looking for a run"):
        found = store.search_runs([experiment], f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time ASC"])
    return str(found[0].info.run_id) if found else None


def tag_run(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    store = client()
    with store_errors(f"tagging run {run_id}"):
        for key, value in tags.items():
            store.set_tag(run_id, key, value)


def log_files(run_id: str, files: Sequence[Path], folder: str) -> None:
    """Copy files into the run's artifacts, below `folder`."""
    store = client()
    with store_errors(f"copying files into run {run_id}"):
        for file in files:
            store.log_artifact(run_id, str(file), folder)


def finish_run(run_id: str, status: str) -> None:
    """Close a run as "FINISHED", "FAILED" or "KILLED"."""
    store = client()
    with store_errors(f"closing run {run_id}"):
        store.set_terminated(run_id, status)


def is_finished(run_id: str) -> bool:
    """Say whether a run was closed as "FINISHED", which means that all of it is in the store."""
    store = client()
    with store_errors(f"reading run {run_id}"):
        return bool(store.get_run(run_id).info.status == "FINISHED")


def complete_run(run_id: str, epochs: Mapping[int, Mapping[str, float]], files: Sequence[Path]) -> None:
    """Add the epochs and files that did not reach the store during the training, and close the run.

    Args:
        run_id: a run that is not finished.
        epochs: epoch -> its metrics; those that the store has stay as they are.
        files: those of `TrainingRun.log_files`.
    """
    store = client()
    names = sorted({name for metrics in epochs.values() for name in metrics})
    with store_errors(f"reading the metrics of run {run_id}"):
        known = {name: {point.step for point in store.get_metric_history(run_id, name)} for name in names}
    for epoch, metrics in epochs.items():
        if missing := {name: value for name, value in metrics.items() if epoch not in known[name]}:
            log_metrics(run_id, missing, step=epoch)
    log_files(run_id, files, TRAINING_FOLDER)
    finish_run(run_id, "FINISHED")
    log.info("tracking: run %s is complete now; the store was away as its training ended", run_id)


def log_evaluation(run_id: str, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """Add test metrics and evaluation files to the run of the training.

    The evaluation itself is in the reports, and `register` records it again with the version. So a store that lacks
    the run (the training came from DVC's cache) or does not answer costs a line in the log, not the step.
    """
    try:
        if not run_exists(run_id):
            log.info("tracking: run %s is not in %s; register will record the evaluation", run_id, public_uri())
            return
        log_metrics(run_id, metrics)
        log_files(run_id, files, "evaluation")
    except RegistryError as error:
        log.warning("the evaluation is not in the tracking store yet, register will record it: %s", error)


@dataclass
class TrainingRun:
    """An open run; its `run_id` belongs in the checkpoint, so that a killed training resumes the same run."""

    run_id: str
    _unsent: list[tuple[dict[str, float], int]] = field(default_factory=list)
    _files_lost: bool = False

    @property
    def complete(self) -> bool:
        """Whether everything has been recorded."""
        return not (self._unsent or self._files_lost)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; see `log_params`."""
        log_params(self.run_id, params)

    def log_dataset(self, *, name: str, source: Path, sha256: str, context: str) -> None:
        """Record the data; see `log_dataset`."""
        log_dataset(self.run_id, name=name, source=source, sha256=sha256, context=context)

    def log_epoch(self, metrics: Mapping[str, float], step: int) -> None:
        """Record an epoch and those before it that are not recorded yet; a dead store never stops a training."""
        self._unsent.append((dict(metrics), step))
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                log_metrics(self.run_id, *self._unsent[0])
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
        finish_run(run.run_id, status)
    except RegistryError as error:
        log.warning("the run stays open in the tracking store: %s", error)


def _start_monitor(run_id: str, *, resume: bool) -> Any:
    from mlflow.system_metrics import system_metrics_monitor

    module: Any = system_metrics_monitor  # it has no types
    monitor = module.SystemMetricsMonitor(run_id, resume_logging=resume, tracking_uri=tracking_uri())
    monitor.start()
    return monitor
