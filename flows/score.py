"""Score the images that came in with the champion: every night, in one process or shared by several.

    ./run flows.score                                               # the location of params.yaml
    ./run flows.score s3://hospital/incoming --shards 4

Each shard is a task that runs `./run score --shard i/n`. Shards run side by side on this machine, or on the Ray
cluster that `CXR_RAY_ADDRESS` names (flows/runners.py). Its machines share the project's folder; or they share nothing
but a bucket, which `score.exchange` or `--exchange` names: parts travel through it, and all of them are in the folder
of the output when the run ends.

An image that cannot be read is a row, not a failure; the run's page lists the first ones. While the folder of
params.yaml does not exist, no image has come in: the run ends well and says so. Failed tasks are tried again only
where images or parts travel over a network, or another process is at the shard; they continue after the last part that
was written.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from cxr.common.cli import command_parser, number_within
from cxr.common.errors import CxrError
from cxr.common.notices import NOT_CLINICAL
from cxr.common.params import read_params
from cxr.inference.image_source import BUCKET_SCHEME
from cxr.inference.score_exchange import Exchange
from cxr.inference.score_store import version_folder
from cxr.registry.versions import get_version
from flows.notifications import report_move_by_hand
from flows.runners import check_store_of_a_cluster
from flows.server_errors import run_flow_command
from flows.shards import Work, run_shards_of
from flows.stages import StageFailedError

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
    location: str | None = None,
    output: str | None = None,
    model: str = "champion",
    shards: int | None = None,
    exchange: str | None = None,
) -> Scoring | State[Any]:
    """Score the images of a location that the champion has not scored, and show on the run's page what came out.

    Args:
        location: a folder or s3://bucket/prefix; None, here and below: what params.yaml says.
        output: folder of the parts.
        model: alias or version number.
        shards: tasks that share the images.
        exchange: s3://bucket/prefix by which machines without a common folder share their parts.
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
    try:
        ended = _score(root, where, folder, model, count, exchange or params.score.exchange)
    except CxrError as error:
        return Failed(message=str(error))
    if not ended.is_completed():
        return Failed(message=ended.message)
    done = _together(ended.result())
    publish(done, folder)
    if done.bad and not done.scored + done.known:
        return Failed(message=f"not one of the {done.found} images in {where} could be read")
    return done


def _score(
    root: Path, location: str, folder: Path, model: str, shards: int, exchange: str | None
) -> State[list[dict[str, Any]]]:
    """Run the shards. An exchange gets the parts in `folder` before; afterwards `folder` holds all of them."""
    number = get_version(model).number  # one for all shards and machines, whatever is promoted meanwhile
    if exchange is None:
        arguments = (location, "--output", str(folder), "--model", number)
        return run_shards_of(Work("score", arguments, network=location.startswith(BUCKET_SCHEME)), root, shards)
    check_store_of_a_cluster()
    shared = Exchange(version_folder(folder, number), exchange)
    shared.synchronize()
    arguments = (location, "--exchange", exchange, "--model", number)
    ended = run_shards_of(Work("score", arguments, network=True, apart=True), root, shards)
    if ended.is_completed():
        shared.synchronize()
    return ended


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
    parser.add_argument("--shards", type=number_within(int, 1, 10_000), help="tasks that share the images")
    parser.add_argument("--exchange", metavar="S3", help="s3://bucket/prefix by which machines share their scores")
    given = parser.parse_args()
    ended: State[Any] = score(
        given.location, given.output, given.model, given.shards, given.exchange, return_state=True
    )
    if not ended.is_completed():
        raise StageFailedError(str(ended.message))
    done = ended.result()
    if not isinstance(done, Scoring):
        print(ended.message)
        return
    print(f"{done.found} images: {done.scored} scored by version {done.version}, {done.known} before, {done.bad} bad")


if __name__ == "__main__":
    run_flow_command(main)
