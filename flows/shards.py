"""A step in shards: tasks that each do a share of the images, in threads or on a Ray cluster (flows/runners.py).

A shard whose machine dies is started again, on another one, and continues after the last part that was written. Where
its first process still ends there, the shard is busy; like a fault of the network, that is a reason to try again.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Failed

from cxr.common.errors import BusyError, ImageError
from cxr.common.files import read_json
from cxr.registry.tracking_store import STORE_VARIABLE
from flows.runners import runner, stopped_at_once
from flows.stages import StageBusyError, StageFailedError
from flows.steps import run_step, worth_another_try
from flows.workspaces import shared_environment

RETRY_DELAYS_SECONDS: list[float] = [10, 30, 60]
TIME_LIMIT_SECONDS = 12 * 3600  # of a shard; what it has answered by then is kept, and the next run goes on

_OWN_PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Work:
    """What every shard runs: `python -m tasks.<step> ARGUMENTS --shard i/n --summary FILE`.

    network  it reads or writes over a network, so that a failure may pass by itself
    apart    the machines share no folder: each works in its own copy of the project, with the parameters of the flow's,
             and writes to a folder that ends with the shard
    """

    step: str
    arguments: tuple[str, ...]
    network: bool = False
    apart: bool = False


def run_shards_of(work: Work, root: Path, count: int) -> State[list[dict[str, Any]]]:
    """Run `count` shards of the project at `root`; the state's result is the summary of each.

    Raises:
        ClusterError, ParamsError: the cluster that the environment names cannot be used.
    """
    # A flow of its own: only there can the number of tasks at once, or a cluster, be chosen by parameters.
    fan_out: Any = run_shards.with_options(name=f"{work.step}-shards", task_runner=runner(count))
    ended: State[list[dict[str, Any]]] = fan_out(work, str(root), count, return_state=True)
    return ended


@flow(name="shards", validate_parameters=False)
def run_shards(work: Work, root: str, count: int) -> list[dict[str, Any]] | State[Any]:
    """Run all shards side by side; return each one's summary. One that fails does not stop the others."""
    params = (Path(root) / "params.yaml").read_text(encoding="utf-8") if work.apart else None
    with stopped_at_once():
        futures = [
            run_shard.with_options(
                task_run_name=f"{number} of {count}", retry_condition_fn=worth_another_try(work.network)
            ).submit(work, root, f"{number}/{count}", params)
            for number in range(1, count + 1)
        ]
        for future in futures:
            future.wait()
    if failed := {str(future.state.message): None for future in futures if not future.state.is_completed()}:
        return Failed(message="; ".join(failed))
    summaries: list[Any] = [future.result() for future in futures]
    return summaries


@task(
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS_SECONDS),
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    timeout_seconds=TIME_LIMIT_SECONDS,
)
def run_shard(work: Work, root: str, shard: str, params: str | None) -> dict[str, Any] | State[Any]:
    """Do one share of the images; its lines are this task run's log. No image that can be read is an answer, too.

    `params`: content of the parameter file for a machine without the folder `root`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        summary, folder, environment = Path(scratch) / "summary.json", Path(root), shared_environment(Path(root))
        arguments = [*work.arguments, "--shard", shard, "--summary", str(summary)]
        if params is not None:
            own, folder = Path(scratch) / "params.yaml", _OWN_PROJECT
            own.write_text(params, encoding="utf-8")
            arguments += ["--params", str(own), "--output", str(Path(scratch) / "output")]
            if os.environ.get(STORE_VARIABLE):
                environment = {}  # models are kept below this machine's own project, not below `root`
        done = run_step(work.step, *arguments, folder=folder, environment=environment)
        if done.code not in {0, ImageError.exit_code} or not summary.is_file():
            kind = StageBusyError if done.code == BusyError.exit_code else StageFailedError
            error = kind(f"{work.step} {shard}: {done.last_words}")
            return Failed(message=str(error), data=error)
        found: dict[str, Any] = read_json(summary)
    return found
