"""How many models were measured on a test set: a set that has decided often is no longer an unseen one.

A run of its own for each test set, in the experiment EXPERIMENT, has a tag for each model that was measured on it:
`model.<w>`, where <w> begins the digest of the weights, with the time of the first look. Measuring a model again is no
new look.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from cxr.common.errors import RegistryError
from cxr.registry import runs, tracking_store

EXPERIMENT = "test sets"
_SET_TAG = "test_set_sha256"
_MODEL_PREFIX = "model."

log = logging.getLogger("cxr.registry.test_set_looks")


def record_look(test_set_sha256: str, weights_sha256: str) -> int | None:
    """Record that a model was measured on a test set; return the number of models measured on it so far.

    None where the store does not answer, which a line of the log says: a look never stops a measurement.
    """
    try:
        run_id = _find(test_set_sha256) or _start(test_set_sha256)
        tag = f"{_MODEL_PREFIX}{weights_sha256[:16]}"
        if tag not in runs.run_tags(run_id):
            runs.tag_run(run_id, {tag: datetime.now(UTC).isoformat(timespec="seconds")})
        return looks_at(test_set_sha256)
    except RegistryError as error:
        log.warning("that this model was measured on the test set is not recorded: %s", error)
        return None


def looks_at(test_set_sha256: str) -> int:
    """Return the number of models that were measured on a test set.

    Two runs of one set, which two commands may have made at once, count together.

    Raises:
        RegistryError: the store does not answer.
    """
    tags = [runs.run_tags(run_id) for run_id in _runs_of(test_set_sha256)]
    return len({name for each in tags for name in each if name.startswith(_MODEL_PREFIX)})


def _find(test_set_sha256: str) -> str | None:
    found = _runs_of(test_set_sha256)
    return found[0] if found else None


def _start(test_set_sha256: str) -> str:
    experiment = runs.experiment_id(EXPERIMENT)
    store = tracking_store.client()
    with tracking_store.store_errors("recording a look at a test set"):
        run = store.create_run(experiment, run_name=test_set_sha256[:12], tags={_SET_TAG: test_set_sha256})
        store.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


def _runs_of(test_set_sha256: str) -> list[str]:
    store = tracking_store.client()
    with tracking_store.store_errors("looking for a test set"):
        experiment = store.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        order = ["attributes.start_time ASC"]
        found = store.search_runs([experiment.experiment_id], f"tags.{_SET_TAG} = '{test_set_sha256}'", order_by=order)
    return [str(run.info.run_id) for run in found]
