"""External tests of a version in the tracking store: what tasks.external found on sets that it had never seen.

`external.<s>`, `external_sha256.<s>`   where the files of a test are, and the SHA-256 of its external.json; <s> begins
                                        the digest of the set. A later test of the same set takes its place
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxr.common.files import read_json, sha256_of
from cxr.registry import runs, versions
from cxr.registry.evaluation_store import fetch_stored
from cxr.registry.stored_names import EXTERNAL_TAG
from cxr.registry.versions import Version

RESULT_FILE = "external.json"


def store_external(version: Version, files: Sequence[Path], *, set_sha256: str) -> None:
    """Put the files of one folder, external.json among them, into the version's run, and tag the version."""
    result = next(file for file in files if file.name == RESULT_FILE)
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
        return {name: _read(version, name, Path(scratch) / name) for name in which}


def _read(version: Version, which: str, target: Path) -> Mapping[str, Any] | None:
    target.mkdir()
    location = f"{version.tags[f'{EXTERNAL_TAG}.{which}']}/{RESULT_FILE}"
    file = fetch_stored(version, location, target)
    if file is None or sha256_of(file) != version.tags.get(f"{EXTERNAL_TAG}_sha256.{which}"):
        return None
    return dict(read_json(file))
