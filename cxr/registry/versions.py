"""The model registry: versions of one model, found by number or by the aliases `challenger` and `champion`.

A version is a bundle (weights, spec) with what it comes from as tags; the same weights with the same calibration
are one version, however often they are registered. cxr.registry.registration makes versions, and
cxr.registry.champion.aliases moves the alias `champion`.

Whoever asks for the champion gets the version that the alias is on. Where the audit log says otherwise, one line warns.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.common.errors import RegistryError, WeightsError
from cxr.common.files import atomic_folder, sha256_of
from cxr.common.locks import file_lock
from cxr.registry import audit_log_store, direct_lookup, tracking_store
from cxr.registry.stored_names import CHALLENGER, CHAMPION, MODEL, current_version_tags

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from cxr.models.bundle import ModelSpec
    from cxr.registry.direct_lookup import StoredVersion

__all__ = ["CHALLENGER", "CHAMPION", "MODEL", "Version"]

DRIFT_TAG = "drift_rebuild_until"
"""On a version: a rebuild was started for its scored images up to this time."""
MAX_PIXELS_TAG = "max_pixels"
"""On a version: an image of more pixels is rejected."""
BUNDLE_PATH = "artifacts/bundle"
BUNDLE_FILES = {"weights_sha256": "model.safetensors", "spec_sha256": "model.json"}
_REFERENCE = {"reference_sha256": "reference.safetensors"}
_RUNTIME = {
    "runtime_graph_sha256": "runtime.xml",
    "runtime_weights_sha256": "runtime.weights",
    "runtime_sha256": "runtime.json",
}
OPTIONAL_FILES = (_REFERENCE, _RUNTIME)
"""Groups of files that not every version has; a group counts when its last tag is set, and is complete then."""

log = logging.getLogger("cxr.registry.versions")

_last_warning: dict[str, str] = {}
"""Store -> the last warning about its champion: a service that asks every few seconds warns once."""


@dataclass(frozen=True)
class Version:
    """A registered version; `number` counts from "1", `tags` hold its lineage and verdict."""

    number: str
    run_id: str
    model_id: str
    tags: Mapping[str, str]


def find_version(spec: ModelSpec) -> Version | None:
    """Return the version with the spec's weights, calibration, referral and limit of pixels, None where there is none.

    Nothing else that the spec says can change and leave the weights as they are.
    """
    client = tracking_store.client()
    with tracking_store.store_errors("looking for a version with the same weights"):
        found = client.search_model_versions(f"name = '{MODEL}' and tags.weights_sha256 = '{spec.weights_sha256}'")
    wanted = identity_tags(spec)
    # What a version without the tag means: no referral; and a limit that is not known.
    before = {"refer_below": repr(None), MAX_PIXELS_TAG: wanted[MAX_PIXELS_TAG]}
    same = [version for version in found if wanted.items() <= {**before, **version.tags}.items()]
    return _version(min(same, key=lambda version: int(version.version))) if same else None


def identity_tags(spec: ModelSpec) -> dict[str, str]:
    """Return the tags that tell one model from another."""
    fitted = {name: repr(getattr(spec, name)) for name in ("temperature", "bias", "refer_below")}
    return {"weights_sha256": spec.weights_sha256, **fitted, MAX_PIXELS_TAG: repr(spec.preprocessing.max_pixels)}


def get_version(which: str) -> Version:
    """Return a version by number ("3") or alias ("champion").

    Raises:
        RegistryError: there is none; says how to get one.
    """
    found = look_up(which)
    if found is None:
        raise RegistryError(_missing(which))
    return found


def champion() -> Version | None:
    """Return the champion, None where there is none yet."""
    return look_up(CHAMPION)


def look_up(which: str) -> Version | None:
    """Return a version by number or alias, None where there is none."""
    if (undisputed := direct_lookup.find(which)) is not None:
        if which == CHAMPION:
            _last_warning[tracking_store.tracking_uri()] = ""
        return _version(undisputed)
    client = tracking_store.client()
    number = _champion_number() if which == CHAMPION else which
    with tracking_store.store_errors(f"looking for the version {which}"):
        if not number:
            return None
        if number.isdecimal():
            found = tracking_store.unless_absent(lambda: client.get_model_version(MODEL, number))
        else:
            found = tracking_store.unless_absent(lambda: client.get_model_version_by_alias(MODEL, number))
    return None if found is None else _version(found)


def _champion_number() -> str:
    """Return the version that the alias `champion` is on, "" for none; warn where the audit log contradicts it."""
    stored = audit_log_store.read_log()
    found, store = audit_log_store.contradiction(stored), tracking_store.tracking_uri()
    if found and found != _last_warning.get(store):
        log.warning("%s", found)
    _last_warning[store] = found
    return stored.alias


def _missing(which: str) -> str:
    where = f"{MODEL} in {tracking_store.public_uri()}"
    if which == CHAMPION:
        return (
            f"there is no champion of {where} yet; run `make run` for the whole loop, "
            "or `./run promote` when a challenger is registered"
        )
    if which == CHALLENGER:
        return f"there is no challenger of {where} yet; run `./run register` after training and evaluation"
    return f"there is no version or alias {which!r} of {where}; `./run history` lists what was champion"


def tag_version(number: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    client = tracking_store.client()
    with tracking_store.store_errors(f"tagging version {number}"):
        for key, value in tags.items():
            client.set_model_version_tag(MODEL, number, key, value)


def _version(found: ModelVersion | StoredVersion) -> Version:
    model_id = found.model_id or (found.source or "").removeprefix("models:/")
    tags = current_version_tags(found.tags)
    return Version(number=str(found.version), run_id=found.run_id or "", model_id=model_id, tags=tags)


def has_runtime(version: Version) -> bool:
    """Say whether an exported network was accepted for the version (cxr.inference.openvino.runtime)."""
    return has_files(version, _RUNTIME)


def has_files(version: Version, group: Mapping[str, str]) -> bool:
    """Say whether a version has a group of optional files."""
    return list(group)[-1] in version.tags


def fetch_bundle(version: Version, cache: Path | None = None) -> Path:
    """Return a local folder with the version's bundle, checked against the digests in the registry.

    Args:
        version: which.
        cache: where copies are kept between calls; `mlruns/cache` by default.

    Raises:
        WeightsError: what the store holds is not what was registered; nothing of it is kept.
        RegistryError: the store does not answer or has lost the files.
    """
    folder = (cache or tracking_store.mlruns_folder() / "cache") / f"version-{version.number}-{version.run_id[:8]}"
    with file_lock(folder.with_name(f".{folder.name}.lock")):  # shards of a scoring ask for a new champion at once
        if folder.is_dir() and not _wrong_files(folder, version):
            return folder
        with atomic_folder(folder) as partial, tempfile.TemporaryDirectory() as scratch:
            fetched = _download_bundle(version, Path(scratch))
            _check_fetched(fetched, version)
            for name in _files_of(version).values():  # no others: no digest covers what is left over
                shutil.copy2(fetched / name, partial / name)
    return folder


def _check_fetched(folder: Path, version: Version) -> None:
    advice = "restore the store from its backup, or go back with `./run rollback`"
    if lost := [name for name in _files_of(version).values() if not (folder / name).is_file()]:
        raise RegistryError(
            f"the tracking store {tracking_store.public_uri()} has lost {', '.join(lost)} "
            f"of version {version.number}; {advice}"
        )
    if wrong := _wrong_files(folder, version):
        raise WeightsError(
            f"version {version.number} of {MODEL} has been changed since it was registered: {', '.join(wrong)}; "
            f"it was not loaded; {advice}"
        )


def bundle_fault(version: Version) -> str:
    """Fetch the version's bundle afresh and say what is wrong with it; "" where it is as registered."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            fetch_bundle(version, Path(scratch))
        except (RegistryError, WeightsError) as error:
            return str(error)
    return ""


def _download_bundle(version: Version, target: Path) -> Path:
    client, store = tracking_store.client(), tracking_store.tracking_uri()
    from mlflow.artifacts import download_artifacts

    with tracking_store.store_errors(f"fetching version {version.number}"):
        files = f"{client.get_logged_model(version.model_id).artifact_location}/{BUNDLE_PATH}"
        return Path(download_artifacts(artifact_uri=files, dst_path=str(target), tracking_uri=store))


def _files_of(version: Version) -> dict[str, str]:
    """Return the files that make up the version's bundle by the tag with their digest."""
    files = dict(BUNDLE_FILES)
    for group in OPTIONAL_FILES:
        files |= group if has_files(version, group) else {}
    return files


def _wrong_files(folder: Path, version: Version) -> list[str]:
    return [
        name
        for tag, name in _files_of(version).items()
        if not (folder / name).is_file() or sha256_of(folder / name) != version.tags.get(tag)
    ]
