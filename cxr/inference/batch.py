"""Images in, scored rows out, in bounded memory: threads read and decode the next images while the network computes.

At any moment a few batches of prepared images are in memory and, for each thread, the bytes of one image, however many
images there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ImageError
from cxr.imaging.decode import max_file_bytes
from cxr.inference.classifier import Answer, Classifier
from cxr.inference.image_source import ImageFile, Location
from cxr.inference.prefetch import prepared_batches
from cxr.inference.score_store import Scored
from cxr.models.forward import BATCH_SIZE

Row = dict[str, Any]


@dataclass(frozen=True)
class ScoredBatch:
    """A row for each of some images, and how many of them turned out to be scored before, once they were read."""

    rows: list[Row]
    known: int


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An image as it was read: an image, an error, or neither where its bytes were scored before."""

    file: ImageFile
    sha256: str | None = None
    image: NDArray[np.uint8] | None = None
    error: str | None = None
    opened: bool = True


def score_images(
    classifier: Classifier, location: Location, images: Sequence[ImageFile], *, scored: Scored, workers: int
) -> Generator[ScoredBatch, None, None]:
    """Score `images` of `location`, a batch at a time and in their order.

    Args:
        classifier: the model.
        location: where the images are read.
        images: of the location, those that are not known to be scored.
        scored: to leave out images whose bytes were scored before.
        workers: threads that read and decode.

    Raises:
        SourceError: the location no longer answers; what was yielded stands.
    """
    prepared = prepared_batches(
        images, partial(_prepare, location, classifier, scored), batch_size=BATCH_SIZE, workers=workers
    )
    with closing(prepared) as batches:
        for batch in batches:
            yield _score(classifier, location, batch)


def _prepare(location: Location, classifier: Classifier, scored: Scored, image: ImageFile) -> _Prepared:
    limit = max_file_bytes(classifier.spec.preprocessing.max_pixels)
    if image.size_bytes > limit:  # not even read: it would be in memory as a whole
        return _Prepared(
            image, error=f"{image.path} has {image.size_bytes} bytes, an image that may be read {limit} at most"
        )
    try:
        data = location.read(image.path)
    except FileNotFoundError:
        return _Prepared(image, error=f"{image.path} went away while images were scored", opened=False)
    except OSError as error:
        return _Prepared(image, error=f"{image.path} cannot be opened: {error.strerror or error}", opened=False)
    sha256 = hashlib.sha256(data).hexdigest()
    if scored.has_bytes(image.path, sha256):
        return _Prepared(image, sha256)
    try:
        return _Prepared(image, sha256, classifier.read(data, name=image.path))
    except ImageError as error:
        return _Prepared(image, sha256, error=str(error))


def _score(classifier: Classifier, location: Location, batch: list[_Prepared]) -> ScoredBatch:
    images = [one.image for one in batch if one.image is not None]
    answers = iter(classifier.answer(np.stack(images)) if images else ())
    now = datetime.now(UTC)
    rows = []
    for one in batch:
        if one.image is None and one.error is None:
            continue
        rows.append(
            {
                "location": location.name,
                "path": one.file.path,
                "sha256": one.sha256,
                "size_bytes": one.file.size_bytes,
                "changed": one.file.changed if one.opened else None,
                "scored_at": now,
                "model_version": classifier.number,
                "error": one.error,
                **(_columns(next(answers)) if one.image is not None else {}),
            }
        )
    return ScoredBatch(rows, known=len(batch) - len(rows))


def _columns(answer: Answer) -> Row:
    return {
        "predicted_class": answer.predicted_class,
        **{f"p_{name}": share for name, share in answer.probabilities.items()},
        "confidence": answer.confidence,
        "refer": answer.refer,
        "warning": answer.warning,
        **{f"m_{name}": value for name, value in answer.measures.items()},
    }
