"""Rebuild the model: the stages of dvc.yaml as one visible task each, then the promotion gate.

    ./run flows.rebuild                                       # here and now; no server needed
    ./run flows.rebuild --set train.learning_rates.head=5e-4 --no-promote
    make serve                                                # on the schedule of prefect.yaml

DVC decides what has to run; a stage that is up to date ends as `Cached`. Parameters set for one run leave the
checkout as it is: the run has a git worktree of its own in .runs/<run>, over the same cache and tracking store.
A rejected promotion is a result, not a failure, and so is one that waits for a person: the flow completes, its
task `promote` in the state `Rejected` or `Held`. After a day a run counts as hung and is stopped.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.dvc.process import DVC

if __name__ == "__main__":
    DVC.start()  # it imports DVC while Prefect is imported here

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from cxr.common.cli import command_parser
from cxr.common.errors import ParamsError, PromotionHeldError
from cxr.common.locks import file_lock, worktree_lock
from cxr.common.params import read_params
from cxr.common.params_file import parse_setting
from flows import remote_cache
from flows.run_page import publish
from flows.server_errors import run_flow_command
from flows.stages import (
    StageFailedError,
    child_environment,
    plan,
    reads_network,
    run_stage,
)
from flows.steps import VERDICTS, run_step, verdict_of, worth_another_try
from flows.workspaces import open_workspace, shared_environment

RETRIES = 3
RETRY_DELAY_SECONDS = 10
TIME_LIMIT_SECONDS = 24 * 3600

CACHED = "Cached"
UNCHANGED = "nothing it reads has changed"


@dataclass(frozen=True)
class Rebuild:
    """What a run did: stage -> `Completed` or `Cached`, and the gate's verdict (None: not asked)."""

    stages: dict[str, str]
    verdict: str | None
    folder: Path


@flow(name="rebuild", timeout_seconds=TIME_LIMIT_SECONDS)
def rebuild(overrides: dict[str, Any] | None = None, promote: bool = True, keep: int = 5) -> Rebuild | State[Any]:
    """Bring every stage up to date, publish the results, then ask the promotion gate.

    Args:
        overrides: dotted names of params.yaml to values, for this run alone.
        promote: whether a model that passes the gate becomes champion.
        keep: how many worktrees of runs with overrides stay in .runs.
    """
    DVC.start()
    root = Path.cwd()
    if not (root / "dvc.yaml").is_file():
        raise ParamsError(f"{root} holds no dvc.yaml; start the flow in the project's root")
    if not overrides:
        return _bring_up_to_date(root, root, promote)
    run = str(flow_run.name)
    with file_lock(worktree_lock(root, run)):
        return _bring_up_to_date(root, open_workspace(root, run=run, overrides=overrides, keep=keep), promote)


def _bring_up_to_date(root: Path, folder: Path, promote: bool) -> Rebuild | State[Any]:
    """Rebuild in `folder`, the project at `root` or a worktree of it."""
    params = read_params(folder / "params.yaml")
    environment = shared_environment(root)
    if remote_cache.is_shared():
        try:
            remote_cache.fetch(folder, on_line=get_run_logger().info, environment=child_environment(environment))
        except remote_cache.RemoteError as error:
            return Failed(message=str(error), data=error)

    stages: dict[str, str] = {}
    planned = plan(folder)
    for name in planned.order:
        named = stage.with_options(
            name=name, task_run_name=name, retry_condition_fn=worth_another_try(reads_network(name, params.ingest))
        )
        # A stage that ran may have changed what later ones read: DVC is asked about each of those.
        skip = name in planned.unchanged and set(stages.values()) <= {CACHED}
        state = named(name, folder, environment, skip=skip, return_state=True)
        if not state.is_completed():
            return _failed(state)
        stages[name] = str(state.name)
    verdict = None
    if promote:
        state = ask_promotion_gate(folder, environment, stages.get("register") == CACHED, return_state=True)
        if not state.is_completed():
            return _failed(state)
        verdict = state.name
    publish(folder, params.paths)
    return Rebuild(stages=stages, verdict=verdict, folder=folder)


@task(cache_policy=NO_CACHE, retries=RETRIES, retry_delay_seconds=RETRY_DELAY_SECONDS)
def stage(name: str, folder: Path, environment: dict[str, str], skip: bool) -> State[None]:
    """Run one stage through DVC, unless it is known to be unchanged; its lines are this task run's log."""
    if skip:
        return Completed(name=CACHED, message=UNCHANGED)
    try:
        run = run_stage(name, root=folder, on_line=get_run_logger().info, environment=environment)
    except (StageFailedError, remote_cache.RemoteError) as error:
        return Failed(message=str(error), data=error)
    if run.cached:
        return Completed(name=CACHED, message=UNCHANGED)
    return Completed(message=f"ran for {run.seconds:.0f} s")


@task(task_run_name="promote", cache_policy=NO_CACHE)
def ask_promotion_gate(folder: Path, environment: dict[str, str], receipt_is_cached: bool) -> State[None]:
    """Ask the gate whether the challenger becomes champion; a refusal is an answer with its reasons.

    A cached receipt may be of an older model than the challenger of this store: it is registered again first. A
    champion that was measured on other images is measured on the present ones; where it cannot be, the gate says so.
    """
    fine = {"register": {0}, "reevaluate": {0, PromotionHeldError.exit_code}, "promote": set(VERDICTS)}
    for step in list(fine)[0 if receipt_is_cached else 1 :]:
        done = run_step(step, folder=folder, environment=environment)
        if done.code not in fine[step]:
            error = StageFailedError(f"{step}: {done.last_words}")
            return Failed(message=str(error), data=error)
    create_markdown_artifact(key="promotion", markdown="\n".join(["```", *done.lines, "```"]))
    return Completed(name=verdict_of(done), message=done.outcome)


def _failed(state: State[Any]) -> State[Any]:
    """Return the flow's end for a task's: same message, without a second traceback."""
    return Failed(message=state.message, data=state.result(raise_on_failure=False))


def main() -> int:
    """Run the flow once from the command line; the exit code is the gate's."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="for this run; may be repeated"
    )
    parser.add_argument("--no-promote", action="store_true", help="leave the champion as it is")
    arguments = parser.parse_args()
    overrides = dict(parse_setting(setting) for setting in arguments.set)
    done = rebuild(overrides=overrides or None, promote=not arguments.no_promote)
    if not isinstance(done, Rebuild):
        raise StageFailedError(str(done.message))
    for name, state in done.stages.items():
        print(f"{name:<11} {state}")
    print(f"promote     {done.verdict or 'not asked'}")
    print(f"report      {done.folder / read_params(done.folder / 'params.yaml').paths.report}")
    return next((code for code, verdict in VERDICTS.items() if verdict == done.verdict), 0)


if __name__ == "__main__":
    run_flow_command(main)
