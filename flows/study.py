"""Run the study: every row of study.yaml that was not run yet, with each of its seeds.

    ./run configure --profile profiles/real.yaml --data ../chest-images      # once: which images
    ./run flows.study --weights resnet50=imagenet --workers 2                # the same after an interruption
    ./run flows.study --list                                                 # which trials are done
    ./run results                                                            # the table, from the tracked runs

A row is a set of parameters that override params.yaml and its group's settings. It runs through DVC in its own worktree
in .runs, with the same cache and tracking store. Rows of a `tested` group are evaluated on the test set, too; others
use only the validation images. A finished trial is marked on its training run with the digest of its settings, and is
not run again until these change. An interrupted trial resumes from its last checkpoint.

With `--pack`, the missing trials are written for a machine that has only torch, and with `--collect` what it made of
them is recorded: see tasks.packed.train. Such a run has predictions and metrics, but no model and no report.

With CXR_RAY_ADDRESS set, the trials run on that Ray cluster, at most `--workers` at a time: see flows.runners.
"""

import sys
from pathlib import Path
from typing import Any, get_args

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from cxr.common.cli import command_parser, number_within
from cxr.common.errors import CxrError, ParamsError
from cxr.common.param_types import Backbone
from cxr.registry import runs
from cxr.study.spec import read_study
from flows.runners import runner, stopped_at_once
from flows.server_errors import run_flow_command
from flows.stages import StageFailedError
from flows.trials.packed import collect_all, pack
from flows.trials.trial import DIGEST_TAG, Trial, complete_record, mark_done, run_in, trial_workspace, trials
from tasks.configure import weights_setting


@flow(name="study", validate_parameters=False)
def study_flow(todo: list[Trial], workers: int) -> list[str] | State[Any]:
    """Run the trials, `workers` at a time; failed trials do not stop the others and are named at the end."""
    root = Path.cwd()
    runs.experiment_id()  # create the store once, before several trials use it
    failed = []
    with stopped_at_once():
        submitted = [
            (trial, run_trial.with_options(task_run_name=trial.name).submit(trial, root, workers)) for trial in todo
        ]
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
        mark_done(trial, run_id, root)
    except CxrError as error:
        return Failed(message=str(error))
    return Completed(name="Cached" if twin else "Completed", message=f"run {run_id[:8]}")


def _run_through_dvc(trial: Trial, root: Path, workers: int) -> str:
    """Run one trial in a free worktree; return its training run.

    Raises:
        RegistryError: the store does not answer.
        StageFailedError: a step failed, with its message.
    """
    with trial_workspace(root, trial.settings, of="study", workers=workers) as workspace:

        def report(line: str) -> None:
            get_run_logger().info("%s | %s", trial.name, line)

        run_id = str(run_in(workspace, root, trial.stage, workers=workers, on_line=report)["run_id"])
        complete_record(trial, run_id, workspace, root, workers=workers)
        return run_id


def _weights(given: list[str]) -> dict[str, str]:
    pairs = {}
    for item in given:
        backbone, equals, source = item.partition("=")
        if not equals:
            raise ParamsError(f"--weights needs BACKBONE=FILE, such as resnet50=imagenet; got {item!r}")
        if backbone not in get_args(Backbone):  # its rows would train from random weights
            raise ParamsError(f"--weights knows no backbone {backbone}; expected {', '.join(get_args(Backbone))}")
        pairs[backbone] = weights_setting(source)
    return pairs


def main() -> int:
    """List the trials, or run the missing ones; the exit code is 0 if none failed."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("rows", nargs="*", metavar="GROUP[/ROW[/SEED]]", help="only these (default: all)")
    parser.add_argument("--study", type=Path, default=Path("study.yaml"), help="(%(default)s)")
    parser.add_argument("--weights", action="append", default=[], metavar="BACKBONE=FILE", help="may be repeated")
    parser.add_argument(
        "--workers", type=number_within(int, 1, 1024), default=1, help="trials at once, sharing the cores (%(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="show which trials are done and run nothing")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="write the missing trials for tasks.packed.train")
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="record what tasks.packed.train made of them")
    arguments = parser.parse_args()
    study, weights = read_study(arguments.study), _weights(arguments.weights)
    every = trials(study, params=Path("params.yaml"), weights=weights, chosen=arguments.rows)
    done = [trial for trial in every if trial.is_done()]
    if arguments.list:
        for trial in every:
            print(f"{'done' if trial in done else 'missing':<8} {trial.name}")
        return 0
    if arguments.collect:
        collect_all(every, arguments.collect, Path("params.yaml"))
        return 0
    todo = [trial for trial in every if trial not in done]
    print(f"{len(done)} of {len(every)} trials are done, {len(todo)} are missing")
    if not todo:
        return 0
    if arguments.pack:
        pack(todo, Path.cwd(), arguments.pack)
        return 0
    study_run: Any = study_flow.with_options(task_runner=runner(arguments.workers))
    ended = study_run(todo, arguments.workers, return_state=True)
    if ended.is_failed():
        raise StageFailedError(str(ended.message))
    return 0


if __name__ == "__main__":
    run_flow_command(main)
