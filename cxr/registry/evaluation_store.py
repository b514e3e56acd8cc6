"""What a version's evaluations, external tests and training left in the tracking store, found by the version's tags.

`evaluation_artifacts`, `evaluation_artifacts_sha256`          of the evaluation it was registered with
`evaluation_artifacts.<t>`, `evaluation_artifacts_sha256.<t>`  of a later one; <t> begins that test set's digest
`external.<s>`, `external_sha256.<s>`                          of tasks.external; <s> begins the digest of the set. A
                                                               later test of the same set takes its place
`training_images`, `training_images_sha256`                    the images and patients it was trained and tuned on
`training_thumbnails`, `training_thumbnails_sha256`            thumbnails of the same images in the same order

A location is `<run>/<path>` below that run's artifacts; the SHA-256 is what the files must have, of an external test
what its external.json must have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.common.files import read_json, sha256_of
from cxr.dataset.inspect import THUMBNAIL_SIDE_PX
from cxr.registry import runs, tracking_store, versions
from cxr.registry.evaluation_artifacts import EvaluationArtifacts, evaluation_digest, read_evaluation
from cxr.registry.stored_names import (
    EVALUATION_TAG,
    EXTERNAL_TAG,
    TRAINING_IMAGES_TAG,
    TRAINING_THUMBNAILS_TAG,
    evaluation_tags,
)
from cxr.registry.versions import Version

EXTERNAL_RESULT = "external.json"


def store_evaluation(run_id: str, files: Sequence[Path], *, test_set_sha256: str = "") -> dict[str, str]:
    """Put the files of one folder, metrics.json and predictions.csv among them, into a run; return the tags.

    Args:
        run_id: the run of the training.
        files: all in one folder. Each evaluation gets a path of its own.
        test_set_sha256: "" for the evaluation that a version is registered with.
    """
    digest = evaluation_digest(files[0].parent)
    path = f"{EVALUATION_TAG}/{digest[:12]}"
    runs.log_files(run_id, files, path)
    location, sha256 = evaluation_tags(test_set_sha256)
    return {location: f"{run_id}/{path}", sha256: digest}


def seen_images(splits: pd.DataFrame) -> pd.DataFrame:
    """Return the training and validation images of splits.csv in the order in which they are recorded."""
    seen = splits.loc[splits["split"].isin(["train", "validation"]), ["image_id", "patient_id"]]
    return seen.sort_values("image_id", ignore_index=True)


def keep_training_images(run_id: str, splits: pd.DataFrame) -> dict[str, str]:
    """Record the training and validation images of splits.csv; return the tags that find them.

    A version is never evaluated on a test set that holds one of them.
    """
    seen = seen_images(splits)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "training_images.csv"
        seen.to_csv(file, index=False, lineterminator="\n")
        return _keep_file(run_id, file, TRAINING_IMAGES_TAG)


def keep_training_thumbnails(run_id: str, batches: Iterable[NDArray[np.uint8]], count: int) -> dict[str, str]:
    """Record the thumbnails of the `count` images of `seen_images`, in batches (B, 32, 32); return their tags."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "training_thumbnails.npy"
        shape = (count, THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX)
        with file.open("wb") as opened:
            np.lib.format.write_array_header_1_0(opened, {"descr": "|u1", "fortran_order": False, "shape": shape})
            opened.writelines(batch.tobytes() for batch in batches)
        return _keep_file(run_id, file, TRAINING_THUMBNAILS_TAG)


def _keep_file(run_id: str, file: Path, tag: str) -> dict[str, str]:
    digest = sha256_of(file)
    folder = f"{tag}/{digest[:12]}"
    runs.log_files(run_id, [file], folder)
    return {tag: f"{run_id}/{folder}/{file.name}", f"{tag}_sha256": digest}


def evaluation_of(version: Version, test_set_sha256: str = "") -> EvaluationArtifacts:
    """Return the evaluation artifacts of a version.

    Args:
        version: which.
        test_set_sha256: prefer the evaluation on this test set, where tasks.reevaluate has made one; else that of the
            registration.
    """
    location, digest = evaluation_tags(test_set_sha256)
    if location not in version.tags:
        location, digest = evaluation_tags()
    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch_stored(version, version.tags.get(location, ""), Path(scratch))
        return read_evaluation(folder, version.tags, sha256=version.tags.get(digest, ""))


def training_images(version: Version) -> pd.DataFrame | None:
    """Return the images a version was trained and tuned on, columns `image_id` and `patient_id`.

    None where that is not known: the version was registered before they were kept, or they are lost or changed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = fetch_stored(version, version.tags.get(TRAINING_IMAGES_TAG, ""), Path(scratch))
        if file is None or sha256_of(file) != version.tags.get(f"{TRAINING_IMAGES_TAG}_sha256"):
            return None
        return pd.read_csv(file, dtype="str", keep_default_na=False)


def training_thumbnails(version: Version) -> NDArray[np.uint8] | None:
    """Return the thumbnails (N, 32, 32) of the N images of `training_images`; None where they are not known."""
    with tempfile.TemporaryDirectory() as scratch:
        file = fetch_stored(version, version.tags.get(TRAINING_THUMBNAILS_TAG, ""), Path(scratch))
        if file is None or sha256_of(file) != version.tags.get(f"{TRAINING_THUMBNAILS_TAG}_sha256"):
            return None
        return np.asarray(np.load(file, allow_pickle=False), np.uint8)


def fetch_stored(version: Version, location: str, target: Path) -> Path | None:
    """Copy `<run>/<path>` of the store into `target`; None where the store has no such file or folder."""
    run_id, _, path = location.partition("/")
    if not runs.run_exists(run_id):
        return None
    client = tracking_store.client()
    with tracking_store.store_errors(f"reading files of version {version.number}"):
        parent = path.rpartition("/")[0]
        if path not in {file.path for file in client.list_artifacts(run_id, parent)}:
            return None
        return Path(client.download_artifacts(run_id, path, str(target)))


def store_external(version: Version, files: Sequence[Path], *, set_sha256: str) -> None:
    """Put the files of one folder, external.json among them, into the version's run, and tag the version."""
    result = next(file for file in files if file.name == EXTERNAL_RESULT)
    digest, which = sha256_of(result), set_sha256[:12]
    folder = f"{EXTERNAL_TAG}/{which}-{digest[:12]}"
    runs.log_files(version.run_id, files, folder)
    tags = {f"{EXTERNAL_TAG}.{which}": f"{version.run_id}/{folder}", f"{EXTERNAL_TAG}_sha256.{which}": digest}
    versions.tag_version(version.number, tags)


def external_results(version: Version) -> dict[str, Mapping[str, Any] | None]:
    """Return the external tests of a version: the set's digest, its first 12 digits -> external.json.

    None in place of a result that is lost or was changed since it was stored.
    """
    prefix = f"{EXTERNAL_TAG}."
    which = sorted(tag.removeprefix(prefix) for tag in version.tags if tag.startswith(prefix))
    with tempfile.TemporaryDirectory() as scratch:
        return {name: _read_external(version, name, Path(scratch) / name) for name in which}


def _read_external(version: Version, which: str, target: Path) -> Mapping[str, Any] | None:
    target.mkdir()
    location = f"{version.tags[f'{EXTERNAL_TAG}.{which}']}/{EXTERNAL_RESULT}"
    file = fetch_stored(version, location, target)
    if file is None or sha256_of(file) != version.tags.get(f"{EXTERNAL_TAG}_sha256.{which}"):
        return None
    return dict(read_json(file))
