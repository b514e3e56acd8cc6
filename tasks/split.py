"""Decide which films train, validate and test.

Reads   data/raw/manifest.parquet, lookalikes.csv, ingest.json
Writes  data/split/splits.csv   image_id, split, fold, label, patient_id: a row for every film of the manifest
        data/split/split.json   counts, patients, what leaks, and the digest of the test set

Protocols (split.protocol): paper (quotas, random by image, leaks patients on purpose), patient (the default),
official (the set's own test part), cv (folds).
Run     python -m tasks.split
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from cxr.command import run_step

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from cxr.params import Paths, SplitParams

log = logging.getLogger("cxr.split")


def split(params: SplitParams, paths: Paths) -> None:
    """Assign every film of the manifest to a split, check the result, and only then give it its name."""
    from cxr.files import read_json, whole_folder, write_json
    from cxr.manifest import read_manifest
    from cxr.splits import assign

    manifest = read_manifest(paths.raw)
    look_alikes = read_look_alikes(paths.raw)
    ingested = read_json(_existing(paths.raw / "ingest.json"))
    table = assign(manifest, look_alikes, params)
    with whole_folder(paths.split) as folder:
        table.to_csv(folder / "splits.csv", index=False)
        write_json(folder / "split.json", _summary(table, params, ingested))
    _report(table, params)


def read_look_alikes(raw: Path) -> pd.DataFrame:
    """Read the pairs of films that a split must not part."""
    import pandas as pd

    return pd.read_csv(_existing(raw / "lookalikes.csv"), dtype={"image_id_a": str, "image_id_b": str})


def _existing(path: Path) -> Path:
    from cxr.errors import DataError

    if not path.is_file():
        raise DataError(f"{path} is missing; run `python -m tasks.ingest` to make it")
    return path


def _summary(table: pd.DataFrame, params: SplitParams, ingested: dict[str, Any]) -> dict[str, Any]:
    from cxr.labels import CLASSES
    from cxr.splits import SPLITS, count_films, crossing, leakage, test_set_sha256

    return {
        "protocol": params.protocol,
        "task": params.task,
        "classes": list(CLASSES[params.task]),
        "seed": params.seed,
        "fold": params.fold if params.protocol == "cv" else -1,
        "folds": params.folds if params.protocol == "cv" else 0,
        "counts": count_films(table, params),
        "patients": {name: int(table.loc[table["split"] == name, "patient_id"].nunique()) for name in SPLITS},
        "patients_crossing": crossing(table).patients,
        "leakage": leakage(table, params),
        "manifest_sha256": ingested["manifest_sha256"],
        "test_set_sha256": test_set_sha256(table),
        "synthetic": ingested["synthetic"],
    }


def _report(table: pd.DataFrame, params: SplitParams) -> None:
    from cxr.splits import count_films, leakage

    for name, films in count_films(table, params).items():
        each = ", ".join(f"{n} {label}" for label, n in films.items())
        log.info("split %-10s %5d films: %s", name, sum(films.values()), each or "none")
    log.info("%s", leakage(table, params))


if __name__ == "__main__":
    run_step(split)
