"""Answers to every image of a set, kept in parts: a killed run loses at most a part, the next one goes on.

A row is one of the score store (cxr/inference/score_store.py), with two columns beside it: `reason`, of an image that
was not answered, and `thumbnail`, of the prepared image, by which copies of the model's training images are found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd
import pyarrow as pa

from cxr.dataset.inspect import thumbnail_of
from cxr.inference.batch import EVERY_IMAGE, Row, Shard, score_images
from cxr.inference.classifier import Classifier
from cxr.inference.image_source import ImageFile, Location
from cxr.inference.pipeline import AnsweredImage
from cxr.inference.score_store import PartWriter, Scored, read_scores, schema

IMAGES_PER_PART = 128


def answer_images(
    classifier: Classifier,
    location: Location,
    images: Sequence[ImageFile],
    *,
    parts: Path,
    workers: int,
    progress: Callable[[int], object],
    shard: Shard = EVERY_IMAGE,
) -> pd.DataFrame:
    """Return a row an image in the order of `images`.

    Args:
        classifier: the model.
        location: where the images are read.
        images: of the location.
        parts: folder of the parts. Those of another model, engine or state of an image are not used.
        workers: threads that read, and processes that decode.
        progress: called with the number of images that were done.
        shard: the share that `images` are, which names the parts.
    """
    model = hashlib.sha256(f"{classifier.spec!r} {classifier.engine}".encode()).hexdigest()
    folder = parts / model[:16]
    known = Scored(folder, spec_sha256=model, location=location.name, images=images)
    missing = [image for image in images if not known.is_unchanged(image)]
    progress(len(images) - len(missing))
    columns = schema(classifier.spec.classes, classifier.measures, {"spec_sha256": model})
    for name, kind in (("reason", pa.string()), ("thumbnail", pa.binary())):
        columns = columns.append(pa.field(name, kind))
    writer = PartWriter(folder, columns, images_per_part=IMAGES_PER_PART, shard=str(shard))
    unread = Scored(folder, spec_sha256=model, location=location.name, images=())  # a changed file is answered again
    try:
        batches = score_images(classifier, location, missing, scored=unread, workers=workers, beside=_beside)
        with closing(batches):
            for batch in batches:
                writer.add(batch.rows)
                progress(len(batch.rows))
    finally:
        writer.close()
    rows = read_scores(folder)
    listed = {(image.path, image.size_bytes, image.changed) for image in images}
    keys = zip(rows["path"], rows["size_bytes"], rows["changed"], strict=True)
    present = pd.Series([key in listed for key in keys], rows.index, bool)  # not of a file that has changed since
    rows = rows[present | rows["changed"].isna()].drop_duplicates("path", keep="last").set_index("path")
    return rows.loc[[image.path for image in images]].reset_index()


def _beside(answered: AnsweredImage[ImageFile, None]) -> Row:
    image = answered.image
    return {
        "reason": None if image.error is None else image.error.reason,
        "thumbnail": None if image.pixels is None else thumbnail_of(image.pixels).tobytes(),
    }
