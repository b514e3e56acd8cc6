"""What a training and an evaluation write into the tracking store (cxr.registry.tracking_store).

An open run of a training is `cxr.registry.training_run`; what the pages show beside figures, `run_metadata`.

MLflow's parts are imported where they are used, after `client()`: see cxr.registry.tracking_store.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.common.errors import RegistryError
from cxr.registry.tracking_store import (
    STORE_VARIABLE,
    client,
    is_server,
    mlruns_folder,
    public_uri,
    store_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "chest-xray-pneumonia"
TRAINING_FOLDER = "training"
PARENT_TAG = "mlflow.parentRunId"
_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # MLflow's word for machine learning, not GenAI
    "mlflow.note.content": "Trainings of the chest X-ray classifier, and the evaluation of each on its test images.",
}
EVALUATION_TABLE = "eval_results_table.json"
_METRIC_GROUPS = {"train": "training", "validation": "validation", "test": "test"}
_MAX_PARAM_CHARACTERS = 6000
_BATCH = 100

log = logging.getLogger("cxr.registry.runs")


def experiment_id(name: str = EXPERIMENT) -> str:
    """Return the id of the experiment, which is made when it is missing."""
    store = client()
    with store_errors(f"opening the experiment {name}"):
        found = store.get_experiment_by_name(name)
        if found is None:
            return str(store.create_experiment(name, artifact_location=_artifact_location(), tags=_EXPERIMENT_TAGS))
        for tag, value in _EXPERIMENT_TAGS.items():  # of a store that an earlier release made
            if tag not in found.tags:
                store.set_experiment_tag(found.experiment_id, tag, value)
        return str(found.experiment_id)


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


def artifact_roots(run_ids: Set[str]) -> dict[str, str]:
    """Return where those of some runs that the experiment has keep their files, by a request for many runs at once."""
    store, wanted = client(), sorted(run_ids)
    found: dict[str, str] = {}
    with store_errors("looking for the files of runs"):
        experiment = store.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return found
        for first in range(0, len(wanted), _BATCH):
            names = ", ".join(f"'{name}'" for name in wanted[first : first + _BATCH])
            page = store.search_runs([experiment.experiment_id], f"attributes.run_id IN ({names})", max_results=_BATCH)
            found |= {run.info.run_id: str(run.info.artifact_uri) for run in page}
    return found


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
    if not new_id:
        raise RegistryError(
            f"{public_uri()} is no MLflow server: it answers without a run; correct {STORE_VARIABLE}, then run the "
            "same command again"
        )
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


def grouped(name: str) -> str:
    """Return the name of a metric in MLflow, whose pages group by what stands before the slash.

    Examples:
        >>> grouped("test_accuracy"), grouped("validation_loss"), grouped("learning_rate")
        ('test/accuracy', 'validation/loss', 'training/learning_rate')
    """
    group, _, rest = name.partition("_")
    if "/" in name:
        return name
    return f"{_METRIC_GROUPS[group]}/{rest}" if group in _METRIC_GROUPS else f"training/{name}"


def now_ms() -> int:
    """Return the time as MLflow counts it."""
    return time.time_ns() // 1_000_000


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int = 0, *, at_ms: int | None = None) -> None:
    """Record metrics of one step, an epoch or 0.

    Args:
        run_id: of the run.
        metrics: name -> value.
        step: of all of them.
        at_ms: when they were measured (now). The store keeps one of those that are equal in all, so what may have
            arrived is sent again with the time that it had.
    """
    store = client()
    from mlflow.entities import Metric

    moment = now_ms() if at_ms is None else at_ms
    batch = [Metric(grouped(name), float(value), moment, step) for name, value in metrics.items()]
    with store_errors(f"recording metrics of run {run_id}"):
        store.log_batch(run_id, metrics=batch)


def run_tags(run_id: str) -> dict[str, str]:
    """Return the tags of a run, MLflow's own left out."""
    store = client()
    with store_errors(f"reading run {run_id}"):
        tags = store.get_run(run_id).data.tags
    return {key: value for key, value in tags.items() if not key.startswith("mlflow.")}


def started(run_id: str) -> str:
    """Return when a run started, as "2026-11-26 04:05 UTC"."""
    return f"{datetime.fromtimestamp(started_ms(run_id) / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def started_ms(run_id: str) -> int:
    """Return when a run started, as MLflow counts time."""
    store = client()
    with store_errors(f"reading run {run_id}"):
        return int(store.get_run(run_id).info.start_time)


def find_run(tag: str, value: str) -> str | None:
    """Return the first run of the experiment that carries a tag, None where there is none."""
    experiment = experiment_id()
    store = client()
    with store_errors("looking for a run"):
        found = store.search_runs([experiment], f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time ASC"])
    return str(found[0].info.run_id) if found else None


def children(run_id: str) -> dict[str, str]:
    """Return the runs below a run: id -> name."""
    store = client()
    with store_errors(f"looking for the runs below {run_id}"):
        experiment = store.get_run(run_id).info.experiment_id
        found = store.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{run_id}'")
    return {str(run.info.run_id): str(run.info.run_name) for run in found}


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
        files: those of `cxr.registry.training_run.TrainingRun.log_files`.
    """
    store = client()
    names = sorted({name for metrics in epochs.values() for name in metrics})
    with store_errors(f"reading the metrics of run {run_id}"):
        known = {name: {point.step for point in store.get_metric_history(run_id, grouped(name))} for name in names}
    for epoch, metrics in epochs.items():
        if missing := {name: value for name, value in metrics.items() if epoch not in known[name]}:
            log_metrics(run_id, missing, step=epoch)
    log_files(run_id, files, TRAINING_FOLDER)
    for one in [*children(run_id), run_id]:
        finish_run(one, "FINISHED")
    log.info("tracking: run %s is complete now; the store was away as its training ended", run_id)


def _log_table(run_id: str, table: pd.DataFrame) -> None:
    """Put a table where `mlflow.evaluate` does and MLflow's evaluation view looks; `log_table` would append to it."""
    store = client()
    rows = json.loads(table.to_json(orient="split", index=False))
    with store_errors(f"recording the predictions of run {run_id}"):
        store.log_text(run_id, json.dumps(rows), EVALUATION_TABLE)
        store.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": EVALUATION_TABLE, "type": "table"}]))


def log_evaluation(run_id: str, metrics: Mapping[str, float], files: Sequence[Path], table: pd.DataFrame) -> None:
    """Add test metrics, evaluation files and a table with a row a test image to the run of the training.

    The evaluation itself is in the reports, and `register` records it again with the version. So a store that lacks
    the run (the training came from DVC's cache) or does not answer costs a line in the log, not the step.
    """
    try:
        if not run_exists(run_id):
            log.info("tracking: run %s is not in %s; register will record the evaluation", run_id, public_uri())
            return
        log_metrics(run_id, metrics)
        log_files(run_id, files, "evaluation")
        _log_table(run_id, table)
    except RegistryError as error:
        log.warning("the evaluation is not in the tracking store yet, register will record it: %s", error)
