"""Batch scoring: the images of a location in, rows of the score store out (cxr/inference/score_store.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cxr.common.errors import ImageError, ParamsError
from cxr.dataset.shards import shard_of
from cxr.imaging.unattended import UNATTENDED_SECONDS
from cxr.inference.classifier import Classifier
from cxr.inference.decoding.decoders import Decoders
from cxr.inference.image_source import ImageFile, Location
from cxr.inference.pipeline import (
    NOT_OPENED,
    AnsweredImage,
    PreparedImage,
    answered_batches,
    check_size,
    prepare_file,
)
from cxr.inference.score_store import Scored

Row = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """Share `number` of `of` shares of the images, counted from 1; an image's path decides which share holds it."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}of{self.of}"

    def holds(self, path: str) -> bool:
        """Return whether the image at `path` is in this share."""
        return shard_of(path, self.of) == self.number - 1


EVERY_IMAGE = Shard(1, 1)


def read_shard(given: str) -> Shard:
    """Return the share that `--shard` names, such as 2/8.

    Raises:
        ParamsError: it names none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", given)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise ParamsError(f"--shard is number/count such as 2/8, counted from 1, got {given!r}")
    return Shard(number, of)


@dataclass(frozen=True)
class ScoredBatch:
    """A row for each image of a batch, and the number of images left out because their bytes were scored before."""

    rows: list[Row]
    known: int


def score_images(
    classifier: Classifier,
    location: Location,
    images: Sequence[ImageFile],
    *,
    scored: Scored,
    workers: int,
    beside: Callable[[AnsweredImage[ImageFile, None]], Row] = lambda _: {},
) -> Generator[ScoredBatch, None, None]:
    """Score `images` of `location`, a batch at a time and in their order.

    Args:
        classifier: the model.
        location: where the images are read.
        images: of the location, those not known to be scored.
        scored: images whose bytes it holds are left out.
        workers: threads that read, and processes that decode.
        beside: returns more columns of an image's row.

    Raises:
        SourceError: the location no longer answers; what was yielded stands.
    """
    decoders = Decoders(workers, seconds=UNATTENDED_SECONDS)

    def read(image: ImageFile) -> PreparedImage[ImageFile, None]:
        try:
            check_size(image.size_bytes, classifier, name=image.path)  # before it is in memory as a whole
        except ImageError as error:
            return PreparedImage(image, error=error)
        return prepare_file(
            lambda: location.read(image.path),
            classifier,
            decode=decoders.model_input,
            key=image,
            name=image.path,
            is_known=lambda sha256: scored.has_bytes(image.path, sha256),
        )

    with decoders, closing(answered_batches(classifier, images, read, workers=workers)) as batches:
        for batch in batches:
            now = scored.next_time()
            found = [one for one in batch if one.answer is not None or one.image.error is not None]
            rows = [
                _row(one, location=location.name, version=classifier.number, now=now) | beside(one) for one in found
            ]
            yield ScoredBatch(rows, known=len(batch) - len(rows))


def _row(answered: AnsweredImage[ImageFile, None], *, location: str, version: str, now: datetime) -> Row:
    image, error = answered.image, answered.image.error
    was_opened = error is None or error.reason != NOT_OPENED
    return {
        "location": location,
        "path": image.key.path,
        "sha256": image.sha256,
        "size_bytes": image.key.size_bytes,
        "changed": image.key.changed if was_opened else None,
        "scored_at": now,
        "model_version": version,
        "error": None if error is None else str(error),
        **(answered.answer.to_row() if answered.answer is not None else {}),
    }
