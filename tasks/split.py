"""Decide which images train, validate and test.

Reads   data/raw/manifest.parquet, near_duplicates.csv, ingest.json
Writes  data/split/splits.csv   image_id, split, fold, label, patient_id: a row for every image of the manifest
        data/split/split.json   counts, patients, what leaks, and the digest of the test set

Protocols (split.protocol): paper (quotas, random by image, leaks patients on purpose), patient (the default),
official (the set's own test part), cv (folds). split.subsample, train_sources and train_share leave some images out again,
for comparisons at equal numbers, of sources, and for learning curves.

Great Expectations checks what was written before it takes its name: every image once; no patient and no near-duplicates
in two splits (except `paper`); class shares within the tolerance, or the quotas met; no training image of another
source than asked for. A failed check leaves nothing.
Run     python -m tasks.split
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

from cxr.common.cli import run_step

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from cxr.common.params import Paths, SplitParams
    from tasks.quality.expectations import Check, Table

log = logging.getLogger("cxr.split")


def split(params: SplitParams, paths: Paths) -> None:
    """Assign every image of the manifest to a split, check the result, and only then give it its name.

    Raises:
        DataError: an input is missing, or the images cannot be split as asked.
        GateError: what was written fails a check; `paths.split` does not exist then.
    """
    from cxr.common.files import atomic_folder, read_json, write_json
    from cxr.dataset.manifest import read_manifest
    from cxr.dataset.splits import assign

    manifest = read_manifest(paths.raw)
    near_duplicates = read_near_duplicates(paths.raw)
    ingested = read_json(_existing(paths.raw / "ingest.json"))
    shutil.rmtree(paths.split, ignore_errors=True)  # an earlier split must not be taken for one that failed
    table = assign(manifest, near_duplicates, params)
    with atomic_folder(paths.split) as folder:
        table.to_csv(folder / "splits.csv", index=False)
        write_json(folder / "split.json", _summary(table, params, ingested))
        check_split(folder, manifest, near_duplicates, params)
    _report(table, params)


def check_split(folder: Path, manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams) -> None:
    """Check `splits.csv` in `folder` against the manifest, as a reader would who does not trust its writer.

    Raises:
        GateError: a check failed; the table of failures has been logged.
    """
    import pandas as pd

    from tasks.quality.expectations import check_tables, enforce

    table = pd.read_csv(folder / "splits.csv", dtype={"image_id": str, "patient_id": str})
    images = _images(table, manifest, near_duplicates, params)
    tables = [images, _class_counts(table, manifest, near_duplicates, params)]
    outcomes = check_tables(tables, suite="after-split", notes=f"Protocol {params.protocol}, task {params.task}.")
    enforce(outcomes, gate="after split", hint="nothing was written; see split in params.yaml, or report a defect")


def _images(table: pd.DataFrame, manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams) -> Table:
    from cxr.dataset.splits import SPLITS
    from cxr.dataset.subsample import UNUSED
    from tasks.quality.expectations import Check, Table

    rows = manifest[["image_id", "source"]].merge(table, on="image_id", how="outer", indicator=True)
    how = rows["_merge"].astype(str).map({"both": "once", "left_only": "never", "right_only": "not in the manifest"})
    rows["assigned"] = how.mask(rows["image_id"].duplicated(keep=False), "twice")
    rows["split"] = rows["split"].fillna("none")
    used = rows[rows["split"] != UNUSED]
    rows["splits_of_patient"] = rows["patient_id"].map(used.groupby("patient_id")["split"].nunique()).fillna(0)
    rows["parted_from"] = rows["image_id"].map(_parted(used, near_duplicates))
    rows["trains"] = rows["source"].where(rows["split"] == "train")
    once = Check("image_assigned_once", "ColumnValuesToBeInSet", {"column": "assigned", "value_set": ["once"]}, "once")
    names = [*SPLITS, UNUSED]
    known = Check("split_known", "ColumnValuesToBeInSet", {"column": "split", "value_set": names}, ", ".join(names))
    crossing = {"column": "splits_of_patient", "max_value": 1}
    grouped = (
        Check("no_patient_crosses", "ColumnValuesToBeBetween", crossing, "a patient in at most 1 split"),
        Check(
            "no_near_duplicates_parted",
            "ColumnValuesToBeNull",
            {"column": "parted_from"},
            "near-duplicates in one split",
        ),
    )
    checks: tuple[Check, ...] = (once, known) if params.protocol == "paper" else (once, known, *grouped)
    if params.train_sources:
        asked = {"column": "trains", "value_set": params.train_sources}
        checks += (Check("train_sources", "ColumnValuesToBeInSet", asked, ", ".join(params.train_sources)),)
    return Table("images", rows.drop(columns="_merge"), ("image_id", "patient_id", "split"), checks)


def _parted(used: pd.DataFrame, near_duplicates: pd.DataFrame) -> dict[str, str]:
    """Return the images whose near-duplicate is in another split: image_id -> its near-duplicate."""
    split_of = dict(zip(used["image_id"], used["split"], strict=True))
    pairs = zip(near_duplicates["image_id_a"], near_duplicates["image_id_b"], strict=True)
    return {a: b for a, b in pairs if a in split_of and b in split_of and split_of[a] != split_of[b]}


def _class_counts(
    table: pd.DataFrame, manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams
) -> Table:
    """Return a row for each split and class: its images, and the quota or the share that it should have.

    Where `train_sources` leaves images out, how many are left to train is up to the sources: no row for `train`.
    """
    import pandas as pd

    from cxr.common.classes import CLASSES
    from cxr.dataset.splits import SPLITS, target_shares
    from cxr.dataset.subsample import has_quotas
    from tasks.quality.expectations import Table

    images = table.groupby(["split", "label"]).size().to_dict()
    names = list(SPLITS if has_quotas(params) else target_shares(params))
    if params.train_sources:
        names.remove("train")
    rows = pd.DataFrame(
        [
            {"split": name, "label": label, "images": images.get((name, label), 0)}
            for name in names
            for label in CLASSES[params.task]
        ]
    )
    check = _quota_check(rows, params) if has_quotas(params) else _share_check(rows, manifest, near_duplicates, params)
    return Table("classes", rows, ("split", "label", "images"), (check,))


def _quota_check(rows: pd.DataFrame, params: SplitParams) -> Check:
    """Add the column `quota` and return the check on it."""
    from cxr.dataset.subsample import kept_of, quotas_of
    from tasks.quality.expectations import Check

    quotas = quotas_of(params)
    quotas["train"] = {label: kept_of(quota, params.train_share) for label, quota in quotas["train"].items()}
    rows["quota"] = [quotas[name][label] for name, label in zip(rows["split"], rows["label"], strict=True)]
    equal = {"column_A": "images", "column_B": "quota"}
    return Check("quotas_met", "ColumnPairValuesToBeEqual", equal, "images of each split and class = its quota")


def _share_check(
    rows: pd.DataFrame, manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams
) -> Check:
    """Add the columns `share` and `off_by` and return the check on them."""
    from cxr.dataset.splits import images_to_share, target_shares
    from tasks.quality.expectations import Check

    shares = target_shares(params)
    shares["train"] *= params.train_share
    rows["share"] = rows["images"] / rows["label"].map(images_to_share(manifest, near_duplicates, params))
    rows["off_by"] = rows["share"] - rows["split"].map(shares)
    within = {"column": "off_by", "min_value": -params.share_tolerance, "max_value": params.share_tolerance}
    wanted = ", ".join(f"{name} {shares[name]:.3g}" for name in shares if name in set(rows["split"]))
    return Check("class_shares", "ColumnValuesToBeBetween", within, f"{wanted}, each +-{params.share_tolerance:g}")


def read_near_duplicates(raw: Path) -> pd.DataFrame:
    """Read the pairs of images that a split must not part."""
    import pandas as pd

    return pd.read_csv(_existing(raw / "near_duplicates.csv"), dtype={"image_id_a": str, "image_id_b": str})


def _existing(path: Path) -> Path:
    from cxr.common.errors import DataError

    if not path.is_file():
        raise DataError(f"{path} is missing; run `python -m tasks.ingest` to make it")
    return path


def _summary(table: pd.DataFrame, params: SplitParams, ingested: dict[str, Any]) -> dict[str, Any]:
    from cxr.common.classes import CLASSES
    from cxr.dataset.splits import SPLITS, count_images, crossing, leakage, test_set_sha256
    from cxr.dataset.subsample import has_quotas

    return {
        "protocol": params.protocol,
        "task": params.task,
        "classes": list(CLASSES[params.task]),
        "subsample": "paper_quotas" if has_quotas(params) else "none",
        "train_share": params.train_share,
        "train_sources": params.train_sources,
        "seed": params.seed,
        "fold": params.fold if params.protocol == "cv" else -1,
        "folds": params.folds if params.protocol == "cv" else 0,
        "counts": count_images(table, params),
        "patients": {name: int(table.loc[table["split"] == name, "patient_id"].nunique()) for name in SPLITS},
        "patients_crossing": crossing(table).patients,
        "leakage": leakage(table, params),
        "manifest_sha256": ingested["manifest_sha256"],
        "test_set_sha256": test_set_sha256(table),
        "synthetic": ingested["synthetic"],
    }


def _report(table: pd.DataFrame, params: SplitParams) -> None:
    from cxr.dataset.splits import count_images, leakage

    for name, images in count_images(table, params).items():
        each = ", ".join(f"{n} {label}" for label, n in images.items())
        log.info("split %-10s %5d images: %s", name, sum(images.values()), each or "none")
    log.info("%s", leakage(table, params))


if __name__ == "__main__":
    run_step(split)
