"""Finished runs in the tracking store, read-only: tags, parameters and files."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cxr.registry.runs import experiment_id
from cxr.registry.tracking_store import client, store_errors

_PAGE = 500


@dataclass(frozen=True)
class TrackedRun:
    """One run; `params` are dotted names with the text that was recorded, `started_ms` since 1970."""

    run_id: str
    started_ms: int
    tags: dict[str, str]
    params: dict[str, str]


def runs_with_tag_prefix(prefix: str) -> list[TrackedRun]:
    """Return the runs of the experiment that have a tag whose key begins with `prefix`, the oldest first.

    Raises:
        RegistryError: the store does not answer.
    """
    experiment, store = experiment_id(), client()
    found: list[TrackedRun] = []
    token = None
    with store_errors("listing the runs"):
        while True:
            page = store.search_runs([experiment], max_results=_PAGE, page_token=token)
            for run in page:
                if any(key.startswith(prefix) for key in run.data.tags):
                    info, data = run.info, run.data
                    found.append(TrackedRun(info.run_id, int(info.start_time), dict(data.tags), dict(data.params)))
            token = page.token
            if not token:
                return sorted(found, key=lambda run: (run.started_ms, run.run_id))


def read_artifacts(run_id: str, paths: Sequence[str]) -> dict[str, bytes]:
    """Return the contents of those of a run's files that exist: path below its artifacts -> bytes.

    Raises:
        RegistryError: the store does not answer, or a file that it lists cannot be read.
    """
    store = client()
    with store_errors(f"reading files of run {run_id}"), tempfile.TemporaryDirectory() as folder:
        folders = sorted({str(PurePosixPath(path).parent) for path in paths})
        there = {file.path for name in folders for file in store.list_artifacts(run_id, name)}
        return {
            path: Path(store.download_artifacts(run_id, path, folder)).read_bytes() for path in paths if path in there
        }
