"""What MLflow's pages show of a run beside its figures: who started what, which images it used, what it belongs to.

And where runs and versions stand there. These addresses are relative: they hold on whatever host a person has opened
the page.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.registry import runs
from cxr.registry.stored_names import MODEL
from cxr.registry.tracking_store import client, store_errors

if TYPE_CHECKING:
    import pandas as pd

GROUP_TAG = "group"
"""On a run that only holds others together: what they have in common."""
_OF_ALL_FOLDS = ("task", "subsample", "train_share", "train_sources", "seed", "folds", "manifest_sha256")
"""Of split.json: what the folds of one cross-validation have in common."""
MAX_DIGEST_CHARACTERS = 36
_VIEW = "workflowType=machine_learning"
"""MLflow 3.17 opens each experiment with the view for GenAI unless the address, or an earlier visit, names this one."""


def shown_tags(*, description: str, commit: str = "") -> dict[str, str]:
    """Return the tags behind MLflow's columns user, source and version, and behind the description of a run.

    Args:
        description: Markdown.
        commit: of git, "" or "none" where it is not known.
    """
    named = {"mlflow.source.git.commit": commit} if commit not in {"", "none"} else {}
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = "unknown"
    source = Path(sys.argv[0]).name or "python"
    return {
        "mlflow.user": user,
        "mlflow.source.name": source,
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": description,
        **named,
    }


def log_images(run_id: str, images: pd.DataFrame, *, context: str, source: Path, sha256: str) -> None:
    """Record which images a run used, with their schema and counts, as `mlflow.log_input` does.

    Args:
        run_id: the run.
        images: a row an image; the column `label` is counted.
        context: "training", "validation" or "test".
        source: the manifest. MLflow rejects addresses of other kinds than its own, so this is a path.
        sha256: of the manifest or of the test set. MLflow's digest holds 36 characters; the whole one is the input's
            tag `sha256`.
    """
    store = client()
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types import ColSpec, Schema
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    columns = Schema([ColSpec("string" if images[name].dtype.kind in "OU" else "long", str(name)) for name in images])
    profile = {"images": len(images), **{str(k): int(v) for k, v in images["label"].value_counts().items()}}
    dataset = Dataset(
        name=dataset_name(context),
        digest=sha256[:MAX_DIGEST_CHARACTERS],
        source_type="local",
        source=json.dumps({"uri": source.as_posix()}),
        schema=json.dumps({"mlflow_colspec": columns.to_dict()}),
        profile=json.dumps(profile),
    )
    tags = [InputTag(MLFLOW_DATASET_CONTEXT, context), InputTag("sha256", sha256)]
    with store_errors(f"recording the images of run {run_id}"):
        store.log_inputs(run_id, [DatasetInput(dataset, tags)])


def dataset_name(context: str) -> str:
    """Return the name of a data set in MLflow's pages; metrics of a version refer to it."""
    return f"{context} images"


def keep_below(run_id: str, group: str, *, name: str, description: str) -> None:
    """Show a run below the run of its group (the seeds of a row, the folds of a cross-validation).

    The run of the group is made when it is missing. A run that is below another one already stays there.

    Args:
        run_id: the run.
        group: what the runs have in common.
        name, description: of the group's run, for people.
    """
    store = client()
    with store_errors(f"reading run {run_id}"):
        tags: Mapping[str, str] = store.get_run(run_id).data.tags
    if runs.PARENT_TAG in tags:
        return
    parent = runs.find_run(GROUP_TAG, group)
    if parent is None:
        parent = runs.start_run(run_id=None, name=name, tags={GROUP_TAG: group, **shown_tags(description=description)})
        runs.finish_run(parent, "FINISHED")
    runs.tag_run(run_id, {runs.PARENT_TAG: parent})


def group_of_folds(config: Mapping[str, Any]) -> str:
    """Return what the folds of one cross-validation have in common, for `keep_below`.

    Args:
        config: the parameters of a fold's run: `train`, `preprocess`, and `split` as in split.json.
    """
    split = {name: config["split"][name] for name in _OF_ALL_FOLDS}
    alike = json.dumps([config["train"], config["preprocess"], split], sort_keys=True)
    return f"cv-{hashlib.sha256(alike.encode()).hexdigest()[:16]}"


def run_page(experiment_id: str, run_id: str, file: str = "") -> str:
    """Return the address of a run, or of a file among its artifacts; the page shows HTML, figures and tables."""
    below = f"/artifacts/{file}" if file else ""
    return f"#/experiments/{experiment_id}/runs/{run_id}{below}?{_VIEW}"


def version_page(number: str) -> str:
    """Return the address of a version of the model."""
    return f"#/models/{MODEL}/versions/{number}?{_VIEW}"
