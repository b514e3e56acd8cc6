"""Run the study: every row of study.yaml that was not run yet, with each of its seeds.

    ./run configure --profile profiles/real.yaml --data ../chest-images      # once: which images
    ./run flows.study --weights resnet50=imagenet --workers 2                # the same after an interruption
    ./run flows.study --list                                                 # which trials are done
    ./run results                                                            # the table, from the tracked runs

A row is a set of parameters that override params.yaml and its group's settings. It runs through DVC in its own worktree
in .runs, with the same cache and tracking store. Rows of a `tested` group are evaluated on the test set, too; others
use only the validation images. A finished trial is marked on its training run with the digest of its settings, and is
not run again until these change. An interrupted trial resumes from its last checkpoint.

With CXR_RAY_ADDRESS set, the trials run on that Ray cluster, at most `--workers` at a time: see flows.runners.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from cxr.common.cli import command_parser
from cxr.common.errors import CxrError, ParamsError
from cxr.common.files import read_json
from cxr.common.locks import any_file_lock, file_lock, worktree_lock
from cxr.common.params import read_params, with_overrides
from cxr.registry import runs
from cxr.registry.run_metadata import keep_below
from cxr.study.spec import Group, Row, Study, read_study
from flows.runners import runner
from flows.server_errors import run_flow_command
from flows.stages import StageFailedError, child_environment, heal_path_lock, last_words
from flows.supervised import run_supervised
from flows.workspaces import open_workspace, shared_environment
from tasks.configure import weights_setting

DIGEST_TAG = "study_digest"
DECIDING_SECTIONS = ("ingest", "split", "preprocess", "train")
"""The sections that distinguish trials; the evaluation of the test set is not part of a configuration."""

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


def is_done(trial: Trial) -> bool:
    """Return whether a run in the tracking store is marked as this trial with these settings."""
    return runs.find_run(trial.tag, trial.digest) is not None


@flow(name="study", validate_parameters=False)
def study_flow(todo: list[Trial], workers: int) -> list[str] | State[Any]:
    """Run the trials, `workers` at a time; failed trials do not stop the others and are named at the end."""
    root = Path.cwd()
    runs.experiment_id()  # create the store once, before several trials use it
    submitted = [
        (trial, run_trial.with_options(task_run_name=trial.name).submit(trial, root, workers)) for trial in todo
    ]
    failed = []
    for trial, future in submitted:
        future.wait()
        if not future.state.is_completed():
            failed.append(f"{trial.name}: {future.state.message}")
    return Failed(message="\n".join(failed)) if failed else []


@task(cache_policy=NO_CACHE)
def run_trial(trial: Trial, root: Path, workers: int) -> State[None]:
    """Run one trial, or mark the run of another row with the same settings."""
    try:
        twin = runs.find_run(DIGEST_TAG, trial.digest)
        run_id = twin or _run_through_dvc(trial, root, workers)
        runs.tag_run(run_id, {trial.tag: trial.digest, DIGEST_TAG: trial.digest})
        with file_lock(worktree_lock(root, "study-rows")):
            row = trial.name.rpartition("/")[0]
            keep_below(run_id, f"study {row}", name=row, description="The seeds of one row of study.yaml.")
    except CxrError as error:
        return Failed(message=str(error))
    return Completed(name="Cached" if twin else "Completed", message=f"run {run_id[:8]}")


def _run_through_dvc(trial: Trial, root: Path, workers: int) -> str:
    """Run one trial in a free worktree; return its training run.

    Raises:
        StageFailedError: a step failed, with its message.
    """
    with trial_workspace(root, trial.settings, of="study", workers=workers) as workspace:

        def report(line: str) -> None:
            get_run_logger().info("%s | %s", trial.name, line)

        return str(run_in(workspace, root, trial.stage, workers=workers, on_line=report)["run_id"])


@contextmanager
def trial_workspace(root: Path, settings: dict[str, Any], *, of: str, workers: int) -> Iterator[Path]:
    """Hold one of `workers` worktrees of a study or search during the block; wait until one is free.

    `settings` stand in its params.yaml.
    """
    with any_file_lock([worktree_lock(root, f"{of}-{number + 1}") for number in range(workers)]) as held:
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
    # A cluster sets this variable to the number of cores of a task.
    threads = os.environ.get(_THREADS) or str(max(1, (os.cpu_count() or 1) // workers))
    environment = child_environment({**shared_environment(root), _THREADS: threads})
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        on_line(line)

    heal_path_lock(workspace)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", stage]
    code = run_supervised(command, folder=workspace, on_line=keep, environment=environment)
    if code != 0:
        raise StageFailedError(last_words(lines, code))
    training: Mapping[str, Any] = read_json(
        workspace / read_params(workspace / "params.yaml").paths.model / "training.json"
    )
    return training


def _weights(given: list[str]) -> dict[str, str]:
    pairs = {}
    for item in given:
        backbone, equals, source = item.partition("=")
        if not equals:
            raise ParamsError(f"--weights needs BACKBONE=FILE, such as resnet50=imagenet; got {item!r}")
        pairs[backbone] = weights_setting(source)
    return pairs


def stop_at_once(*_: object) -> None:
    """Handle Ctrl-C: threads cannot be interrupted, but the trainings end with this process."""
    os.write(2, b"stopped; the same command resumes each training from its last checkpoint\n")
    os._exit(130)


def main() -> int:
    """List the trials, or run the missing ones; the exit code is 0 if none failed."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("rows", nargs="*", metavar="GROUP[/ROW[/SEED]]", help="only these (default: all)")
    parser.add_argument("--study", type=Path, default=Path("study.yaml"), help="(%(default)s)")
    parser.add_argument("--weights", action="append", default=[], metavar="BACKBONE=FILE", help="may be repeated")
    parser.add_argument("--workers", type=int, default=1, help="trials at once, sharing the cores (%(default)s)")
    parser.add_argument("--list", action="store_true", help="show which trials are done and run nothing")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error(f"--workers is a number from 1 on, got {arguments.workers}")
    study, weights = read_study(arguments.study), _weights(arguments.weights)
    every = trials(study, params=Path("params.yaml"), weights=weights, chosen=arguments.rows)
    done = [trial for trial in every if is_done(trial)]
    if arguments.list:
        for trial in every:
            print(f"{'done' if trial in done else 'missing':<8} {trial.name}")
        return 0
    todo = [trial for trial in every if trial not in done]
    print(f"{len(done)} of {len(every)} trials are done, {len(todo)} are missing")
    if not todo:
        return 0
    signal.signal(signal.SIGINT, stop_at_once)
    study_run: Any = study_flow.with_options(task_runner=runner(arguments.workers))
    ended = study_run(todo, arguments.workers, return_state=True)
    if ended.is_failed():
        raise StageFailedError(str(ended.message))
    return 0


if __name__ == "__main__":
    run_flow_command(main)
