"""Assign images to training, validation and test.

Reads   data/raw/manifest.parquet, duplicates.csv, near_duplicates.csv, ingest.json, reports/validation.json (the gate)
Writes  data/split/splits.csv   image_id, split, fold, label, patient_id: one row for every image of the manifest
        data/split/split.json   counts, patients, leakage, and the digest of the test set

Protocols (split.protocol): paper (quotas, random by image, patients leak on purpose), patient (the default), official
(the set's own test part), cv (folds), block (one block of the order of acquisition). split.subsample, train_sources and
train_share leave some images out again, for comparisons at equal numbers, by source, and for learning curves.

Great Expectations checks the split before it is written: every image once; no patient and no near-duplicates in two
splits (except `paper`); no training image between those of the test block; class shares within the tolerance, or quotas
met; training images of the chosen sources only. If a check fails, nothing is written.
"""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cxr.common.cli import answer_help, run_step, step_parser

if __name__ == "__main__":
    answer_help(step_parser(sys.modules[__name__]))

import pandas as pd

from cxr.common.artifacts import read_csv
from cxr.common.classes import CLASSES
from cxr.common.files import atomic_folder, sha256_of, unlinked, write_json
from cxr.common.params import Paths, SplitParams
from cxr.dataset.ingest_record import (
    DUPLICATES_FILE,
    NEAR_DUPLICATES_FILE,
    IngestRecord,
    read_ingest_record,
    read_ingest_table,
    read_recorded_manifest,
    require_passed,
)
from cxr.dataset.manifest import SPLIT_RECORD_FILE, SPLITS_COLUMNS, SPLITS_FILE, sha256_of_test_set
from cxr.dataset.split_summary import (
    count_images,
    images_without_order,
    leakage,
    patient_overlap,
    published_set,
    withheld,
)
from cxr.dataset.splits import SPLITS, assign, images_to_share, target_shares
from cxr.dataset.subsample import UNUSED, has_quotas, kept_count, quotas_of
from tasks.quality.expectations import Check, Table, check_tables, enforce

log = logging.getLogger("cxr.split")


def split(params: SplitParams, paths: Paths) -> None:
    """Assign every image of the manifest to a split, check the result, and write it.

    Raises:
        DataError: an input is missing, or the images cannot be split with these parameters.
        GateError: a check failed; `paths.split` does not exist then.
    """
    ingested = read_ingest_record(paths.raw)
    manifest = read_recorded_manifest(paths.raw, ingested)
    require_passed(paths.validation, paths.raw)
    near_duplicates = read_ingest_table(paths.raw, NEAR_DUPLICATES_FILE, ingested)
    duplicates = read_ingest_table(paths.raw, DUPLICATES_FILE, ingested)
    shutil.rmtree(unlinked(paths.split), ignore_errors=True)  # after a failed check there must be no earlier split
    table = assign(manifest, near_duplicates, params)
    with atomic_folder(paths.split) as folder:
        table.to_csv(folder / SPLITS_FILE, index=False)
        summary = _summary(table, params, ingested) | {"splits_sha256": sha256_of(folder / SPLITS_FILE)}
        summary |= _around_test(table, manifest, near_duplicates, duplicates, params, ingested)
        write_json(folder / SPLIT_RECORD_FILE, summary)
        check_split(folder, manifest, near_duplicates, params)
    _report(summary)


def check_split(folder: Path, manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams) -> None:
    """Check `splits.csv` in `folder` against the manifest, independently of the code that wrote it.

    Raises:
        GateError: a check failed; the table of failures has been logged.
    """
    table = read_csv(folder / SPLITS_FILE, SPLITS_COLUMNS, stage="split")
    images = _images(table, manifest, near_duplicates, params)
    tables = [images, _class_counts(table, manifest, near_duplicates, params)]
    outcomes = check_tables(tables, suite="after-split", notes=f"Protocol {params.protocol}, task {params.task}.")
    enforce(
        outcomes,
        gate="after split",
        hint="nothing was written; correct the section split of params.yaml, or report a defect",
    )


def _images(table: pd.DataFrame, manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams) -> Table:
    columns = ["image_id", "source", "acquisition_series", "acquisition_number"]
    rows = manifest[columns].merge(table, on="image_id", how="outer", indicator=True)
    how = rows["_merge"].astype(str).map({"both": "once", "left_only": "never", "right_only": "not in the manifest"})
    rows["assigned"] = how.mask(rows["image_id"].duplicated(keep=False), "twice")
    rows["split"] = rows["split"].fillna("none")
    used = rows[rows["split"] != UNUSED]
    rows["splits_of_patient"] = rows["patient_id"].map(used.groupby("patient_id")["split"].nunique()).fillna(0)
    rows["near_duplicate_elsewhere"] = rows["image_id"].map(_separated(used, near_duplicates))
    rows["trains"] = rows["source"].where(rows["split"] == "train")
    once = Check("image_assigned_once", "ColumnValuesToBeInSet", {"column": "assigned", "value_set": ["once"]}, "once")
    names = [*SPLITS, UNUSED]
    known = Check("split_known", "ColumnValuesToBeInSet", {"column": "split", "value_set": names}, ", ".join(names))
    at_most_one = {"column": "splits_of_patient", "max_value": 1}
    grouped = (
        Check("patient_in_one_split", "ColumnValuesToBeBetween", at_most_one, "each patient in at most 1 split"),
        Check(
            "near_duplicates_in_one_split",
            "ColumnValuesToBeNull",
            {"column": "near_duplicate_elsewhere"},
            "near-duplicates in the same split",
        ),
    )
    checks: tuple[Check, ...] = (once, known) if params.protocol == "paper" else (once, known, *grouped)
    if params.protocol == "block":
        rows["inside_test_block"] = _inside_test_block(rows)
        outside = {"column": "inside_test_block", "value_set": [False]}
        checks += (Check("test_block_contiguous", "ColumnValuesToBeInSet", outside, "only test images in the block"),)
    if params.train_sources:
        chosen = {"column": "trains", "value_set": params.train_sources}
        checks += (Check("train_sources", "ColumnValuesToBeInSet", chosen, ", ".join(params.train_sources)),)
    return Table("images", rows.drop(columns="_merge"), ("image_id", "patient_id", "split"), checks)


def _inside_test_block(rows: pd.DataFrame) -> pd.Series:
    """Return whether an image for training or validation lies between test images of its series."""
    order = ["source", "acquisition_series"]
    tested = rows[rows["split"] == "test"].groupby(order)["acquisition_number"].agg(["min", "max"])
    block = rows[order].merge(tested, how="left", left_on=order, right_index=True)
    inside = (rows["acquisition_number"] >= block["min"]) & (rows["acquisition_number"] <= block["max"])
    return inside.fillna(False).astype(bool) & rows["split"].isin(["train", "validation"])


def _separated(used: pd.DataFrame, near_duplicates: pd.DataFrame) -> dict[str, str]:
    """Return image_id -> near-duplicate, for near-duplicates in different splits."""
    split_of = dict(zip(used["image_id"], used["split"], strict=True))
    pairs = zip(near_duplicates["image_id_a"], near_duplicates["image_id_b"], strict=True)
    return {a: b for a, b in pairs if a in split_of and b in split_of and split_of[a] != split_of[b]}


def _class_counts(
    table: pd.DataFrame, manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams
) -> Table:
    """Return one row for each split and class: its images, and its quota or target share.

    With `train_sources` there is no row for `train`, because its size depends on the sources; nor with the shares of
    `block`, where it depends on the images without an order.
    """
    images = table.groupby(["split", "label"]).size().to_dict()
    names = list(SPLITS if has_quotas(params) else target_shares(params))
    if params.train_sources or (params.protocol == "block" and not has_quotas(params)):
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
    quotas = quotas_of(params)
    quotas["train"] = {label: kept_count(quota, params.train_share) for label, quota in quotas["train"].items()}
    rows["quota"] = [quotas[name][label] for name, label in zip(rows["split"], rows["label"], strict=True)]
    equal = {"column_A": "images", "column_B": "quota"}
    return Check("quotas_met", "ColumnPairValuesToBeEqual", equal, "images of each split and class = its quota")


def _share_check(
    rows: pd.DataFrame, manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams
) -> Check:
    """Add the columns `share` and `off_by` and return the check on them."""
    shares = target_shares(params)
    shares["train"] *= params.train_share
    rows["share"] = rows["images"] / rows["label"].map(images_to_share(manifest, near_duplicates, params))
    rows["off_by"] = rows["share"] - rows["split"].map(shares)
    within = {"column": "off_by", "min_value": -params.share_tolerance, "max_value": params.share_tolerance}
    targets = ", ".join(f"{name} {shares[name]:.3g}" for name in shares if name in set(rows["split"]))
    return Check("class_shares", "ColumnValuesToBeBetween", within, f"{targets}, each +-{params.share_tolerance:g}")


def _around_test(
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    near_duplicates: pd.DataFrame,
    duplicates: pd.DataFrame,
    params: SplitParams,
    ingested: IngestRecord,
) -> dict[str, Any]:
    """Return what a protocol with a given test set could not use, in numbers and in sentences (`notes`)."""
    if params.protocol not in ("official", "block"):
        return {"notes": []}
    left_out = withheld(table, manifest, near_duplicates, params)
    found: dict[str, Any] = {"withheld": asdict(left_out)}
    if params.protocol == "block":
        unordered = images_without_order(table, manifest)
        text = f"{unordered} images without an order of acquisition were used for training only."
        return {**found, "train_without_order": unordered, "notes": [left_out.sentence, text]}
    source = params.official_source
    published = published_set(table, manifest, duplicates, source=source, published=ingested["published"][source])
    return {**found, "published": asdict(published), "notes": [*published.sentences, left_out.sentence]}


def _summary(table: pd.DataFrame, params: SplitParams, ingested: IngestRecord) -> dict[str, Any]:
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
        "block": params.block if params.protocol == "block" else -1,
        "blocks": params.blocks,
        "counts": count_images(table, params),
        "patients": {name: int(table.loc[table["split"] == name, "patient_id"].nunique()) for name in SPLITS},
        "overlapping_patients": patient_overlap(table).overlapping,
        "leakage": leakage(table, params),
        "manifest_sha256": ingested["manifest_sha256"],
        "test_set_sha256": sha256_of_test_set(table),
        "synthetic": ingested["synthetic"],
    }


def _report(summary: dict[str, Any]) -> None:
    for name, images in summary["counts"].items():
        each = ", ".join(f"{n} {label}" for label, n in images.items())
        log.info("split %-10s %5d images: %s", name, sum(images.values()), each or "none")
    for sentence in (summary["leakage"], *summary["notes"]):
        log.info("%s", sentence)


if __name__ == "__main__":
    run_step(split)
