"""Search for better values of named parameters: search.yaml says which, trials are judged on validation images alone.

    ./run configure --profile profiles/real.yaml --data ../chest-images      # once: which images
    ./run flows.search                                                       # the same after an interruption
    ./run flows.search --list                                                # the trials so far, the best first

Each trial trains through DVC in a worktree of its own, with the same cache and tracking store; it never evaluates, so
no test image is opened. A training that falls behind the others is stopped. Results: reports/search/<name>, a table and
a page. They are a reason to add a row to study.yaml, whose seeds confirm it or not, and none to change params.yaml.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from optuna import Trial
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from cxr.common.cli import command_parser
from cxr.common.errors import CxrError
from cxr.common.locks import file_lock, worktree_lock
from cxr.common.params import read_params
from cxr.registry import runs
from cxr.registry.run_metadata import keep_below
from cxr.registry.tracking_store import mlruns_folder
from cxr.study.search import History, Search, epoch_of, read_search
from cxr.study.search_page import PAGE, write_results
from flows.server_errors import run_flow_command
from flows.stages import StageFailedError
from flows.trials.trial import DECIDING_SECTIONS, run_in, trial_workspace
from flows.workspaces import WorkspaceError

REPORTS = Path("reports", "search")
HISTORY_FILE = "search.db"
"""In the folder of the tracking store."""


class FallenBehindError(CxrError):
    """A training is worse than the median of the others after as many epochs."""


@flow(name="search", validate_parameters=False)
def search_flow(search: Search) -> State[Any]:
    """Run the trials that are missing, one after the other; failed ones do not stop it."""
    root = Path.cwd()
    with file_lock(worktree_lock(root, "search"), waits_for="another `./run flows.search` of this project"):
        runs.experiment_id()  # create the store, and with it the folder of the history
        history = open_history(search)
        history.run_interrupted_again()
        while (trial := history.ask()) is not None:
            name, ended = f"{search.name}/{trial.number}", len(history.tried)
            state = run_trial.with_options(task_run_name=name)(root, history, trial, return_state=True)
            if len(history.tried) == ended:  # the next trial would meet the same
                return Failed(message=state.message)
            write_results(search, history.tried, REPORTS / search.name)
        write_results(search, history.tried, REPORTS / search.name)
    best = history.tried[0]
    if best.state == "failed":
        return Failed(message=f"every trial failed, the first with: {best.message}")
    return Completed(
        message=f"trial {best.number}: validation macro-F1 {best.macro_f1:.3f}; see {REPORTS / search.name / PAGE}"
    )


def open_history(search: Search) -> History:
    """Return the trials so far of this search with the present params.yaml."""
    storage = mlruns_folder() / HISTORY_FILE
    return History(search, params=Path("params.yaml"), deciding=DECIDING_SECTIONS, storage=storage)


@task(cache_policy=NO_CACHE)
def run_trial(root: Path, history: History, trial: Trial) -> State[None]:
    """Train with the values of a trial; one that falls behind is stopped, and its checkpoint removed.

    Without a worktree no trial can run: this one does not count as ended, and is the first of the next search.
    """
    search, seen = history.search, 0

    def watch(line: str) -> None:
        nonlocal seen
        get_run_logger().info("%s", line)
        epoch = epoch_of(line)
        if epoch and epoch[0] > seen:  # the members of an ensemble after the first count again from 1
            seen = epoch[0]
            trial.report(epoch[1], step=seen)
            if trial.should_prune():
                raise FallenBehindError(f"stopped after {seen} epochs")

    try:
        with trial_workspace(root, search.settings(trial.params), of="search", workers=1) as workspace:
            try:
                training = run_in(workspace, root, "train", workers=1, on_line=watch)
            except FallenBehindError as reason:
                _remove_newest_checkpoint(workspace)
                history.prune(trial)
                return Completed(name="Pruned", message=str(reason))
        _mark(training["run_id"], search, trial)
    except WorkspaceError as error:
        return Failed(message=str(error))
    except (CxrError, OSError) as error:  # a combination of values that params.yaml refuses is one, too
        history.fail(trial, str(error))
        return Failed(message=str(error))
    history.complete(trial, training)
    return Completed(message=f"run {training['run_id'][:8]}")


def _mark(run_id: str, search: Search, trial: Trial) -> None:
    """Tag the run of a trial, and keep it below the search's."""
    text = f"The trials of a search: {', '.join(search.parameters)}."
    runs.tag_run(run_id, {f"search.{search.name}": str(trial.number)})
    keep_below(run_id, f"search {search.name}", name=f"search {search.name}", description=text)


def _remove_newest_checkpoint(workspace: Path) -> None:
    """Remove what the training that was just stopped would continue from; other trials' stay."""
    folder = workspace / read_params(workspace / "params.yaml").paths.checkpoints
    newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime, default=None) if folder.is_dir() else None
    if newest:
        shutil.rmtree(newest)


def main() -> int:
    """Run the missing trials, or list those that have ended."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--search", type=Path, default=Path("search.yaml"), help="(%(default)s)")
    parser.add_argument("--list", action="store_true", help="show the trials so far and run nothing")
    arguments = parser.parse_args()
    search = read_search(arguments.search)
    if arguments.list:
        runs.experiment_id()
        for one in open_history(search).tried:
            figure = "" if one.macro_f1 is None else f"{one.macro_f1:.3f}"
            print(f"{one.number:>4}  {one.state:<8}  {figure:<5}  {dict(one.values)}")
        return 0
    ended = search_flow(search, return_state=True)
    if not ended.is_completed():
        raise StageFailedError(str(ended.message))
    print(ended.message)
    return 0


if __name__ == "__main__":
    run_flow_command(main)
