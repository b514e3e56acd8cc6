"""Compare the images scored lately with the champion's reference; drift starts a rebuild.

    ./run flows.monitor                # here and now; no server needed
    ./run flows.monitor --report-only  # never starts a rebuild
    make serve                             # on the schedule of prefect.yaml

A rebuild is started once for the same windows: a tag of the champion's version holds the end of the last one, and
Prefect rejects a second run with the same idempotency key. The new model still has to pass the promotion gate.
"""

import os
import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed

from cxr.common.cli import command_parser
from cxr.common.files import read_json
from cxr.common.params import read_params
from cxr.registry import tracking_store, versions
from flows.server_errors import run_flow_command
from flows.stages import StageFailedError
from flows.steps import run_step

REBUILD = "rebuild/weekly"
TIME_LIMIT_SECONDS = 3600
RETRIES, RETRY_DELAY_SECONDS = 2, 30


@flow(name="monitor", timeout_seconds=TIME_LIMIT_SECONDS)
def monitor(start_rebuild: bool = True) -> State[Any]:
    """Compare, publish the table, and on drift start the deployment of the rebuild.

    Args:
        start_rebuild: whether drift starts a rebuild or is only reported.
    """
    root = Path.cwd()
    state = compare(root, return_state=True)
    if not state.is_completed():
        return Failed(message=str(state.message), data=StageFailedError(str(state.message)))
    found = read_json(root / read_params(root / "params.yaml").paths.monitor)
    create_markdown_artifact(key="drift", markdown=found["markdown"])
    if not found["drift"]:
        return Completed(message=found["headline"])
    if not start_rebuild:
        return Completed(name="Drift", message=f"{found['headline']} No rebuild: report only")
    result = rebuild_once(found["version"], found["windows"][-1]["last"])
    return Completed(name="Drift", message=f"{found['headline']} {result}")


def _store_is_remote(*_: object) -> bool:
    return not tracking_store.tracking_uri().startswith("sqlite")


@task(
    task_run_name="compare",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=_store_is_remote,
)
def compare(folder: Path) -> State[None]:
    """Run `./run monitor` with its lines in the log of this task run."""
    done = run_step("monitor", folder=folder)
    if done.code:
        return Failed(message=done.last_words, data=StageFailedError(done.last_words))
    return Completed(message=done.lines[-1])


def rebuild_once(version: str, last: str) -> str:
    """Start the rebuild for the windows of `version` up to the time `last`; return a message.

    The version is tagged after the start. If this is interrupted in between, the next run tries again, and Prefect
    rejects the second start by its key.
    """
    try:
        key = f"drift-{version}-{last}"
        started: Any = run_deployment(REBUILD, timeout=0, as_subflow=False, idempotency_key=key)
    except ObjectNotFound:
        message = (
            f"No rebuild was started: Prefect at {os.environ.get('PREFECT_API_URL', 'no address')} has no deployment "
            f"{REBUILD}; run `make serve`, or rebuild with `./run flows.rebuild`"
        )
        get_run_logger().warning(message)
        return message
    versions.tag_version(version, {versions.DRIFT_TAG: last})
    message = f"Started {REBUILD} as {started.name}; its model still has to pass the promotion gate"
    get_run_logger().info(message)
    return message


def main() -> int:
    """Run the flow here; the exit code is 0 unless the comparison failed."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--report-only", action="store_true", help="report drift and start no rebuild")
    ended = monitor(start_rebuild=not parser.parse_args().report_only, return_state=True)
    if ended.is_failed():
        raise StageFailedError(str(ended.message))
    print(ended.message)
    return 0


if __name__ == "__main__":
    run_flow_command(main)
