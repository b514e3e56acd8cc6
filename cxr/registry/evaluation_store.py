"""What a version's measurements and training left in the tracking store, found by the version's tags.

`evidence`, `evidence_sha256`              of the measurement it was registered with
`evidence.<t>`, `evidence_sha256.<t>`      of a later measurement; <t> is how the digest of that test set begins
`training_images`, `training_images_sha256`  which images, of which patients, it was trained and tuned on

Each says `<run>/<path>` below that run's artifacts, or the SHA-256 that the files must have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cxr.common.files import sha256_of
from cxr.registry import runs, tracking_store
from cxr.registry.evaluation_artifacts import DIGEST_TAG, EvaluationArtifacts, evaluation_digest, read_evaluation
from cxr.registry.versions import Version

_EVIDENCE_TAG = "evidence"
_TRAINING_IMAGES_TAG = "training_images"


def store_evaluation(run_id: str, files: Sequence[Path], *, test_set_sha256: str = "") -> dict[str, str]:
    """Put the files of one folder, metrics.json and predictions.csv among them, into a run; return the tags.

    Args:
        run_id: the run of the training.
        files: all in one folder. They get a place of their own for each measurement.
        test_set_sha256: "" for the measurement that a version is registered with.
    """
    digest = evaluation_digest(files[0].parent)
    path = f"evidence/{digest[:12]}"
    runs.log_files(run_id, files, path)
    location, sha256 = _evidence_tags(test_set_sha256)
    return {location: f"{run_id}/{path}", sha256: digest}


def keep_training_images(run_id: str, splits: pd.DataFrame) -> dict[str, str]:
    """Record which images of splits.csv train and validate; return the tags that find them.

    A later test set must hold none of them, or this model cannot be measured on it.
    """
    seen = splits.loc[splits["split"].isin(["train", "validation"]), ["image_id", "patient_id"]]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "training_images.csv"
        seen.sort_values("image_id").to_csv(file, index=False, lineterminator="\n")
        digest = sha256_of(file)
        folder = f"training_images/{digest[:12]}"
        runs.log_files(run_id, [file], folder)
    return {_TRAINING_IMAGES_TAG: f"{run_id}/{folder}/{file.name}", f"{_TRAINING_IMAGES_TAG}_sha256": digest}


def evaluation_of(version: Version, test_set_sha256: str = "") -> EvaluationArtifacts:
    """Return what speaks for a version.

    Args:
        version: which.
        test_set_sha256: prefer its measurement on this test set, where tasks.reevaluate has made one; else the
            evidence is that of its registration.
    """
    location, digest = _evidence_tags(test_set_sha256)
    if location not in version.tags:
        location, digest = _evidence_tags()
    with tempfile.TemporaryDirectory() as scratch:
        folder = _fetch_stored(version, version.tags.get(location, ""), Path(scratch))
        return read_evaluation(folder, version.tags, sha256=version.tags.get(digest, ""))


def training_images(version: Version) -> pd.DataFrame | None:
    """Return the images a version was trained and tuned on, columns `image_id` and `patient_id`.

    None where that is not known: registered before it was kept, or lost, or changed since.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = _fetch_stored(version, version.tags.get(_TRAINING_IMAGES_TAG, ""), Path(scratch))
        if file is None or sha256_of(file) != version.tags.get(f"{_TRAINING_IMAGES_TAG}_sha256"):
            return None
        return pd.read_csv(file, dtype="str", keep_default_na=False)


def _fetch_stored(version: Version, location: str, target: Path) -> Path | None:
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


def _evidence_tags(test_set_sha256: str = "") -> tuple[str, str]:
    """Return the names of the tags that say where evidence is and what its digest is; "" for the registration's."""
    end = f".{test_set_sha256[:12]}" if test_set_sha256 else ""
    return _EVIDENCE_TAG + end, DIGEST_TAG + end
