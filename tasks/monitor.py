"""Compare the images scored lately with the champion's reference and report drift.

Reads   the scored images of the champion's version (tasks.score) and the reference statistics saved with the champion;
        what readers said about its answers in the web app
Writes  reports/monitor.html   windows in order of time, and which signals shifted; how often readers agreed
        reports/monitor.json   the same as numbers, with `drift: true` or `false`

Images are compared in the order in which they were scored, in windows of `monitor.window_images`; an incomplete window
waits. Drift is a finding, not a failure: the exit code is 0 in both cases, and the last line is the result. Windows
that a rebuild was started for do not count again; a tag of the champion's version holds their end.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cxr.common.cli import answer_help, run_step, step_parser

if __name__ == "__main__":
    answer_help(step_parser(sys.modules[__name__]))

import numpy as np
from tqdm import tqdm

from cxr.common.command_params import MonitorParams
from cxr.common.errors import ParamsError, WeightsError
from cxr.common.files import atomic_file, write_json
from cxr.common.params import Paths
from cxr.inference.feedback import Feedback, read_feedback
from cxr.inference.score_index import ScoreIndex, index_scores
from cxr.inference.score_store import version_folder
from cxr.models.reference import REFERENCE_FILE, Reference, read_reference
from cxr.monitoring.agreement import agreement_by_month
from cxr.monitoring.drift import Rules, Window, compare_window, cut_windows, find_limits, is_drift
from cxr.monitoring.page import MonitorPage, render_page, to_markdown
from cxr.registry import versions
from cxr.registry.model_origin import origin_of_version

MAX_WINDOWS = 40
"""Number of windows, the last ones, on the page and in the JSON file."""

log = logging.getLogger("cxr.monitor")


def monitor(params: MonitorParams, paths: Paths) -> None:
    """Compare the last windows of scored images and write page and JSON file."""
    version = versions.get_version(versions.CHAMPION)
    reference = _reference(version)
    windows, limits, waiting = _compare(_scores(paths, version), reference, params)
    since = version.tags.get(versions.DRIFT_TAG, "")
    drift = is_drift(windows, alarm_windows=params.alarm_windows, recent_windows=params.recent_windows, after=since)
    agreement = agreement_by_month(_feedback(paths.feedback), version=version.number)
    found = {"windows": windows, "limits": limits, "waiting": waiting, "agreement": agreement}
    page = _page(version, reference, params, drift=drift, since=since, **found)
    _write(page, paths)
    log.info("monitor: version %s, %s\nreport: %s", version.number, page.headline(), paths.monitor.with_suffix(".html"))
    for window in windows[-params.recent_windows :]:
        log.info("  window %d: %.2f of its limit  %s", window.number, window.score, "; ".join(page.explain(window)))
    log.info("drift: %s", str(drift).lower())


def _feedback(table: Path) -> list[Feedback]:
    """Return what readers said; drift is looked for even where their table is damaged."""
    try:
        return read_feedback(table)
    except ParamsError as error:
        log.warning("monitor: the agreement of readers is left out: %s", error)
        return []


def _reference(version: versions.Version) -> Reference:
    folder = versions.fetch_bundle(version)
    if "reference_sha256" not in version.tags:
        raise WeightsError(
            f"version {version.number}, the champion, was registered without reference statistics, so there is nothing "
            "to compare images with; run `./run dvc repro -f -s evaluate`, then `./run register`, in a checkout "
            "with this model in models/trained to add them, or promote a new version"
        )
    return read_reference(folder / REFERENCE_FILE)


def _scores(paths: Paths, version: versions.Version) -> ScoreIndex:
    """Return the images that this version scored and measured, each once, the oldest first."""
    scores = index_scores(version_folder(paths.scores, version.number), version.number)
    if scores.unmeasured:
        log.warning(
            "%d images were scored before version %s had reference statistics and are left out",
            scores.unmeasured,
            version.number,
        )
    return scores


def _compare(
    scores: ScoreIndex, reference: Reference, params: MonitorParams
) -> tuple[list[Window], dict[str, float], int]:
    """Return the last windows, the limits, and the number of images that wait for their window."""
    rules = Rules(
        images=params.window_images,
        false_alarm_share=params.false_alarm_share,
        resamples=params.resamples,
        seed=params.seed,
        max_failed_share=params.max_failed_share,
    )
    complete, waiting = divmod(len(scores), params.window_images)
    before = max(0, complete - max(MAX_WINDOWS, params.recent_windows))
    limits = find_limits(reference, rules)
    bounds = (before * params.window_images, complete * params.window_images)
    cut = cut_windows(scores.read(*bounds), params.window_images) if complete else []
    windows = [
        compare_window(images, reference, limits, number=number)
        for number, images in enumerate(tqdm(cut, desc="monitor", unit=" windows", disable=None), start=before + 1)
    ]
    return windows, limits, waiting


def _page(
    version: versions.Version, reference: Reference, params: MonitorParams, *, drift: bool, since: str, **found: Any
) -> MonitorPage:
    counts = np.bincount(reference.predicted, minlength=len(reference.classes))
    return MonitorPage(
        version=version.number,
        drift=drift,
        rule=f"{params.alarm_windows} alarms among the last {params.recent_windows} windows",
        window_images=params.window_images,
        usual_shares=dict(zip(reference.classes, (counts / counts.sum()).tolist(), strict=True)),
        reference_images=len(reference.predicted),
        since=since,
        origin=origin_of_version(version).to_facts(),
        synthetic=version.tags.get("synthetic") == "true",
        **found,
    )


def _write(page: MonitorPage, paths: Paths) -> None:
    """Write the page first, so that the JSON file never exists without it."""
    with atomic_file(paths.monitor.with_suffix(".html")) as partial:
        partial.write_text(render_page(page), encoding="utf-8")
    windows = [asdict(window) | {"alarm": window.alarm} for window in page.windows]
    derived = {"windows": windows, "headline": page.headline(), "markdown": to_markdown(page)}
    write_json(paths.monitor, asdict(page) | derived)


if __name__ == "__main__":
    run_step(monitor)
