"""Test the champion on a set that it has never seen, in shards: side by side, or on a Ray cluster.

    ./run flows.external --shards 4 --data FOLDER --labels labels.csv

Every other option is one of `./run external`, which says what is read and written. Each shard is a task that runs
`./run external --shard i/n`; then the command without a share measures all answers, which are to the bit those of one
process. The machines of a cluster (`CXR_RAY_ADDRESS`, flows/runners.py) share the project's folder and that of the set.
"""

import sys
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed

from cxr.common.cli import command_parser, number_within
from cxr.common.errors import CxrError
from cxr.common.params import read_params
from cxr.dataset.sources import Sample, fetch
from flows.server_errors import run_flow_command
from flows.shards import Work, run_shards_of
from flows.stages import StageFailedError
from flows.steps import StepRun, run_step
from flows.workspaces import shared_environment
from tasks.external import command_line


@flow(name="external")
def external(arguments: list[str], shards: int = 1) -> list[str] | State[Any]:
    """Answer the images of a set in shards, then measure; return the lines of the result.

    Args:
        arguments: of `./run external`.
        shards: tasks that share the images.
    """
    root = Path.cwd()
    try:
        # Once: shards that fetch one address at a time would be in each other's way.
        folder = _fetch(arguments)
        ended = run_shards_of(Work("external", (*arguments, "--data", str(folder))), root, shards)
    except CxrError as error:
        return Failed(message=str(error))
    if not ended.is_completed():
        return Failed(message=ended.message)
    done = run_step("external", *arguments, folder=root, environment=shared_environment(root))
    return list(done.lines) if done.code == 0 else _failed(done)


def _fetch(arguments: list[str]) -> Path:
    """Return the folder of the set."""
    given = command_line().parse_args(arguments)
    params = read_params(given.params)
    sample = Sample(patients_per_class=params.ingest.sample_patients_per_class, seed=params.ingest.sample_seed)
    return fetch(given.data, downloads=params.paths.downloads, sample=sample).folder


def _failed(done: StepRun) -> State[Any]:
    """Return the state of a step that failed; images that could not be read fail it after its result was written."""
    error = StageFailedError(done.last_words)
    error.exit_code = done.code
    return Failed(message=str(error), data=error)


def main() -> None:
    """Run the flow once from the command line."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument(
        "--shards", type=number_within(int, 1, 10_000), default=1, help="tasks that share the images (%(default)s)"
    )
    given, arguments = parser.parse_known_args()
    command_line().parse_args(arguments)  # what is wrong ends the command before anything starts
    ended: State[Any] = external(arguments, given.shards, return_state=True)
    if not ended.is_completed():
        error = ended.result(raise_on_failure=False)
        raise error if isinstance(error, StageFailedError) else StageFailedError(str(ended.message))
    print("\n".join(ended.result()))


if __name__ == "__main__":
    run_flow_command(main)
