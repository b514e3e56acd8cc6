"""Score all images of a folder or an S3 prefix with the champion: the nightly job.

    ./run score                                       # the location named in params.yaml
    ./run score s3://hospital/incoming --output data/scores
    ./run score /mnt/images --shard 2/8               # one of eight processes or machines
    ./run score s3://hospital/incoming --shard 2/8 --exchange s3://team/scores    # that share no folder

Reads   images, a few at a time: whole sets are neither copied nor held in memory
Writes  <output>/version-<n>/*.parquet, a row an image (columns: cxr/inference/score_store.py); --summary FILE: the
        counts as JSON. With --exchange each part is also an object there, and parts that other machines left there are
        fetched first
Prints  how many images were found, scored, known, bad and referred to a reader, and images a second

Each version scores an image once: after any interruption run the same command again. An image with the path, size and
modification time (or ETag) of a scored one is not read. Any other is read, and left out when its bytes were scored
under its path. An image that cannot be read is a row with its `error` and no failure: the exit code is 4 only when no
image could be read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cxr.common.cli import add_engine_argument, answer_help, command_parser, run_command


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("location", metavar="LOCATION", nargs="?", help="folder or s3://bucket/prefix")
    parser.add_argument("--output", type=Path, help="folder of the parts")
    parser.add_argument("--model", default="champion", help="alias or version number (%(default)s)")
    add_engine_argument(parser, "torch")
    parser.add_argument("--shard", default="1/1", help="share of the images to score, such as 2/8 (%(default)s)")
    parser.add_argument("--exchange", metavar="S3", help="s3://bucket/prefix by which machines share their scores")
    parser.add_argument("--summary", metavar="FILE", type=Path, help="write the counts as JSON")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

import pyarrow as pa
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cxr.common.command_params import ScoreParams
from cxr.common.engines import Engine
from cxr.common.errors import ImageError
from cxr.common.files import write_json
from cxr.common.locks import sole_lock
from cxr.common.notices import NOT_CLINICAL
from cxr.common.params import read_params
from cxr.inference.batch import EVERY_IMAGE, ScoredBatch, Shard, read_shard, score_images
from cxr.inference.classifier import Classifier, load_classifier
from cxr.inference.image_source import ImageFile, Location, open_location
from cxr.inference.score_exchange import Exchange
from cxr.inference.score_store import PartWriter, Scored, schema, version_folder
from cxr.registry.lineage import lineage
from cxr.registry.versions import MODEL, Version, fetch_bundle, get_version

_NAMED_BAD_IMAGES = 50

log = logging.getLogger("cxr.score")


@dataclass
class ScoringSummary:
    """The counts of a run.

    found, known     images of the shard; those of them that this version had scored before
    scored, bad      images scored now; images that could not be read
    bad_images       path -> error of the first of them
    referred         of the scored ones; None where the model has no threshold or had nothing to do
    classes          predicted class -> images
    seconds          of reading and scoring, without loading the model
    """

    location: str
    folder: str
    version: str
    found: int
    known: int
    scored: int = 0
    bad: int = 0
    bad_images: dict[str, str] = field(default_factory=dict)
    referred: int | None = None
    classes: dict[str, int] = field(default_factory=dict)  # no Counter: `asdict` breaks one
    seconds: float = 0.0

    def add(self, batch: ScoredBatch) -> None:
        """Count a batch."""
        self.known += batch.known
        for row in batch.rows:
            if row["error"] is not None:
                self.bad += 1
                if len(self.bad_images) < _NAMED_BAD_IMAGES:
                    self.bad_images[row["path"]] = row["error"]
                continue
            self.scored += 1
            self.classes[row["predicted_class"]] = self.classes.get(row["predicted_class"], 0) + 1
            if self.referred is not None:
                self.referred += row["refer"]

    @property
    def images_per_second(self) -> float:
        """Images read a second, 0 or more."""
        return (self.scored + self.bad) / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        referred = "" if self.referred is None else f", {self.referred} referred to a reader"
        return (
            f"{self.found} images in {self.location}: {self.scored} scored by version {self.version}{referred}, "
            f"{self.bad} bad, {self.known} scored before; {self.images_per_second:.1f} images a second; {self.folder}"
        )


def score(
    params: ScoreParams,
    output: Path,
    *,
    model: str = "champion",
    shard: Shard = EVERY_IMAGE,
    engine: Engine = "torch",
) -> ScoringSummary:
    """Score the images of `params.location` that version `model` has not scored into `output`.

    Images that the version has scored with another engine are not scored again.

    Raises:
        SourceError: the location or the exchange does not exist, or no longer answers; parts that were written stand.
        RegistryError, WeightsError: the model cannot be fetched as it was registered.
        DataError: a part in `output` is damaged.
        BusyError: another process scores this shard into `output`.
    """
    version = get_version(model)
    location = open_location(params.location)
    images = [image for image in location.images if shard.holds(image.path)]
    folder = version_folder(output, version.number)
    exchange = Exchange(folder, params.exchange) if params.exchange else None
    with sole_lock(folder.with_name(f".{folder.name}-{shard}.lock"), what=f"shard {shard} of {folder}"):
        if exchange:
            exchange.synchronize()
        scored = Scored(folder, spec_sha256=version.tags["spec_sha256"], location=location.name, images=images)
        todo = sorted((image for image in images if not scored.is_unchanged(image)), key=_random_order)
        summary = ScoringSummary(
            location.name, str(folder), version.number, found=len(images), known=len(images) - len(todo)
        )
        if todo:
            classifier = _load(version, engine)
            summary.referred = None if classifier.spec.refer_below is None else 0
            writer = PartWriter(
                folder,
                _columns(classifier, version),
                images_per_part=params.images_per_part,
                shard=str(shard),
                publish=exchange.send if exchange else (lambda _: None),
            )
            _score_all(
                classifier, location, todo, scored=scored, writer=writer, summary=summary, workers=params.workers
            )
        return summary


def _random_order(image: ImageFile) -> bytes:
    """Return a sort key that is fixed for an image and unrelated to its name.

    Images lie by ward, part or class: in the order of their paths, whole windows of the monitor would be of one kind.
    """
    return hashlib.blake2b(image.path.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _load(version: Version, engine: Engine) -> Classifier:
    classifier = load_classifier(fetch_bundle(version), number=version.number, engine=engine)
    if classifier.reference is None:
        log.warning("version %s has no reference statistics: its images are not measured for drift", version.number)
    return classifier


def _columns(classifier: Classifier, version: Version) -> pa.Schema:
    """Return the schema of the parts; its metadata name the model and the code."""
    code = lineage(Path())
    metadata = {
        "model": MODEL,
        "model_version": version.number,
        "engine": classifier.engine,
        **{name: version.tags[name] for name in ("weights_sha256", "spec_sha256")},
        **{name: code[name] for name in ("git_commit", "code_sha256", "torch_version")},
    }
    return schema(classifier.spec.classes, classifier.measures, metadata)


def _score_all(
    classifier: Classifier,
    location: Location,
    images: Sequence[ImageFile],
    *,
    scored: Scored,
    writer: PartWriter,
    summary: ScoringSummary,
    workers: int,
) -> None:
    """Score `images`, a part at a time; rows scored before an error or Ctrl-C are written too."""
    batches = score_images(classifier, location, images, scored=scored, workers=workers or os.cpu_count() or 1)
    started = time.monotonic()
    with logging_redirect_tqdm(), tqdm(total=len(images), desc="score", unit=" images", disable=None) as bar:
        try:
            with closing(batches):
                for batch in batches:
                    summary.add(batch)
                    bar.update(len(batch.rows) + batch.known)
                    if writer.add(batch.rows):
                        done = summary.scored + summary.bad
                        log.info("score: %d of %d images, %d bad", done, len(images), summary.bad)
        finally:
            writer.close()
            summary.seconds = time.monotonic() - started


def main() -> None:
    """Read the command line and score."""
    given = command_line().parse_args()
    params = read_params(given.params)
    changed = {"location": given.location, "exchange": given.exchange}
    section = params.score.model_copy(update={name: value for name, value in changed.items() if value})
    folder, shard = given.output or params.paths.scores, read_shard(given.shard)
    summary = score(section, folder, model=given.model, shard=shard, engine=given.engine)
    if given.summary:
        write_json(given.summary, asdict(summary) | {"images_per_second": summary.images_per_second})
    print(summary)
    print(NOT_CLINICAL)
    if summary.bad and not summary.scored + summary.known:
        raise ImageError(
            f"not one of the {summary.found} images in {summary.location} could be read; the column `error` in "
            f"{summary.folder} says why",
            reason="not an image",
        )


if __name__ == "__main__":
    run_command(main)
