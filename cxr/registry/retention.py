"""Which versions the registry must keep, and how the others go.

A version stays while an alias is on it or the audit log names it: champions, and all that a rollback can go back to. A
version that goes loses its files, its entry in the registry and its logged model. Its run stays, with metrics and the
evaluation, which are small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.common.errors import RegistryError
from cxr.common.files import sha256_of
from cxr.registry import runs, tracking_store
from cxr.registry.champion import aliases
from cxr.registry.stored_names import MODEL, SIZE_TAG
from cxr.registry.versions import get_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DATA_LOCK_TAG = "data_lock"
"""`<run>/<path>` of the dvc.lock that a version was registered with; `data_lock_sha256` is what it must have."""


@dataclass(frozen=True)
class StoredVersion:
    """A registered version: when it was made, in seconds since 1970, the bytes of its files, and why it must stay.

    `needed_as` is "" where neither an alias nor the audit log names it. `data_lock` is where its dvc.lock lies and
    `data_lock_sha256` what that must have; both are "" where none was recorded.
    """

    number: str
    created_s: float
    size_bytes: int
    needed_as: str
    data_lock: str = ""
    data_lock_sha256: str = ""


def keep_data_lock(run_id: str, lock: Path) -> dict[str, str]:
    """Record dvc.lock, which names a version's data in DVC's cache, with its run; return the tags that find it."""
    if not lock.is_file():
        return {}
    digest = sha256_of(lock)
    folder = f"data_lock/{digest[:12]}"
    runs.log_files(run_id, [lock], folder)
    return {DATA_LOCK_TAG: f"{run_id}/{folder}/{lock.name}", f"{DATA_LOCK_TAG}_sha256": digest}


def fetch_data_locks(wanted: Sequence[StoredVersion], target: Path) -> dict[str, Path]:
    """Copy the dvc.lock of versions below `target`; return version -> file, without those that are lost or changed.

    The store is asked once for many runs: each of a thousand would take a second of a minute.

    Raises:
        RegistryError: the store does not answer.
    """
    run_of = {version.number: version.data_lock.partition("/")[0] for version in wanted if version.data_lock}
    roots = runs.artifact_roots(set(run_of.values()))
    found = {}
    for version in wanted:
        if root := roots.get(run_of.get(version.number, "")):
            path = version.data_lock.partition("/")[2]
            file = tracking_store.fetch_file(root, path, target)
            if file and sha256_of(file) == version.data_lock_sha256:
                found[version.number] = file
    return found


def stored_versions() -> list[StoredVersion]:
    """Return every version, the newest first.

    Raises:
        RegistryError: the store does not answer, or the audit log is damaged, so that it does not say what must stay.
    """
    if problems := aliases.problems():
        raise RegistryError(f"the audit log does not say which versions must stay: {'; '.join(problems)}")
    needed, client = _needed(), tracking_store.client()
    with tracking_store.store_errors("listing the versions"):
        found = client.search_model_versions(f"name = '{MODEL}'", max_results=10_000)
        return [
            StoredVersion(
                number=str(one.version),
                created_s=one.creation_timestamp / 1000,
                size_bytes=_size_of(client, one),
                needed_as=needed.get(str(one.version), ""),
                data_lock=one.tags.get(DATA_LOCK_TAG, ""),
                data_lock_sha256=one.tags.get(f"{DATA_LOCK_TAG}_sha256", ""),
            )
            for one in sorted(found, key=lambda one: int(one.version), reverse=True)
        ]


def remove_version(number: str) -> None:
    """Remove a version with its files, whatever of them is still there.

    Raises:
        RegistryError: something needs it by now; nothing was removed. Or the store does not answer: run it again.
    """
    if needed := _needed().get(number):
        raise RegistryError(f"version {number} is now needed as {needed}; it was not removed")
    version, client = get_version(number), tracking_store.client()
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tracking_store.store_errors(f"removing version {number}"), tracking_store.named_to_mlflow():
        # None where somebody has deleted it in MLflow, or has registered files of a run by hand: those stay there.
        logged = tracking_store.unless_absent(lambda: client.get_logged_model(version.model_id))
        if logged is not None:
            # The files first: the version, by which another try finds them, is there until they are gone.
            get_artifact_repository(logged.artifact_location).delete_artifacts()  # type: ignore[no-untyped-call]
        client.delete_model_version(MODEL, number)
        if logged is not None:
            client.delete_logged_model(version.model_id)


def _needed() -> Mapping[str, str]:
    """Return version -> why it must stay: aliases, and every version that the audit log names."""
    client = tracking_store.client()
    with tracking_store.store_errors("reading the aliases"):
        model = tracking_store.unless_absent(lambda: client.get_registered_model(MODEL))
    named = {number: "champion before" for move in aliases.history() for number in (move.before, move.after)}
    return named | {str(number): str(alias) for alias, number in sorted((model.aliases if model else {}).items())}


def _size_of(client: MlflowClient, version: ModelVersion) -> int:
    """Return the bytes of a version's files; asks for every folder of a version that an earlier release registered."""
    if recorded := version.tags.get(SIZE_TAG):
        return int(recorded)
    return sum(_file_sizes(client, version.model_id or ""))


def _file_sizes(client: MlflowClient, model_id: str, folder: str | None = None) -> Iterator[int]:
    """Yield the sizes of a logged model's files."""
    for entry in client.list_logged_model_artifacts(model_id, folder) if model_id else []:
        if entry.is_dir:
            yield from _file_sizes(client, model_id, entry.path)
        else:
            yield entry.file_size or 0
