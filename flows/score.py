"""Score the images that came in with the champion: every night, in one process or shared by several.

    ./run flows.score                                               # the location of params.yaml
    ./run flows.score s3://hospital/incoming --shards 4

Each shard is a task that runs `./run score --shard i/n`. Shards run side by side on this machine, or on the Ray
cluster that `CXR_RAY_ADDRESS` names (flows/runners.py); its machines must share the folder of the output.

An image that cannot be read is a row, not a failure; the run's page lists the first ones. While the folder of
params.yaml does not exist, no image has come in: the run ends well and says so. Failed tasks are tried again only
where images come over a network; they continue after the last part that was written.
"""

import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from cxr.common.cli import command_parser
from cxr.common.errors import ImageError
from cxr.common.files import read_json
from cxr.common.notices import NOT_CLINICAL
from cxr.common.params import read_params
from cxr.inference.image_source import BUCKET_SCHEME
from flows.notifications import report_move_by_hand
from flows.runners import runner
from flows.server_errors import run_flow_command
from flows.stages import StageFailedError
from flows.steps import run_step
from flows.workspaces import shared_environment

RETRIES = 3
RETRY_DELAY_SECONDS = 30
TIME_LIMIT_SECONDS = 12 * 3600  # of a shard; what it has scored by then is kept, and the next night goes on
SHOWN_BAD_IMAGES = 50


@dataclass(frozen=True)
class Scoring:
    """What all shards of a run did together; the fields are those of tasks.score.ScoringSummary."""

    location: str
    version: str
    found: int
    known: int
    scored: int
    bad: int
    bad_images: dict[str, str]
    referred: int | None
    classes: dict[str, int]
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images read a second by all shards together, without loading the model."""
        return (self.scored + self.bad) / self.seconds if self.seconds else 0.0


@flow(name="score")
def score(
    location: str | None = None, output: str | None = None, model: str = "champion", shards: int | None = None
) -> Scoring | State[Any]:
    """Score the images of a location that the champion has not scored, and show on the run's page what came out.

    Args:
        location: a folder or s3://bucket/prefix; None, here and below: what params.yaml says.
        output: folder of the parts.
        model: alias or version number.
        shards: tasks that share the images.
    """
    root = Path.cwd()
    params = read_params(root / "params.yaml")
    report_move_by_hand()
    where, count = location or params.score.location, shards or params.score.shards
    if location is None and _nothing_came_in(root, where):
        message = f"{where} does not exist yet: no image has come in, and nothing was scored"
        create_markdown_artifact(key="scores", markdown=message)
        return Completed(message=message)
    folder = (root / (output or params.paths.scores)).resolve()
    # A flow of its own: only there can the number of tasks at once, or a cluster, be chosen by parameters.
    fan_out = score_shards.with_options(task_runner=runner(count))
    ended: State[Any] = fan_out(str(root), where, str(folder), model, count, return_state=True)
    if not ended.is_completed():
        return Failed(message=ended.message)
    done = _together(ended.result())
    publish(done, folder)
    if done.bad and not done.scored + done.known:
        return Failed(message=f"not one of the {done.found} images in {where} could be read")
    return done


@flow(name="score-shards")
def score_shards(root: str, location: str, output: str, model: str, shards: int) -> list[dict[str, Any]] | State[Any]:
    """Run all shards side by side; return each one's summary. One that fails does not stop the others."""
    retries = RETRIES if location.startswith(BUCKET_SCHEME) else 0
    futures = [
        score_shard.with_options(task_run_name=f"{number} of {shards}", retries=retries).submit(
            root, location, output, model, f"{number}/{shards}"
        )
        for number in range(1, shards + 1)
    ]
    for future in futures:
        future.wait()
    if failed := {str(future.state.message): None for future in futures if not future.state.is_completed()}:
        return Failed(message="; ".join(failed))
    summaries: list[Any] = [future.result() for future in futures]
    return summaries


@task(cache_policy=NO_CACHE, retry_delay_seconds=RETRY_DELAY_SECONDS, timeout_seconds=TIME_LIMIT_SECONDS)
def score_shard(root: str, location: str, output: str, model: str, shard: str) -> dict[str, Any] | State[Any]:
    """Score one share of the images; its lines are this task run's log. No image that can be read is an answer, too."""
    with tempfile.TemporaryDirectory() as scratch:
        summary = Path(scratch) / "summary.json"
        arguments = [location, "--output", output, "--model", model, "--shard", shard, "--summary", str(summary)]
        done = run_step("score", *arguments, folder=Path(root), environment=shared_environment(Path(root)))
        if done.code not in {0, ImageError.exit_code} or not summary.is_file():
            error = StageFailedError(f"score {shard}: {done.last_words}")
            return Failed(message=str(error), data=error)
        found: dict[str, Any] = read_json(summary)
    return found


def publish(done: Scoring, folder: Path) -> None:
    """Show counts and classes, and the first images that could not be read, on the flow run's page."""
    counts = {
        "found": done.found,
        "scored": done.scored,
        "scored before": done.known,
        "bad": done.bad,
        "referred to a reader": "no threshold" if done.referred is None else done.referred,
        **{f"called {name}": number for name, number in sorted(done.classes.items())},
        "images a second": f"{done.images_per_second:.1f}",
    }
    rows = ["| images | |", "|---|---|", *(f"| {name} | {value} |" for name, value in counts.items())]
    title = f"Version {done.version} on {done.location}, in {folder}\n\n{NOT_CLINICAL}\n\n"
    create_markdown_artifact(key="scores", markdown=title + "\n".join(rows))
    if done.bad_images:
        shown = list(done.bad_images.items())[:SHOWN_BAD_IMAGES]
        create_table_artifact(key="bad-images", table=[{"path": path, "error": error} for path, error in shown])


def _nothing_came_in(root: Path, location: str) -> bool:
    """Say whether `location` is a folder of this project that nobody has made yet.

    A bucket, a mount or any other absolute path that is missing is an outage, and the step fails with it.
    """
    return not (location.startswith(BUCKET_SCHEME) or Path(location).is_absolute() or (root / location).exists())


def _together(summaries: list[dict[str, Any]]) -> Scoring:
    referred = [summary["referred"] for summary in summaries if summary["referred"] is not None]
    classes: Counter[str] = Counter()
    for summary in summaries:
        classes.update(summary["classes"])
    return Scoring(
        location=summaries[0]["location"],
        version=summaries[0]["version"],
        **{name: sum(summary[name] for summary in summaries) for name in ("found", "known", "scored", "bad")},
        bad_images={path: error for summary in summaries for path, error in summary["bad_images"].items()},
        referred=sum(referred) if referred else None,
        classes=dict(classes),
        seconds=max(summary["seconds"] for summary in summaries),
    )


def main() -> None:
    """Run the flow once from the command line."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("location", metavar="LOCATION", nargs="?", help="folder or s3://bucket/prefix")
    parser.add_argument("--output", help="folder of the parts")
    parser.add_argument("--model", default="champion", help="alias or version number (%(default)s)")
    parser.add_argument("--shards", type=int, help="tasks that share the images")
    given = parser.parse_args()
    ended: State[Any] = score(given.location, given.output, given.model, given.shards, return_state=True)
    if not ended.is_completed():
        raise StageFailedError(str(ended.message))
    done = ended.result()
    if not isinstance(done, Scoring):
        print(ended.message)
        return
    print(f"{done.found} images: {done.scored} scored by version {done.version}, {done.known} before, {done.bad} bad")


if __name__ == "__main__":
    run_flow_command(main)
