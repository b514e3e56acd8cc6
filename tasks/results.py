"""Write docs/results.md from the runs of the study in the tracking store.

    ./run flows.study # runs the missing trials
    ./run results     # run it again when there are new runs

Reads   study.yaml, params.yaml (evaluate: resamples and seed of the intervals), and the MLflow runs with tags
        `study.<group>.<row>.<seed>`, which name their row
Writes  docs/results.md, and next to it results-learning-curve.svg

Every number comes from a tracked run. Rows and groups without runs are listed as not run. The same runs give the same
bytes.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr.common.cli import answer_help, command_parser, run_command


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"), help="(%(default)s)")
    parser.add_argument("--study", type=Path, default=Path("study.yaml"), help="(%(default)s)")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="(%(default)s)")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

import pandas as pd

from cxr.common.errors import RegistryError
from cxr.common.files import atomic_file, sha256_of
from cxr.common.params import read_params
from cxr.registry.tracked_runs import TrackedRun, read_artifacts, runs_with_tag_prefix
from cxr.reporting.drawing import standing_alone
from cxr.reporting.figures import learning_curve
from cxr.study.findings import LEARNING_CURVE, learning_curve_points
from cxr.study.page import render_page
from cxr.study.results import GroupResult, RunRecord, Settings, study_results
from cxr.study.spec import TAG_PREFIX, read_study

_TRAINING, _VALIDATION = "training/training.json", "training/validation.csv"
_METRICS, _PREDICTIONS = "evaluation/metrics.json", "evaluation/predictions.csv"

ENDPOINTS = "endpoints.md"
"""Beside the page: what the finals are measured by, registered before they were trained."""

log = logging.getLogger("cxr.results")


def results(study_file: Path, params_file: Path, output: Path) -> None:
    """Read the study's runs and write the page.

    Raises:
        ParamsError: study.yaml or params.yaml is invalid.
        RegistryError: the tracking store does not answer, or a file of a run is damaged.
    """
    study, evaluate = read_study(study_file), read_params(params_file).evaluate
    settings = Settings(resamples=evaluate.bootstrap_resamples, seed=evaluate.seed)
    records = [record for run in runs_with_tag_prefix(TAG_PREFIX) if (record := _record(run)) is not None]
    groups = study_results(study, records, settings)
    endpoints = output.parent / ENDPOINTS
    sha256 = sha256_of(endpoints) if endpoints.is_file() else ""
    page = render_page(study, groups, records, settings, endpoints_sha256=sha256)
    with atomic_file(output) as partial:
        partial.write_text(page, encoding="utf-8")
    _draw_learning_curve(groups, output.parent)
    rows = [row for group in groups for row in group.rows]
    log.info("results: %d of %d rows have runs; %s", sum(bool(row.runs) for row in rows), len(rows), output)


def _record(run: TrackedRun) -> RunRecord | None:
    """Read a run's files; return None, with a warning, if it has no training.json. Raises RegistryError."""
    files = read_artifacts(run.run_id, [_TRAINING, _VALIDATION, _METRICS, _PREDICTIONS])
    if _TRAINING not in files:
        log.warning("results: run %s has no %s and is left out", run.run_id, _TRAINING)
        return None
    read = {name: _content(run.run_id, name, data) for name, data in files.items()}
    return RunRecord(
        run_id=run.run_id,
        tags=run.tags,
        params=run.params,
        training=read[_TRAINING],
        validation=read.get(_VALIDATION),
        metrics=read.get(_METRICS),
        predictions=read.get(_PREDICTIONS),
    )


def _content(run_id: str, name: str, data: bytes) -> Any:
    """Return the object in a JSON file, or the table in a CSV file."""
    try:
        if name.endswith(".json"):
            return json.loads(data)
        return pd.read_csv(io.BytesIO(data), dtype={"image_id": str, "patient_id": str, "label": str})
    except ValueError as error:  # also what pandas raises
        raise RegistryError(
            f"{name} of run {run_id} is damaged ({error}); delete the run in MLflow and repeat it: `./run flows.study`"
        ) from error


def _draw_learning_curve(groups: Sequence[GroupResult], folder: Path) -> None:
    for result in groups:
        if result.group.name == "learning_curve" and (points := learning_curve_points(result)):
            which = "test" if result.group.tested else "validation"
            svg = learning_curve([(n, point.value, point.low, point.high) for n, point in points], images=which)
            with atomic_file(folder / LEARNING_CURVE) as partial:
                partial.write_text(standing_alone(svg), encoding="utf-8")


def main() -> None:
    """Read the command line and write the page."""
    arguments = command_line().parse_args()
    results(arguments.study, arguments.params, arguments.output)


if __name__ == "__main__":
    run_command(main)
