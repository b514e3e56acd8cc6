"""Prepare every image once and write all of them to one memory-mapped array.

Reads   data/raw (manifest and packed images), reports/validation.json (the gate)
Writes  data/images: images.npy uint8 (N, H, W), index.csv, preprocessing.json

If an image cannot be prepared, the step stops and names it; nothing is written then.
"""

from __future__ import annotations

import logging
import sys

from cxr.common.cli import answer_help, run_step, step_parser

if __name__ == "__main__":
    answer_help(step_parser(sys.modules[__name__]))

from cxr.common.files import atomic_folder
from cxr.common.params import Paths, PreprocessParams
from cxr.dataset.ingest_record import require_passed
from cxr.dataset.manifest import read_manifest
from cxr.dataset.prepare import write_image_array
from cxr.dataset.shards import Shards
from cxr.imaging.preprocess import Preprocessing

log = logging.getLogger("cxr.preprocess")


def preprocess(params: PreprocessParams, paths: Paths) -> None:
    """Write the prepared images of the manifest, in its order.

    Raises:
        DataError: an image is missing or cannot be prepared, or its shard is damaged.
        DecoderError: an image crashes its decoder, or takes too much time or memory.
    """
    preprocessing = Preprocessing(**params.model_dump(exclude={"workers"}))
    manifest = read_manifest(paths.raw, "image_id", "path")
    require_passed(paths.validation, paths.raw)
    shards = Shards(paths.raw / "images")
    with atomic_folder(paths.images) as folder:
        write_image_array(
            folder,
            shards,
            image_ids=manifest["image_id"].tolist(),
            paths=manifest["path"].tolist(),
            preprocessing=preprocessing,
            workers=params.workers,
        )
    size = preprocessing.image_size_px
    log.info("preprocess: %d images of %d x %d px in %s", len(manifest), size, size, paths.images)


if __name__ == "__main__":
    run_step(preprocess)
