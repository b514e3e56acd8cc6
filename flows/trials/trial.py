"""The trials of a study or a search: which there are, which are done, and the worktree that one runs in."""

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.common.errors import ParamsError
from cxr.common.files import read_json
from cxr.common.locks import any_file_lock, file_lock, worktree_lock
from cxr.common.params import read_params, with_overrides
from cxr.evaluation.result_files import METRICS_FILE, PREDICTIONS_FILE
from cxr.evaluation.training_record import read_curves, read_training_record
from cxr.registry import runs
from cxr.registry.run_metadata import keep_below
from cxr.registry.tracked_runs import read_artifacts
from cxr.registry.training_run import complete_training
from cxr.study.spec import Group, Row, Study
from flows.stages import StageFailedError, child_environment, heal_path_lock, last_words
from flows.supervised import run_supervised
from flows.workspaces import open_workspace, shared_environment

DIGEST_TAG = "study_digest"
DECIDING_SECTIONS = ("ingest", "split", "preprocess", "train")
"""The sections that distinguish trials; the evaluation of the test set is not part of a configuration."""

EVALUATION_ARTIFACTS = (f"evaluation/{METRICS_FILE}", f"evaluation/{PREDICTIONS_FILE}")
"""Of a tested run, what the page of results is made from."""

_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Trial:
    """One row with one seed.

    settings  parameters that override params.yaml
    stage     last stage that runs
    tag       key of the tag that marks the training run of this trial
    digest    of the stage and all parameters of DECIDING_SECTIONS, the value of the tag
    """

    group: str
    row: str
    seed: int
    settings: dict[str, Any]
    stage: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """Return the name of the trial: group/row/seed."""
        return f"{self.group}/{self.row}/{self.seed}"

    @property
    def names(self) -> tuple[str, str, str]:
        """Return the names that select the trial: of its group, its row and itself."""
        return self.group, f"{self.group}/{self.row}", self.name

    def is_done(self) -> bool:
        """Return whether a run in the tracking store is marked as this trial with these settings."""
        return runs.find_run(self.tag, self.digest) is not None


def trials(study: Study, *, params: Path, weights: dict[str, str], chosen: list[str]) -> list[Trial]:
    """Return the selected trials in order.

    Args:
        study: from read_study.
        params: the parameter file that every row overrides.
        weights: backbone -> starting weights, `none` by default. Rows may set train.weights themselves; a row without
            a backbone has that of `params`.
        chosen: names of the form `group`, `group/row` or `group/row/seed`; empty for all trials.

    Raises:
        ParamsError: a name does not exist, or a row sets an unknown parameter or an invalid value.
    """
    own = weights.get(read_params(params).train.backbone, "none")
    every = [trial for group in study.groups for trial in _trials_of(group, params, weights, own)]
    known = {name for trial in every for name in trial.names}
    if unknown := sorted(set(chosen) - known):
        groups = ", ".join(group.name for group in study.groups)
        raise ParamsError(f"the study has no {', '.join(unknown)}; its groups are {groups}")
    found = [trial for name in chosen for trial in every if name in trial.names] if chosen else every
    return list({trial.tag: trial for trial in found}.values())


def _trials_of(group: Group, params: Path, weights: dict[str, str], own: str) -> list[Trial]:
    """Return the trials of a group by seed, so that an interrupted study has a trial of every row.

    `own`: weights of the backbone in `params`.
    """
    numbered = [(number, row, seed) for row in group.rows for number, seed in enumerate(group.seeds_of(row))]
    ordered = sorted(numbered, key=lambda trial: trial[0])
    return [_trial(group, row, seed, params, weights, own) for _, row, seed in ordered]


def _trial(group: Group, row: Row, seed: int, params: Path, weights: dict[str, str], own: str) -> Trial:
    settings = group.settings(row, seed)
    backbone = settings.get("train.backbone")
    settings.setdefault("train.weights", own if backbone is None else weights.get(backbone, "none"))
    try:
        merged = with_overrides(params, settings)
    except ParamsError as error:
        raise ParamsError(f"row {group.name}/{row.name} of the study: {error}") from error
    stage = "evaluate" if group.tested else "train"
    deciding = [merged.section(name).model_dump_json() for name in DECIDING_SECTIONS]
    return Trial(
        group=group.name,
        row=row.name,
        seed=seed,
        settings=settings,
        stage=stage,
        tag=group.tag(row, seed),
        digest=hashlib.sha256("\n".join([stage, *deciding]).encode()).hexdigest()[:16],
    )


def mark_done(trial: Trial, run_id: str, root: Path) -> None:
    """Show a run with the other seeds of its row, and mark it as that of a trial with its settings.

    The trial's own tag comes last: without it, all of this is done again after an interruption.
    """
    with file_lock(worktree_lock(root, "study-rows")):
        row = trial.name.rpartition("/")[0]
        keep_below(run_id, f"study {row}", name=row, description="The seeds of one row of study.yaml.")
    runs.tag_run(run_id, {DIGEST_TAG: trial.digest, trial.tag: trial.digest})


@contextmanager
def trial_workspace(root: Path, settings: dict[str, Any], *, of: str, workers: int) -> Iterator[Path]:
    """Hold one of `workers` worktrees of a study or search during the block; wait until one is free.

    `settings` stand in its params.yaml.
    """
    locks = [worktree_lock(root, f"{of}-{number + 1}") for number in range(workers)]
    with any_file_lock(locks, waits_for=f"another `./run flows.{of}` of this project") as held:
        with file_lock(worktree_lock(root, "worktrees")):  # worktrees are created and moved one at a time
            keep = max(workers, read_params(root / "params.yaml").clean.keep_worktrees)
            workspace = open_workspace(root, run=held.stem, overrides=settings, keep=keep)
        yield workspace


def run_in(
    workspace: Path, root: Path, stage: str, *, workers: int, on_line: Callable[[str], None]
) -> Mapping[str, Any]:
    """Bring the stages up to `stage` up to date in a worktree of `root`; return its training.json.

    Raises:
        StageFailedError: a step failed, with its message.
    """
    reproduce(workspace, root, [stage], workers=workers, on_line=on_line)
    training: Mapping[str, Any] = read_json(
        workspace / read_params(workspace / "params.yaml").paths.model / "training.json"
    )
    return training


def complete_record(trial: Trial, run_id: str, workspace: Path, root: Path, *, workers: int) -> None:
    """Send what did not reach the store as the stages ran: they go on without one, and no trial is registered.

    Raises:
        RegistryError: the store does not answer.
        StageFailedError: the evaluation, done again, did not reach it either.
    """
    model = workspace / read_params(workspace / "params.yaml").paths.model
    if not runs.is_finished(run_id):
        complete_training(run_id, read_curves(model, read_training_record(model)), model)
    if trial.stage != "evaluate" or _has_evaluation(run_id):
        return
    again = ["--force", "--single-item", trial.stage]
    reproduce(workspace, root, again, workers=workers, on_line=logging.getLogger("flows.study").info)
    if not _has_evaluation(run_id):
        raise StageFailedError(
            f"its evaluation did not reach run {run_id}; run the same command when the store answers"
        )


def _has_evaluation(run_id: str) -> bool:
    return len(read_artifacts(run_id, EVALUATION_ARTIFACTS)) == len(EVALUATION_ARTIFACTS)


def reproduce(
    workspace: Path, root: Path, stages: Sequence[str], *, workers: int, on_line: Callable[[str], None]
) -> None:
    """Bring stages and those before them up to date in a worktree of `root`.

    Raises:
        StageFailedError: a step failed, with its message.
    """
    # A cluster sets this variable to the number of cores of a task.
    threads = os.environ.get(_THREADS) or str(max(1, (os.cpu_count() or 1) // workers))
    environment = child_environment({**shared_environment(root), _THREADS: threads})
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        on_line(line)

    heal_path_lock(workspace)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *stages]
    code = run_supervised(command, folder=workspace, on_line=keep, environment=environment)
    if code != 0:
        raise StageFailedError(last_words(lines, code))
