"""Measure the model on the test set, once, and write the report.

Reads   models/trained, data/images, data/split, and the manifest and the counts in data/raw
Writes  reports/evidence       predictions.csv, calibration.json, figures, tables for `dvc plots`
        reports/report.html    one page that needs nothing else
        reports/metrics.json   the test metrics with 95% intervals over patients
Tracks  metrics, page and evidence in the MLflow run of the training

The temperature is fitted on the validation films. The same inputs give the same files.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from cxr.command import run_step
from cxr.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import nn

    from cxr.bundle import ModelSpec
    from cxr.evaluation import Predictions
    from cxr.packed import PackedFilms
    from cxr.params import EvaluateParams, Paths
    from cxr.report import GalleryItem

log = logging.getLogger("cxr.evaluate")


def evaluate(params: EvaluateParams, paths: Paths) -> None:
    """Predict, calibrate, measure, and write evidence, report and metrics."""
    import pandas as pd

    from cxr.bundle import read_bundle, read_spec
    from cxr.evaluation import Settings, calibration_summary, draw_figures, summarize
    from cxr.files import read_json, write_json
    from cxr.gallery import make_gallery
    from cxr.packed import read_packed

    _require_inputs(paths)
    settings = Settings(params.bootstrap_resamples, params.seed, params.calibration_bins)
    packed, split = read_packed(paths.images), read_json(paths.split / "split.json")
    _check_fit(read_spec(paths.model), packed, split)
    films = _films(paths, split)
    model, spec = read_bundle(paths.model)
    validation, test, temperature = _predict(model, spec, packed, films)
    calibration = calibration_summary(validation, test, temperature=temperature, settings=settings)
    metrics = summarize(test, calibration=calibration, split=split, settings=settings)
    training, curves = read_json(paths.model / "training.json"), pd.read_csv(paths.model / "curves.csv")
    drawn = draw_figures(test, metrics, curves=curves, best_epoch=training["best_epoch"])
    gallery = make_gallery(model, spec, packed, test, per_class=params.gradcam_per_class, seed=params.seed)
    _write_evidence(validation, test, calibration, drawn, paths.evidence)
    _write_report(metrics, calibration, drawn, gallery, paths)
    write_json(paths.metrics, metrics)
    _log_table(metrics, paths)
    _track(training["run_id"], metrics, paths)


def _require_inputs(paths: Paths) -> None:
    """Fail before the work, not after it, when a file of an earlier step is missing."""
    inputs = {
        "ingest": [paths.raw / "ingest.json"],
        "split": [paths.split / "split.json"],
        "train": [paths.model / "training.json", paths.model / "curves.csv"],
    }
    for stage, files in inputs.items():
        for file in files:
            if not file.is_file():
                raise DataError(f"{file} is missing; run `dvc repro {stage}`")


def _films(paths: Paths, split: Mapping[str, Any]) -> pd.DataFrame:
    """Return the validation and test rows of splits.csv with the source of each film."""
    from cxr.manifest import read_manifest, read_splits
    from cxr.splits import test_set_sha256

    table = read_splits(paths.split)
    if test_set_sha256(table) != split["test_set_sha256"]:
        raise DataError(
            f"{paths.split / 'splits.csv'} is not the split that split.json describes (the test sets differ); "
            "run `dvc repro -f -s split`"
        )
    films = table[table["split"].isin(("validation", "test"))]
    return films.merge(read_manifest(paths.raw)[["image_id", "source"]], on="image_id", validate="one_to_one")


def _check_fit(spec: ModelSpec, packed: PackedFilms, split: Mapping[str, Any]) -> None:
    if spec.classes != tuple(split["classes"]):
        raise DataError(
            f"the model tells {', '.join(spec.classes)} apart and the split {', '.join(split['classes'])}; "
            "run `dvc repro train`"
        )
    if spec.preprocessing != packed.preprocessing:
        raise DataError(
            f"the model was trained on films prepared as {spec.preprocessing}, the packed ones are prepared as "
            f"{packed.preprocessing}; run `dvc repro train`"
        )


def _predict(
    model: nn.Module, spec: ModelSpec, packed: PackedFilms, films: pd.DataFrame
) -> tuple[Predictions, Predictions, float]:
    """Return what the model says of validation and test films, and the temperature fitted on validation."""
    import numpy as np

    from cxr.calibration import TEMPERATURE_RANGE, fit_temperature
    from cxr.evaluation import Predictions
    from cxr.inference import softmax_with_temperature

    logits = _logits(model, spec, packed, packed.rows(films["image_id"].tolist()))
    labels = np.array([spec.classes.index(label) for label in films["label"]], dtype=np.int64)
    is_validation = (films["split"] == "validation").to_numpy()
    temperature = fit_temperature(logits[is_validation], labels[is_validation])
    if any(abs(temperature / bound - 1) < 0.01 for bound in TEMPERATURE_RANGE):
        log.warning(
            "the temperature %.2f is at the end of its range: %d validation films may be too few or too easy to "
            "calibrate on",
            temperature,
            is_validation.sum(),
        )
    both = Predictions(
        classes=spec.classes,
        image_ids=films["image_id"].to_numpy(object),
        sources=films["source"].to_numpy(object),
        patients=films["patient_id"].to_numpy(object),
        labels=labels,
        uncalibrated=softmax_with_temperature(logits, 1.0),
        calibrated=softmax_with_temperature(logits, temperature),
    )
    return both.where(is_validation), both.where(~is_validation), temperature


def _logits(model: nn.Module, spec: ModelSpec, packed: PackedFilms, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return raw scores (N, C) in fp32; only one batch of films is in memory."""
    import numpy as np
    from tqdm import tqdm

    from cxr.inference import BATCH_SIZE, choose_device, predict_logits

    model.to(choose_device("auto"))
    logits = np.zeros((len(rows), len(spec.classes)), np.float32)
    with tqdm(total=len(rows), desc="evaluate", unit=" films", disable=None) as bar:
        for start in range(0, len(rows), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            images = packed.images[rows[part]]
            logits[part] = predict_logits(model, images, mean=spec.mean, std=spec.std, progress=bar.update)
    return logits


def _write_evidence(
    validation: Predictions,
    test: Predictions,
    calibration: Mapping[str, Any],
    drawn: Mapping[str, str],
    folder: Path,
) -> None:
    import pandas as pd

    from cxr.evaluation import plot_tables
    from cxr.files import whole_folder, write_json

    predictions = pd.concat([validation.to_table("validation"), test.to_table("test")])
    tables = {"predictions": predictions, **plot_tables(test, bins=calibration["bins"])}
    with whole_folder(folder) as partial:
        for name, table in tables.items():
            table.to_csv(partial / f"{name}.csv", index=False, lineterminator="\n")
        write_json(partial / "calibration.json", calibration)
        for name, svg in drawn.items():
            (partial / f"{name}.svg").write_text(svg, encoding="utf-8")


def _write_report(
    metrics: Mapping[str, Any],
    calibration: Mapping[str, Any],
    drawn: Mapping[str, str],
    gallery: list[GalleryItem],
    paths: Paths,
) -> None:
    from cxr.bundle import SPEC_FILE
    from cxr.files import read_json, whole_file
    from cxr.report import ReportContent, render_report

    model, split = read_json(paths.model / SPEC_FILE), read_json(paths.split / "split.json")
    training = read_json(paths.model / "training.json")
    content = ReportContent(
        metrics=metrics,
        calibration=calibration,
        training=training,
        model=model,
        ingest=read_json(paths.raw / "ingest.json"),
        split=split,
        figures=drawn,
        gallery=gallery,
        digests={
            "manifest (SHA-256)": split["manifest_sha256"],
            "test set (SHA-256)": split["test_set_sha256"],
            "weights (SHA-256)": model["weights_sha256"],
            "MLflow run": training["run_id"],
        },
    )
    with whole_file(paths.report) as partial:
        partial.write_text(render_report(content), encoding="utf-8")


def _log_table(metrics: Mapping[str, Any], paths: Paths) -> None:
    """Log the headline figures, so that a run without a browser shows them."""

    def line(name: str, value: float | None, interval: list[float] | None) -> str:
        shown = "not defined" if value is None else f"{value:.3f}"
        return f"  {name:<12} {shown}" + (f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")

    ci95 = metrics["ci95"]
    lines = [line(name, metrics[name], ci95[name]) for name in ("accuracy", "macro_f1", "macro_auroc")]
    lines.append(line("ece", metrics["calibration"]["ece"], ci95["ece"]))
    log.info(
        "evaluate: %d test films of %d patients, protocol %s, 95%% intervals over patients\n%s\nreport: %s",
        metrics["n_test"],
        metrics["n_patients"],
        metrics["protocol"],
        "\n".join(lines),
        paths.report,
    )


def _track(run_id: str, metrics: Mapping[str, Any], paths: Paths) -> None:
    from cxr.evaluation import flat_metrics
    from cxr.tracking import log_evaluation

    files = [paths.metrics, paths.report, *sorted(paths.evidence.iterdir())]
    log_evaluation(run_id, flat_metrics(metrics), files)


if __name__ == "__main__":
    run_step(evaluate)
