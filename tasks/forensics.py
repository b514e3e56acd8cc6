"""Examine the images that ingest kept: order of acquisition, style, labels, copies, persons.

Run it on demand, after ingest and before a model is trained; no stage reads what it writes.

Reads   data/raw; labels-corrected.csv, whose corrections the contact sheet repeats
Writes  reports/forensics, atomically: forensics.json, forensics.html and its figures as SVG (the findings),
        label_audit.csv (all examined images, the most doubted label first), review.html (a contact sheet to relabel
        them by; its button saves labels-corrected.csv, which ingest reads), copies.csv
Caches  features of the images, in the folder `forensics` of paths.checkpoints

forensics.weights names the weights of a frozen network; without them grey thumbnails take its place.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from cxr.common.cli import answer_help, run_step, step_parser

if __name__ == "__main__":
    answer_help(step_parser(sys.modules[__name__]))

import numpy as np
import pandas as pd

from cxr.common.command_params import ForensicsParams
from cxr.common.errors import DataError, ParamsError
from cxr.common.files import atomic_folder, write_json
from cxr.common.params import Paths
from cxr.dataset.corrections import read_corrections
from cxr.dataset.ingest_record import (
    NEAR_DUPLICATES_FILE,
    read_ingest_record,
    read_ingest_table,
    read_recorded_manifest,
)
from cxr.dataset.shards import Shards
from cxr.dataset.splits import patient_groups
from cxr.evaluation.rates import Ints
from cxr.forensics.copies import Copy, find_copies
from cxr.forensics.examine import Settings, SourceExamination, examine_source, to_json
from cxr.forensics.faults import faults_of
from cxr.forensics.features import Extraction, SetFeatures, extract
from cxr.forensics.label_audit import COLUMNS as LABEL_COLUMNS
from cxr.forensics.label_audit import most_doubted_first
from cxr.forensics.page import draw_figures, render_page, render_review
from cxr.forensics.review import doubted_images
from cxr.reporting.drawing import standing_alone

log = logging.getLogger("cxr.forensics")

_OF_A_SIDE = ("image_id", "path", "label")
COPY_COLUMNS = ("correlation", *(f"{name}_{side}" for side in "ab" for name in _OF_A_SIDE), "known")
"""Of copies.csv."""


def forensics(params: ForensicsParams, paths: Paths) -> None:
    """Examine `paths.raw` and write `paths.forensics`.

    Raises:
        DataError: data/raw is missing or damaged, or holds no images; or the labels that a reader corrected cannot be
            read.
        ImageError: an image cannot be decoded.
        ParamsError: a patient that was drawn has more images than may be examined.
        WeightsError: the weights of the frozen network cannot be loaded.
    """
    earlier = read_corrections(paths.corrections)
    record = read_ingest_record(paths.raw)
    manifest = read_recorded_manifest(paths.raw, record)
    if manifest.empty:
        raise DataError(f"{paths.raw}/manifest.parquet lists no images; run `./run dvc repro ingest`")
    groups = patient_groups(manifest, read_ingest_table(paths.raw, NEAR_DUPLICATES_FILE, record))
    rows = _drawn(groups, params.max_images, params.seed)
    if not len(rows):
        raise ParamsError(
            f"forensics.max_images is {params.max_images}, and the patient drawn first has more images than that; "
            f"raise it, at most to the {len(manifest)} images of the set"
        )
    images, groups = manifest.iloc[rows].reset_index(drop=True), groups[rows]
    shards = Shards(paths.raw / "images")
    features, network_name = _extract(shards, images, params, paths.checkpoints / "forensics")
    examined = _examine(images, features, groups, params)
    copies = [
        _pair(images.iloc[[copy.one, copy.other]], copy, groups)
        for copy in find_copies(features.thumbnail, limit=params.copy_correlation)
    ]
    described = {
        "synthetic": record["synthetic"],
        "manifest_sha256": record["manifest_sha256"],
        "images": len(images),
        "images_of_the_set": len(manifest),
        "features": network_name or "32 x 32 grey thumbnails",
    }
    content = _content(examined, copies, params, described)
    tables = [found.labels for found in examined.values() if isinstance(found, SourceExamination)]
    labels = most_doubted_first(pd.concat(tables)) if tables else pd.DataFrame(columns=list(LABEL_COLUMNS))
    with atomic_folder(paths.forensics) as folder:
        _write_findings(folder, content, labels)
        doubted = doubted_images(labels, shards, at_most=params.review_images, max_pixels=params.max_pixels)
        sheet = render_review(doubted, earlier, synthetic=record["synthetic"])
        (folder / "review.html").write_text(sheet, encoding="utf-8")
    _log_summary(content, paths.forensics)


def _write_findings(folder: Path, content: dict[str, Any], labels: pd.DataFrame) -> None:
    write_json(folder / "forensics.json", content)
    drawn = draw_figures(content)
    (folder / "forensics.html").write_text(render_page(content, drawn), encoding="utf-8")
    for source, figures in drawn.items():
        for name, svg in figures.items():
            (folder / f"{source}-{name}.svg").write_text(standing_alone(svg), encoding="utf-8")
    labels.to_csv(folder / "label_audit.csv", index=False, lineterminator="\n")
    pairs = pd.DataFrame(content["copies"]["pairs"], columns=list(COPY_COLUMNS))
    pairs.to_csv(folder / "copies.csv", index=False, lineterminator="\n")


def _drawn(groups: Ints, at_most: int, seed: int) -> Ints:
    """Return the rows of randomly drawn whole groups with at most `at_most` images in all."""
    if len(groups) <= at_most:
        return np.arange(len(groups))
    names, group = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = order[np.cumsum(np.bincount(group)[order]) <= at_most]
    return np.flatnonzero(np.isin(group, kept))


def _extract(shards: Shards, images: pd.DataFrame, params: ForensicsParams, cache: Path) -> tuple[SetFeatures, str]:
    """Return the features of the images, and the name of the network that computed a part of them."""
    network, name = None, ""
    if params.weights != "none":
        from cxr.forensics.network import frozen_network  # torch takes seconds to import, thumbnails need none

        network, name = frozen_network(params.backbone, params.weights)
    extraction = Extraction(params.max_pixels, network, name, cache, params.workers)
    return extract(shards, images["image_id"].tolist(), images["path"].tolist(), extraction), name


def _examine(
    images: pd.DataFrame, features: SetFeatures, groups: Ints, params: ForensicsParams
) -> dict[str, SourceExamination | str]:
    settings = Settings(
        params.blocks, params.alpha, params.style_limit, params.permutations, params.resamples, params.seed
    )
    found = {}
    for source in sorted(set(images["source"])):
        rows = np.flatnonzero(images["source"] == source)
        found[source] = examine_source(images.iloc[rows], features.where(rows), groups[rows], settings)
    return found


def _content(
    examined: dict[str, SourceExamination | str],
    copies: list[dict[str, Any]],
    params: ForensicsParams,
    described: dict[str, Any],
) -> dict[str, Any]:
    """Return forensics.json."""
    content: dict[str, Any] = {
        **described,
        "settings": params.model_dump(mode="json"),
        "sources": {
            source: {"unavailable_because": found} if isinstance(found, str) else found.content
            for source, found in examined.items()
        },
        "copies": {"limit": params.copy_correlation, "pairs": copies},
    }
    faults = faults_of(content, alpha=params.alpha, style_limit=params.style_limit)
    return {"faults": to_json(faults), **content}


def _pair(images: pd.DataFrame, copy: Copy, groups: Ints) -> dict[str, Any]:
    """Return a row of copies.csv; `known` says that ingest already keeps both images in one split."""
    sides = zip("ab", images.to_dict("records"), strict=True)
    return {
        "correlation": round(copy.correlation, 4),
        **{f"{name}_{side}": row[name] for side, row in sides for name in _OF_A_SIDE},
        "known": bool(groups[copy.one] == groups[copy.other]),
    }


def _log_summary(content: dict[str, Any], folder: Path) -> None:
    for fault in content["faults"]:
        log.info("%s: %s", fault["kind"], fault["sentence"])
    log.info("forensics: %d faults; %s, %s", len(content["faults"]), folder / "forensics.html", folder / "review.html")


if __name__ == "__main__":
    run_step(forensics)
