"""Measure the model on the test set, once, and write the report.

Reads   models/trained, data/images, data/split, and the manifest and the counts in data/raw
Writes  reports/evaluation     predictions.csv, calibration, trust and audit .json, cards, figures, tables for plots,
                               headline.json for `dvc metrics show`,
                               reference.safetensors: statistics of these images, with which tasks.monitor compares
        reports/report.html    one page that needs nothing else
        reports/metrics.json   the test metrics with 95% intervals over patients
Tracks  metrics, report and evaluation artifacts in the MLflow run of the training

Calibration and thresholds are chosen on the validation images. The same inputs give the same files.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cxr.common.cli import answer_help, run_step, step_parser

if __name__ == "__main__":
    answer_help(step_parser(sys.modules[__name__]))

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from cxr.audit.shortcuts import AuditSettings, audit
from cxr.audit.trust import TrustSettings, headlines, measure_trust
from cxr.common.errors import DataError
from cxr.common.files import atomic_file, atomic_folder, read_json, write_json
from cxr.common.params import EvaluateParams, Paths
from cxr.dataset.blocks import acquisition_blocks
from cxr.dataset.image_array import ImageArray, read_image_array
from cxr.dataset.ingest_record import read_ingest_record
from cxr.dataset.manifest import Split, SplitRecord, read_divided_manifest, read_split
from cxr.dataset.shards import Shards
from cxr.evaluation.headline import HEADLINE_FILE, HEADLINES, headline_table
from cxr.evaluation.predictions import Predictions, fit_calibration, make_predictions, run_network
from cxr.evaluation.reference_set import in_reference, measure_reference
from cxr.evaluation.result_files import PREDICTIONS_FILE, read_predictions
from cxr.evaluation.summary import Settings, calibration_summary, flat_metrics, plot_tables, summarize
from cxr.evaluation.training_record import read_curves, read_training_record
from cxr.imaging.decode import decode_grey
from cxr.imaging.overlay import MIN_SIDE_PX
from cxr.imaging.unattended import decode_kept
from cxr.models.bundle import SPEC_FILE, ModelSpec, read_bundle, read_spec
from cxr.models.reference import REFERENCE_FILE, Reference, write_reference
from cxr.registry.model_origin import against_champion, origin_of
from cxr.registry.runs import log_evaluation
from cxr.registry.test_set_looks import record_look
from cxr.reporting.cards import write_cards
from cxr.reporting.front_page import FrontPage
from cxr.reporting.gallery import contact_sheet, make_gallery, pick_images, pick_most_confident_errors
from cxr.reporting.report import Champion, GalleryItem, ReportContent, front_page, render_report
from cxr.reporting.report_figures import audit_figures, draw_figures, trust_figures

_GALLERY_WORKERS = 1  # for some dozens of images

log = logging.getLogger("cxr.evaluate")


@dataclass(frozen=True)
class Measured:
    """What one pass of the network over validation and test images gives; `spec` holds the fitted calibration."""

    spec: ModelSpec
    validation: Predictions
    test: Predictions
    reference: Reference


def evaluate(params: EvaluateParams, paths: Paths) -> None:
    """Predict, calibrate, measure, and write metrics, report and evaluation artifacts."""
    settings = Settings(params.bootstrap_resamples, params.seed, params.calibration_bins)
    packed, divided = read_image_array(paths.images), read_split(paths.split)
    split = divided.record
    _check_fit(read_spec(paths.model), packed, split)
    records = _records(paths, split)
    curves = read_curves(paths.model, records["training"])
    images = _images(paths, divided)
    originals = _originals(paths, divided, packed.preprocessing.max_pixels)
    model, spec = read_bundle(paths.model)
    measured = _measure(model, spec, packed, images, fit_bias=params.fit_bias)
    spec, test = measured.spec, measured.test
    calibration = calibration_summary(
        measured.validation, test, temperature=spec.temperature, bias=spec.bias, settings=settings
    )
    inspected = _inspect(model, packed, images, measured, params)
    kept = inspected["trust"]["referral"]["found"]
    calibration["refer_below"] = kept["confidence"] if kept else None
    metrics = summarize(test, calibration=calibration, split=split, settings=settings)
    metrics["trust"] = headlines(inspected["trust"])
    content = {"metrics": metrics, "calibration": calibration, **inspected, **records}
    drawn = _draw(test, content, curves)
    galleries = _galleries(model, spec, packed, test, params, originals)
    _write_artifacts(measured, content, drawn, paths.evaluation, gallery=galleries["gallery"])
    looks = record_look(split["test_set_sha256"], spec.weights_sha256)
    origin = origin_of(records["training"]["run_id"], replace(spec, refer_below=calibration["refer_below"]))
    champion = against_champion(spec, test.to_table("test"), resamples=params.bootstrap_resamples, seed=params.seed)
    front = front_page(content, origin=origin.to_facts())
    _write_report(content, drawn, galleries, paths.report, front=front, champion=champion, looks=looks)
    write_json(paths.metrics, metrics)
    _log_table(metrics, paths)
    _track(records["training"]["run_id"], metrics, paths)


def _records(paths: Paths, split: SplitRecord) -> dict[str, Any]:
    """Return the JSON records of the earlier steps."""
    return {
        "ingest": read_ingest_record(paths.raw),
        "split": split,
        "model": read_json(paths.model / SPEC_FILE),
        "training": read_training_record(paths.model),
    }


def _images(paths: Paths, split: Split) -> pd.DataFrame:
    """Return the validation and test rows of splits.csv with source and block of each image."""
    manifest = read_divided_manifest(paths.raw, split)
    manifest["block"] = acquisition_blocks(manifest, blocks=split.record["blocks"])
    return split.part("validation", "test").merge(
        manifest[["image_id", "source", "block"]], on="image_id", validate="one_to_one"
    )


def _check_fit(spec: ModelSpec, packed: ImageArray, split: Mapping[str, Any]) -> None:
    if spec.classes != tuple(split["classes"]):
        raise DataError(
            f"the model has the classes {', '.join(spec.classes)} and the split {', '.join(split['classes'])}; "
            "run `./run dvc repro train`"
        )
    if spec.preprocessing != packed.preprocessing:
        raise DataError(
            f"the model was trained on images prepared as {spec.preprocessing}, the packed ones are prepared as "
            f"{packed.preprocessing}; run `./run dvc repro train`"
        )


def _measure(
    model: nn.Module, spec: ModelSpec, packed: ImageArray, images: pd.DataFrame, *, fit_bias: bool
) -> Measured:
    """Run the network once, calibrate on the validation images, and keep what the reference statistics need."""
    parts = {split: images[images["split"] == split] for split in ("validation", "test")}
    ordered = pd.concat(parts.values())
    kept = in_reference(ordered["patient_id"].to_numpy(object))
    outputs = run_network(model, spec, packed, ordered, keep_features=kept)
    spec = fit_calibration(spec, outputs.logits, ordered, fit_bias=fit_bias)
    predictions = make_predictions(spec, outputs.logits, ordered)
    is_test = np.arange(len(ordered)) >= len(parts["validation"])
    reference = measure_reference(packed, predictions.where(kept), outputs.features)
    return Measured(spec, predictions.where(~is_test), predictions.where(is_test), reference)


def _inspect(
    model: nn.Module, packed: ImageArray, images: pd.DataFrame, measured: Measured, params: EvaluateParams
) -> dict[str, Any]:
    """Return trust.json and audit.json: what thresholds reach, where the model looks, which shortcuts it takes."""
    settings = TrustSettings(
        specificities=params.specificities,
        refer_accuracy=params.refer_accuracy,
        attention_images=params.attention_images,
        sanity_images=params.sanity_images,
        resamples=params.bootstrap_resamples,
        seed=params.seed,
    )
    audited = AuditSettings(params.audit_images, resamples=params.bootstrap_resamples, seed=params.seed)
    validation, test = measured.validation, measured.test
    return {
        "trust": measure_trust(model, measured.spec, packed, validation=validation, test=test, settings=settings),
        "audit": audit(model, measured.spec, packed, images, audited),
    }


def _draw(test: Predictions, findings: Mapping[str, Any], curves: pd.DataFrame) -> dict[str, str]:
    """Return every figure as SVG by name."""
    return {
        **draw_figures(test, findings["metrics"], curves=curves, best_epoch=findings["training"]["best_epoch"]),
        **trust_figures(findings["trust"], test),
        **audit_figures(findings["audit"]),
    }


def _galleries(
    model: nn.Module,
    spec: ModelSpec,
    packed: ImageArray,
    test: Predictions,
    params: EvaluateParams,
    originals: Callable[[Sequence[str]], list[NDArray[np.uint8]]],
) -> dict[str, list[GalleryItem]]:
    """Return the images that the report shows: some of each class, and the most confident errors of all."""
    picks = {
        "gallery": pick_images(test, per_class=params.gradcam_per_class, seed=params.seed),
        "errors": pick_most_confident_errors(test, at_most=params.most_confident_errors),
    }
    return {name: make_gallery(model, spec, packed, test, chosen, originals) for name, chosen in picks.items()}


def _originals(paths: Paths, split: Split, max_pixels: int) -> Callable[[Sequence[str]], list[NDArray[np.uint8]]]:
    """Return a function that reads the images with some image_ids as they were ingested, as `decode_kept` does."""
    files = read_divided_manifest(paths.raw, split).set_index("image_id")["path"]
    shards = Shards(paths.raw / "images")

    def decode(path: str, data: bytes) -> NDArray[np.uint8]:
        return decode_grey(data, name=path, max_pixels=max_pixels, min_side_px=MIN_SIDE_PX)

    def read(image_ids: Sequence[str]) -> list[NDArray[np.uint8]]:
        named = [str(files[image_id]) for image_id in image_ids]
        return list(decode_kept(shards.read, decode, named, max_pixels=max_pixels, workers=_GALLERY_WORKERS))

    return read


def _write_artifacts(
    measured: Measured,
    content: Mapping[str, Any],
    drawn: Mapping[str, str],
    folder: Path,
    *,
    gallery: list[GalleryItem],
) -> None:
    """Write tables, figures, cards, reference statistics and the JSON files of `content`."""
    predictions = pd.concat([measured.validation.to_table("validation"), measured.test.to_table("test")])
    tables = {"predictions": predictions, **plot_tables(measured.test, bins=content["calibration"]["bins"])}
    with atomic_folder(folder) as partial:
        for name, table in tables.items():
            table.to_csv(partial / f"{name}.csv", index=False, lineterminator="\n")
        for name in ("calibration", "trust", "audit"):
            write_json(partial / f"{name}.json", content[name])
        write_json(partial / HEADLINE_FILE, headline_table(content["metrics"]))
        write_cards(partial, **content)
        write_reference(partial / REFERENCE_FILE, measured.reference)
        for name, svg in drawn.items():
            (partial / f"{name}.svg").write_text(svg, encoding="utf-8")
        (partial / "gradcam.jpg").write_bytes(contact_sheet(gallery))


def _write_report(
    content: Mapping[str, Any],
    drawn: Mapping[str, str],
    galleries: Mapping[str, list[GalleryItem]],
    path: Path,
    *,
    front: FrontPage,
    champion: Champion | None,
    looks: int | None,
) -> None:
    digests = {
        "manifest (SHA-256)": content["split"]["manifest_sha256"],
        "test set (SHA-256)": content["split"]["test_set_sha256"],
        "weights (SHA-256)": content["model"]["weights_sha256"],
        "MLflow run": content["training"]["run_id"],
    }
    page = ReportContent(
        **content,
        figures=drawn,
        gallery=galleries["gallery"],
        errors=galleries["errors"],
        digests=digests,
        front=front,
        champion=champion,
        looks=looks,
    )
    with atomic_file(path) as partial:
        partial.write_text(render_report(page), encoding="utf-8")


def _log_table(metrics: Mapping[str, Any], paths: Paths) -> None:
    """Log the headline metrics, for runs without a browser."""
    lines = []
    for metric in HEADLINES:
        value, interval = metric.value_in(metrics), metric.interval_in(metrics)
        shown = "not defined" if value is None else f"{value:.3f}"
        limits = f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        lines.append(f"  {metric.label:<26} {shown}{limits}")
    log.info(
        "evaluate: %d test images of %d patients, protocol %s, 95%% intervals over patients\n%s\nreport: %s",
        metrics["n_test"],
        metrics["n_patients"],
        metrics["protocol"],
        "\n".join(lines),
        paths.report,
    )


def _track(run_id: str, metrics: Mapping[str, Any], paths: Paths) -> None:
    files = [paths.metrics, paths.report, *sorted(paths.evaluation.iterdir())]
    predictions = read_predictions(paths.evaluation / PREDICTIONS_FILE)
    tested = predictions[predictions["split"] == "test"].drop(columns="split")
    log_evaluation(run_id, flat_metrics(metrics), files, tested)


if __name__ == "__main__":
    run_step(evaluate)
