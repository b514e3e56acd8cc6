"""Score all images of a folder or an S3 prefix with the champion: what runs every night.

    python -m tasks.score                                          # what params.yaml names
    python -m tasks.score s3://hospital/incoming --output data/scores
    python -m tasks.score /mnt/images --shard 2/8                   # one of eight processes or machines, each its own

Reads   images, a few at a time: whole sets are neither copied nor held in memory
Writes  <output>/version-<n>/*.parquet, a row an image; its columns are told in cxr/inference/score_store.py
Prints  how many images were found, scored, known, bad and referred to a reader, and images a second

An image is scored once by each version: run the same command again after any interruption. An image that has the path,
size and modification time (or ETag) of a scored one is not read again; any other is, and left out when its bytes were
scored under its path. An image that cannot be read is a row with its `error`, and no failure: exit code 4 only when
there was not one image that could be read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import ImageError, ParamsError
from cxr.common.notices import NOT_CLINICAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cxr.common.params import ScoreParams
    from cxr.inference.batch import ScoredBatch
    from cxr.inference.classifier import Classifier
    from cxr.inference.image_source import ImageFile, Location
    from cxr.inference.score_store import PartWriter, Scored
    from cxr.registry.versions import Version


_NAMED_BAD_IMAGES = 50

log = logging.getLogger("cxr.score")


@dataclass(frozen=True)
class Shard:
    """Number `number` of `of` shares of the images, counted from 1; which share an image is in follows from its path."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}of{self.of}"

    def holds(self, path: str) -> bool:
        """Say whether the image at `path` is in this share."""
        from cxr.dataset.shards import shard_of

        return shard_of(path, self.of) == self.number - 1


@dataclass
class Tally:
    """What a run did.

    found, known     images of the shard; those of them that this version had scored before
    scored, bad      images scored now; images that could not be read
    bad_images        path -> error of the first of them
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
    params: ScoreParams, output: Path, *, model: str = "champion", shard: Shard | None = None, fast: bool = False
) -> Tally:
    """Score the images of `params.location` that version `model` has not scored into `output`.

    `fast`: by the exported network where the version has one; what torch scored before is not scored again.

    Raises:
        SourceError: the location does not exist, or does not answer any more; parts that were written stand.
        RegistryError, WeightsError: the model cannot be fetched as it was registered.
        DataError: a part in `output` is damaged.
    """
    from cxr.inference.image_source import open_location
    from cxr.inference.score_store import Scored, version_folder
    from cxr.registry.versions import get_version

    share = shard or Shard(1, 1)
    version = get_version(model)
    location = open_location(params.location)
    images = [image for image in location.images if share.holds(image.path)]
    folder = version_folder(output, version.number)
    scored = Scored(folder, spec_sha256=version.tags["spec_sha256"], location=location.name)
    todo = sorted((image for image in images if not scored.is_unchanged(image)), key=_mixed)
    tally = Tally(location.name, str(folder), version.number, found=len(images), known=len(images) - len(todo))
    if todo:
        classifier = _load(version, fast=fast)
        tally.referred = None if classifier.spec.refer_below is None else 0
        writer = _writer(classifier, version, folder, images_per_part=params.images_per_part, share=share)
        _score_all(classifier, location, todo, scored=scored, writer=writer, tally=tally, workers=params.workers)
    return tally


def _mixed(image: ImageFile) -> bytes:
    """Return a place in an order that names say nothing of.

    Images lie by ward, part or class: in the order of their paths whole windows of the monitor would be of one kind.
    """
    return hashlib.blake2b(image.path.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _load(version: Version, *, fast: bool) -> Classifier:
    from cxr.inference.classifier import load_classifier
    from cxr.registry.versions import fetch_bundle

    classifier = load_classifier(fetch_bundle(version), number=version.number, fast=fast)
    if classifier.reference is None:
        log.warning("version %s has no reference statistics: its images are not measured for drift", version.number)
    return classifier


def _writer(
    classifier: Classifier, version: Version, folder: Path, *, images_per_part: int, share: Shard
) -> PartWriter:
    from cxr.inference.score_store import PartWriter, schema
    from cxr.registry.lineage import lineage
    from cxr.registry.versions import MODEL

    code = lineage(Path())
    metadata = {
        "model": MODEL,
        "model_version": version.number,
        "engine": classifier.engine,
        **{name: version.tags[name] for name in ("weights_sha256", "spec_sha256")},
        **{name: code[name] for name in ("git_commit", "code_sha256", "torch_version")},
    }
    columns = schema(classifier.spec.classes, classifier.measures, metadata)
    return PartWriter(folder, columns, images_per_part=images_per_part, shard=str(share))


def _score_all(
    classifier: Classifier,
    location: Location,
    images: Sequence[ImageFile],
    *,
    scored: Scored,
    writer: PartWriter,
    tally: Tally,
    workers: int,
) -> None:
    """Score `images`, a part at a time; what an error or Ctrl-C finds scored is written, too."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from cxr.inference.batch import score_images

    batches = score_images(classifier, location, images, scored=scored, workers=workers or os.cpu_count() or 1)
    started = time.monotonic()
    with logging_redirect_tqdm(), tqdm(total=len(images), desc="score", unit=" images", disable=None) as bar:
        try:
            with closing(batches):
                for batch in batches:
                    tally.add(batch)
                    bar.update(len(batch.rows) + batch.known)
                    if writer.add(batch.rows):
                        log.info("score: %d of %d images, %d bad", tally.scored + tally.bad, len(images), tally.bad)
        finally:
            writer.close()
            tally.seconds = time.monotonic() - started


def _shard(given: str) -> Shard:
    found = re.fullmatch(r"(\d+)/(\d+)", given)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise ParamsError(f"--shard is number/count such as 2/8, counted from 1, got {given!r}")
    return Shard(number, of)


def main() -> None:
    """Read the command line and score."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("location", metavar="LOCATION", nargs="?", help="folder or s3://bucket/prefix")
    parser.add_argument("--output", type=Path, help="folder of the parts")
    parser.add_argument("--model", default="champion", help="alias or version number (%(default)s)")
    parser.add_argument("--fast", action="store_true", help="by the exported network, within its bounds of torch")
    parser.add_argument("--shard", default="1/1", help="which share of the images, such as 2/8 (%(default)s)")
    parser.add_argument("--tally", type=Path, help="file for what was done, as JSON")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    given = parser.parse_args()

    from cxr.common.files import write_json
    from cxr.common.params import read_params

    params = read_params(given.params)
    wanted: dict[str, Any] = {"location": given.location} if given.location else {}
    section = params.score.model_copy(update=wanted)
    folder, share = given.output or params.paths.scores, _shard(given.shard)
    tally = score(section, folder, model=given.model, shard=share, fast=given.fast)
    if given.tally:
        write_json(given.tally, asdict(tally) | {"images_per_second": tally.images_per_second})
    print(tally)
    print(NOT_CLINICAL)
    if tally.bad and not tally.scored + tally.known:
        raise ImageError(
            f"not one of the {tally.found} images in {tally.location} could be read; the column `error` in "
            f"{tally.folder} says why",
            reason="not an image",
        )


if __name__ == "__main__":
    run_command(main)
