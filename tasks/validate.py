"""The gate after ingest: is what came in fit to train on?

Reads   data/raw/manifest.parquet, statistics.parquet, ingest.json and every image (its digest)
Writes  reports/validation.json    each check with what was found and what was expected
        reports/data_docs/         the same as pages of Great Expectations' Data Docs, readable without a network

A failed check of severity "error" stops the pipeline with a table of the first offending rows; the Data Docs are then
in reports/data_docs_failed/. The names in validate.warn_only report and let the run go on.
Run     python -m tasks.validate
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

from cxr.common.cli import run_step
from cxr.common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from cxr.common.params import Paths, ValidateParams
    from cxr.dataset.shards import Shards
    from tasks.quality.expectations import Outcome, Table

log = logging.getLogger("cxr.validate")


def validate(params: ValidateParams, paths: Paths) -> None:
    """Check the manifest, the images and their grey levels; write the findings.

    Raises:
        DataError: a file of ingest is missing, or a shard of images is damaged.
        GateError: a check of severity "error" failed; neither of the two outputs exists then.
        ParamsError: `warn_only` names a check that does not exist.
    """
    from cxr.common.files import atomic_folder, write_json
    from tasks.quality.expectations import enforce

    failed_docs = paths.data_docs.with_name(f"{paths.data_docs.name}_failed")
    for earlier in (paths.data_docs, failed_docs):
        shutil.rmtree(earlier, ignore_errors=True)
    paths.validation.unlink(missing_ok=True)

    with atomic_folder(failed_docs) as docs:
        outcomes = _check(params, paths.raw, docs)
    enforce(
        outcomes,
        gate="after ingest",
        hint=f"see {failed_docs / 'index.html'}, then correct the sources or the thresholds in params.yaml: validate",
    )
    failed_docs.replace(paths.data_docs)
    write_json(paths.validation, {"passed": True, "expectations": [outcome.as_json() for outcome in outcomes]})
    log.info("Data Docs: %s", paths.data_docs / "index.html")


def _check(params: ValidateParams, raw: Path, docs: Path) -> list[Outcome]:
    """Check the schema first: nothing else can be asked of a manifest without its columns."""
    import pandas as pd

    from cxr.common.files import read_json
    from cxr.dataset.manifest import STATISTICS_COLUMNS, read_table
    from cxr.dataset.shards import Shards
    from tasks.quality.data_docs import make_self_contained
    from tasks.quality.expectations import check_tables

    for name in ("manifest.parquet", "ingest.json"):
        if not (raw / name).is_file():
            raise DataError(f"{raw / name} is missing; run `python -m tasks.ingest` to make it")
    manifest, ingested = pd.read_parquet(raw / "manifest.parquet"), read_json(raw / "ingest.json")
    notes = "SYNTHETIC images: drawn by a program, no patients." if ingested["synthetic"] else "Images of patients."
    suite = "after-ingest-of-synthetic-images" if ingested["synthetic"] else "after-ingest"
    schema = _schema(manifest)
    tables, warn_only = [schema], []
    if (schema.rows["found"] == schema.rows["expected"]).all():
        images = manifest.merge(read_table(raw / "statistics.parquet", STATISTICS_COLUMNS), on="image_id", how="left")
        images["aspect_ratio"] = images["width"] / images["height"]
        images["file"] = _file_states(images, Shards(raw / "images"))
        tables += [_images(images, params), _classes(images, params), _sources(images, ingested, params)]
        warn_only = params.warn_only
    outcomes = check_tables(tables, suite=suite, notes=notes, warn_only=warn_only, docs=docs)
    make_self_contained(docs, outcomes, title="Data after ingest", notes=notes)
    return outcomes


def _schema(manifest: pd.DataFrame) -> Table:
    """Return a row for each column that the manifest should have or has."""
    import pandas as pd

    from cxr.dataset.manifest import MANIFEST_COLUMNS
    from tasks.quality.expectations import Check, Table

    found = {str(name): str(dtype) for name, dtype in manifest.dtypes.items()}
    names = list(dict.fromkeys([*MANIFEST_COLUMNS, *found]))
    rows = pd.DataFrame(
        {
            "column": names,
            "expected": [MANIFEST_COLUMNS.get(name, "absent") for name in names],
            "found": [found.get(name, "absent") for name in names],
        }
    )
    equal = {"column_A": "found", "column_B": "expected"}
    check = Check("schema", "ColumnPairValuesToBeEqual", equal, "the columns and dtypes of cxr/dataset/manifest.py")
    return Table("schema", rows, ("column",), (check,))


def _images(images: pd.DataFrame, params: ValidateParams) -> Table:
    from cxr.common.classes import LABELS
    from tasks.quality.expectations import Check, Table

    def between(name: str, column: str, limits: Sequence[float], unit: str = "") -> Check:
        low, high = limits
        arguments = {"column": column, "min_value": low, "max_value": high}
        return Check(name, "ColumnValuesToBeBetween", arguments, f"{low:g} to {high:g}{unit}")

    def column(name: str, kind: str, expected: str, column: str, **arguments: Any) -> Check:
        return Check(name, kind, {"column": column, **arguments}, expected)

    least = params.min_grey_std
    checks = (
        column("image_id_unique", "ColumnValuesToBeUnique", "each image_id once", "image_id"),
        column("sha256_unique", "ColumnValuesToBeUnique", "each file once", "sha256"),
        column("label_known", "ColumnValuesToBeInSet", ", ".join(LABELS), "label", value_set=list(LABELS)),
        column("patient_id_present", "ColumnValuesToNotBeNull", "a patient_id", "patient_id"),
        column("file_as_recorded", "ColumnValuesToBeInSet", "the recorded SHA-256", "file", value_set=["as recorded"]),
        between("width_px", "width", params.side_px, " px"),
        between("height_px", "height", params.side_px, " px"),
        between("aspect_ratio", "aspect_ratio", params.aspect_ratio),
        column("statistics_present", "ColumnValuesToNotBeNull", "grey levels of each image", "grey_mean"),
        between("grey_mean", "grey_mean", params.grey_mean),
        column("grey_std", "ColumnValuesToBeBetween", f"at least {least:g}", "grey_std", min_value=least),
    )
    images["patient_id"] = images["patient_id"].replace("", None)
    return Table("images", images, ("image_id", "path"), checks)


def _classes(images: pd.DataFrame, params: ValidateParams) -> Table:
    import pandas as pd

    from tasks.quality.expectations import Check, Table

    counts = images["label"].value_counts().to_dict()
    rows = pd.DataFrame(
        [
            {"label": label, "images": counts.get(label, 0), "at_least": n}
            for label, n in params.min_images_per_class.items()
        ],
        columns=["label", "images", "at_least"],
    )
    compared = {"column_A": "images", "column_B": "at_least", "or_equal": True}
    expected = ", ".join(f"{label} {n}" for label, n in params.min_images_per_class.items())
    check = Check("images_per_class", "ColumnPairValuesAToBeGreaterThanB", compared, f"at least {expected}")
    return Table("classes", rows, ("label",), (check,))


def _sources(images: pd.DataFrame, ingested: dict[str, Any], params: ValidateParams) -> Table:
    """Return a row for each source and one for all: the account of its files, and how its grey levels differ."""
    import pandas as pd

    from tasks.quality.expectations import Check, Table

    counts = {"all": ingested, **ingested["sources"]}
    kinds = ["total", "kept", "quarantined", "duplicates"]
    rows = pd.DataFrame([{"source": name, **{kind: count[kind] for kind in kinds}} for name, count in counts.items()])
    in_manifest = {"all": len(images)} | {str(name): n for name, n in images["source"].value_counts().items()}
    rows["accounted_for"] = rows["quarantined"] + rows["duplicates"] + rows["source"].map(in_manifest).fillna(0)
    rows["quarantined_share"] = rows["quarantined"] / rows["total"]
    means = images.groupby("source")["grey_mean"].mean()
    gaps = {name: float((means - mean).abs().max()) for name, mean in means.items()}
    rows["grey_mean"] = rows["source"].map(means)
    rows["grey_mean_gap"] = rows["source"].map(gaps).fillna(0.0)
    most = {"column": "quarantined_share", "max_value": params.max_quarantined_share}
    gap = {"column": "grey_mean_gap", "max_value": params.max_source_grey_mean_gap}
    account = {"column_A": "accounted_for", "column_B": "total"}
    checks = (
        Check(
            "files_accounted_for", "ColumnPairValuesToBeEqual", account, "manifest + quarantined + duplicates = total"
        ),
        Check("quarantined_share", "ColumnValuesToBeBetween", most, f"at most {params.max_quarantined_share:g}"),
        Check("source_grey_mean_gap", "ColumnValuesToBeBetween", gap, f"at most {params.max_source_grey_mean_gap:g}"),
    )
    return Table("sources", rows, ("source", *kinds), checks)


def _file_states(images: pd.DataFrame, shards: Shards) -> list[str]:
    """Compare each image's digest with the recorded one: "as recorded", "missing" or "changed"."""
    import hashlib
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    def state(path: str, sha256: str) -> str:
        if path not in shards:
            return "missing"
        return "as recorded" if hashlib.sha256(shards.read(path)).hexdigest() == sha256 else "changed"

    with ThreadPoolExecutor() as pool:
        states = pool.map(state, images["path"], images["sha256"])
        return list(tqdm(states, total=len(images), desc="validate", unit="image", disable=None))


if __name__ == "__main__":
    run_step(validate)
