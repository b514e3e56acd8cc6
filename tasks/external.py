"""Test the champion on a set that it has never seen, in one command.

    ./run external --data chest_xray --part test
    ./run external --data FOLDER --labels labels.csv --json result.json
    ./run external --data FOLDER
    ./run external --data FOLDER --shard 2/8        # answer a share; the command without it then gives the result

Reads   --data: a folder, zip, https:// or s3:// address. Labels come from --labels, else from labels.csv at its top,
        else from class folders (NORMAL, PNEUMONIA, viral, bacterial, covid, as Kaggle lays out chest_xray and
        Covid19-dataset); without any the images are described and not scored. A table has the columns file and label
        (normal, viral, bacterial, covid, or pneumonia where the kind is not known), and may have patient_id and columns
        for slices, such as hospital: see cxr/dataset/external_set.py. DICOM images give patient and vendor themselves
Writes  --output (reports/external/<name>): external.json, report.html, predictions.csv, not_answered.csv and
        training_duplicates.csv, all or none of them. The same goes into the version's run in MLflow, where
        `./run promote` reads it. No patient number is written
Prints  the headline metrics with 95% intervals

Preprocessing, calibration, operating points and the referral threshold are the model's own and do not change. Images
that the model was trained or tuned on, and copies of them, are counted, and all scores are also given without them. A
killed run goes on where it stopped.

Exit codes  0 every image was answered; 2 the command line is wrong; 3 the folder, or its labels, are wrong or missing;
            4 images could not be read: the result is of the others, not_answered.csv says why; 7 the model's files are
            damaged; 9 the registry has no such version or does not answer; 15 an image that the report shows crashes
            its decoder, and nothing was written; 130 interrupted
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.common.cli import add_engine_argument, answer_help, command_parser, run_command

PARTS = ("train", "val", "test", "all")


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--data", metavar="FOLDER", required=True, help="folder, zip or address of the images")
    parser.add_argument("--labels", metavar="CSV", type=Path, help="table with the columns file and label")
    parser.add_argument("--part", choices=PARTS, help="official part to test on, where the set has several")
    parser.add_argument("--version", metavar="N", default="champion", help="another version (%(default)s)")
    parser.add_argument("--name", help="name of the set in reports (that of the folder)")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where to write (reports/external/<name>)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write external.json here")
    parser.add_argument("--shard", metavar="I/N", help="answer this share alone, such as 2/8, and end")
    parser.add_argument("--summary", metavar="FILE", type=Path, help="with --shard: write its counts as JSON")
    add_engine_argument(parser, "torch")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

import numpy as np
import pandas as pd
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cxr.common.engines import Engine
from cxr.common.errors import ImageError, ParamsError
from cxr.common.files import atomic_folder, write_json
from cxr.common.locks import sole_lock
from cxr.common.params import Params, read_params
from cxr.dataset.external_set import ExternalSet, read_external_set
from cxr.dataset.layouts.labelled_folder import LABELS_FILE
from cxr.dataset.sources import Sample, fetch
from cxr.evaluation.external import NORMAL, CarriedThresholds, of_classes, of_pneumonia
from cxr.evaluation.predictions import Predictions
from cxr.evaluation.summary import Settings
from cxr.imaging.unattended import UNATTENDED_SECONDS
from cxr.inference.answer import Answer
from cxr.inference.batch import EVERY_IMAGE, Shard, read_shard
from cxr.inference.classifier import Classifier, load_classifier
from cxr.inference.decoding.decoders import Decoders
from cxr.inference.external_answers import answer_images
from cxr.inference.image_source import Location, open_location
from cxr.monitoring.drift import Rules
from cxr.monitoring.external import SeenImages, answer_table, describe, drift, set_facts, training_duplicates
from cxr.registry.evaluation_store import (
    EXTERNAL_RESULT,
    evaluation_of,
    store_external,
    training_images,
    training_thumbnails,
)
from cxr.registry.model_origin import origin_of_version
from cxr.registry.test_set_looks import record_look
from cxr.registry.versions import MODEL, Version, fetch_bundle, get_version
from cxr.reporting.external import external_figures, render_external, summary_text
from cxr.reporting.gallery import gallery_item, pick_most_confident_errors
from cxr.reporting.report import GalleryItem

REPORT_FILE = "report.html"

log = logging.getLogger("cxr.external")


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    data: str
    labels: Path | None
    part: str | None
    version: str
    name: str | None
    output: Path | None
    json: Path | None
    engine: Engine
    shard: Shard | None = None
    summary: Path | None = None


@dataclass(frozen=True)
class _Test:
    """A set in its place, before the model that is tested on it."""

    name: str
    part: str | None
    location: Location
    images: ExternalSet
    version: Version
    classifier: Classifier


def external(params: Params, request: Request) -> None:
    """Test a version on a set and write the result.

    Raises:
        SourceError: there is no such folder, it has no images, or its labels are wrong.
        ParamsError: the output would replace something else.
        ImageError: after the result was written, when images could not be read; without a result, when none could.
        RegistryError, WeightsError: there is no such version, or it is not as it was registered.
        BusyError: another process writes the same result.
    """
    test = _open(params, request)
    output = request.output or params.paths.report.parent / "external" / test.name
    if output.exists() and not (output / EXTERNAL_RESULT).is_file():
        raise ParamsError(f"{output} exists and is no earlier result: it would be replaced; name another --output")
    held = output.name if request.shard is None else f"{output.name}-{request.shard}"
    with sole_lock(output.with_name(f".{held}.lock"), what=f"the result {output.with_name(held)}"):
        _answer_and_write(test, params, request, output)


def _answer_and_write(test: _Test, params: Params, request: Request, output: Path) -> None:
    """Answer the images, and write and store the result."""
    parts = output.with_name(f".{output.name}.answers")
    if request.shard:
        _answer_share(test, parts, request.shard, summary=request.summary)
        return
    table = answer_table(test.images, _answer(test, parts, EVERY_IMAGE), test.location)
    answered = table[table["error"].isna()]
    if answered.empty:
        raise ImageError(
            f"not one of the {len(table)} images of {request.data} could be read; the first: {table['error'].iloc[0]}",
            reason="not an image",
        )
    seen = _seen(test.version)
    duplicates = training_duplicates(answered, seen, near=params.ingest.near_duplicate_correlation)
    result = _result(test, table, duplicates, params) | _facts(test, table, duplicates, seen, params)
    _write(test, table, duplicates, result, output, errors=params.evaluate.most_confident_errors)
    if request.json:
        write_json(request.json, result)
    store_external(test.version, sorted(output.iterdir()), set_sha256=result["set"]["sha256"])
    shutil.rmtree(parts, ignore_errors=True)
    print(summary_text(result, report=output / REPORT_FILE))
    if failed := len(table) - len(answered):
        raise ImageError(
            f"{failed} of {len(table)} images could not be read; the result is of the others, "
            f"{output / 'not_answered.csv'} says why",
            reason="not an image",
        )


def _open(params: Params, request: Request) -> _Test:
    sample = Sample(patients_per_class=params.ingest.sample_patients_per_class, seed=params.ingest.sample_seed)
    folder = fetch(request.data, downloads=params.paths.downloads, sample=sample).folder
    location = open_location(str(folder))
    table = request.labels
    if table is None and (folder / LABELS_FILE).is_file():
        table = folder / LABELS_FILE
    images = read_external_set(request.data, [image.path for image in location.images], table=table, part=request.part)
    version = get_version(request.version)
    classifier = load_classifier(fetch_bundle(version), number=version.number, engine=request.engine)
    name = request.name or "-".join([folder.resolve().name, *([request.part] if request.part else [])])
    if not re.fullmatch(r"[\w][\w .+-]*", name):
        raise ParamsError(f"--name is a file name of letters, digits, spaces and . + - _, got {name!r}")
    return _Test(name, request.part, location, images, version, classifier)


def _answer(test: _Test, parts: Path, shard: Shard) -> pd.DataFrame:
    """Return a row of answers for each image of a share."""
    wanted = {image.path for image in test.images.images}
    files = [file for file in test.location.images if file.path in wanted and shard.holds(file.path)]
    labelled = sum(image.label is not None for image in test.images.images)
    log.info(
        "external: %d of %d images, %d of all labelled; version %s",
        len(files),
        len(wanted),
        labelled,
        test.version.number,
    )
    with logging_redirect_tqdm(), tqdm(total=len(files), desc="external", unit=" images", disable=None) as bar:
        workers = os.cpu_count() or 1
        return answer_images(
            test.classifier, test.location, files, parts=parts, workers=workers, progress=bar.update, shard=shard
        )


def _answer_share(test: _Test, parts: Path, shard: Shard, *, summary: Path | None) -> None:
    """Answer a share of the images into `parts`, where the command without a share finds them."""
    answers = _answer(test, parts, shard)
    failed = int(answers["error"].notna().sum())
    if summary:
        write_json(summary, {"images": len(answers), "bad": failed})
    print(f"{len(answers)} images of share {shard} answered by version {test.version.number}, {failed} bad")


def _seen(version: Version) -> SeenImages:
    table = training_images(version)
    return SeenImages(None if table is None else table["image_id"].tolist(), training_thumbnails(version))


def _result(test: _Test, table: pd.DataFrame, duplicates: pd.DataFrame, params: Params) -> dict[str, Any]:
    """Return external.json."""
    spec, asked, watched = test.classifier.spec, params.evaluate, params.monitor
    settings = Settings(asked.bootstrap_resamples, asked.seed, asked.calibration_bins)
    rules = Rules(
        images=len(table),
        false_alarm_share=watched.false_alarm_share,
        resamples=watched.resamples,
        seed=watched.seed,
        max_failed_share=watched.max_failed_share,
    )
    thresholds = CarriedThresholds(_operating_points(test.version), spec.refer_below)
    found = describe(table, spec.classes, duplicates, thresholds=thresholds, settings=settings)
    return {**found, "drift": drift(table, test.classifier.reference, rules)}


def _facts(
    test: _Test, table: pd.DataFrame, duplicates: pd.DataFrame, seen: SeenImages, params: Params
) -> dict[str, Any]:
    """Return which model was tested on which set, and which images it had seen."""
    spec, kinds, sha256 = test.classifier.spec, duplicates["kind"].value_counts(), _set_digest(table)
    return {
        "format": "1",
        "model": {
            "name": MODEL,
            "version": test.version.number,
            "weights_sha256": spec.weights_sha256,
            "engine": test.classifier.engine,
            "classes": list(spec.classes),
            "synthetic": spec.synthetic,
            "refer_below": spec.refer_below,
        },
        "set": {
            "name": test.name,
            "part": test.part,
            "sha256": sha256,
            "labelled_by": test.images.labelled_by,
            **set_facts(table),
        },
        "looks": record_look(sha256, spec.weights_sha256) if test.images.labelled_by else None,
        "training_duplicates": {
            "n": len(duplicates),
            "exact": int(kinds.get("exact", 0)),
            "near": int(kinds.get("near", 0)),
            "near_correlation": params.ingest.near_duplicate_correlation,
            "limits": seen.limits,
        },
    }


def _operating_points(version: Version) -> list[tuple[float, float]]:
    """Return target specificity and threshold of each of the version's operating points, chosen as it was evaluated."""
    trust = (evaluation_of(version).metrics or {}).get("trust") or {}
    return [(point["target_specificity"], point["threshold"]) for point in trust.get("operating_points", [])]


def _set_digest(table: pd.DataFrame) -> str:
    """Return the SHA-256 of the images and their labels, whatever the files are called."""
    rows = zip(table["sha256"].fillna(""), table["label"].fillna(""), strict=True)
    return hashlib.sha256("\n".join(sorted(f"{sha256},{label}" for sha256, label in rows)).encode()).hexdigest()


def _write(
    test: _Test,
    table: pd.DataFrame,
    duplicates: pd.DataFrame,
    result: dict[str, Any],
    output: Path,
    *,
    errors: int,
) -> None:
    """Write the result into `output`, all of it or nothing."""
    answered = table[table["error"].isna()]
    labelled = answered[answered["label"].notna()]
    kinds = of_classes(labelled, test.classifier.spec.classes)
    binary = of_pneumonia(labelled, test.classifier.spec.classes)
    scored = kinds or binary
    gallery = [] if scored is None else _errors(test, scored, at_most=errors)
    origin = origin_of_version(test.version).to_facts()
    page = render_external(result, external_figures(scored, binary, result), gallery, origin=origin)
    hidden = ("thumbnail", "reason", "location", "scored_at", "changed", "size_bytes", "patient_known", "error")
    with atomic_folder(output) as partial:
        write_json(partial / EXTERNAL_RESULT, result)
        (partial / REPORT_FILE).write_text(page, encoding="utf-8")
        tables = {
            "predictions": answered.drop(columns=[name for name in hidden if name in answered]),
            "not_answered": table.loc[table["error"].notna(), ["path", "reason", "error"]],
            "training_duplicates": duplicates,
        }
        for name, rows in tables.items():
            rows.to_csv(partial / f"{name}.csv", index=False, lineterminator="\n")


def _errors(test: _Test, scored: Predictions, *, at_most: int) -> list[GalleryItem]:
    """Return the most confident errors as they are scored, each with the heat map of its class.

    For pneumonia against normal, where the probability is the sum over all kinds, that is the most probable kind.
    """
    picks = pick_most_confident_errors(scored, at_most=at_most)
    if not picks:
        return []
    wrong = scored.where(np.array([pick.row for pick in picks], np.int64))
    grey, prepared = [], []
    with Decoders(1, seconds=UNATTENDED_SECONDS) as decoders:
        for path in wrong.image_ids:
            data = test.location.read(path)
            grey.append(decoders.grey(data, test.classifier, name=path))
            prepared.append(decoders.model_input(data, test.classifier, name=path).pixels)
    pixels = np.stack(prepared)
    called = [wrong.classes[best] for best in wrong.calibrated.argmax(axis=1)]
    mapped = [_mapped(name, answer) for name, answer in zip(called, test.classifier.answer(pixels), strict=True)]
    return [
        gallery_item(
            grey[i],
            heat,
            test.classifier.spec,
            actual=wrong.classes[wrong.labels[i]],
            predicted=called[i],
            probability=float(wrong.calibrated[i].max()),
            source=test.name,
            image_id=str(wrong.image_ids[i]),
        )
        for i, heat in enumerate(test.classifier.heat(pixels, mapped))
    ]


def _mapped(called: str, answer: Answer) -> str:
    """Return the class of the model whose heat map shows why an image was called so."""
    kinds = {name: share for name, share in answer.probabilities.items() if name != NORMAL}
    return called if called in answer.probabilities else max(kinds, key=lambda name: kinds[name])


def main() -> None:
    """Read the command line and test."""
    given = command_line().parse_args()
    if given.summary and not given.shard:
        raise ParamsError("--summary is of a share of the images; add --shard, or take the counts from --json")
    request = Request(
        data=given.data,
        labels=given.labels,
        part=given.part,
        version=given.version,
        name=given.name,
        output=given.output,
        json=given.json,
        engine=given.engine,
        shard=read_shard(given.shard) if given.shard else None,
        summary=given.summary,
    )
    external(read_params(given.params), request)


if __name__ == "__main__":
    run_command(main)
