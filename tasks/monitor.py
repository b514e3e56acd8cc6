"""Say whether the images that are scored now still look like those that the champion was judged on.

Reads   the scored images of the champion's version (tasks.score) and the reference statistics saved with the champion
Writes  reports/monitor.html   windows in order of time, what moved, in plain words
        reports/monitor.json   the same as numbers, with `drift: true` or `false`

Images are taken in the order in which they were scored, in windows of `monitor.window_images`; what is left over waits
for its window. The exit code is 0 whatever the answer: drift is a finding, not a failure. The last line says it.
Windows that a rebuild was started for do not count again; the store remembers them at the champion's version.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cxr.common.cli import run_step
from cxr.common.errors import WeightsError

if TYPE_CHECKING:
    import pandas as pd

    from cxr.common.params import MonitorParams, Paths
    from cxr.models.reference import Reference
    from cxr.monitoring.drift import Window
    from cxr.monitoring.page import MonitorPage
    from cxr.registry.versions import Version

SHOWN = 40
"""Windows on the page and in the JSON: the last ones."""

log = logging.getLogger("cxr.monitor")


def monitor(params: MonitorParams, paths: Paths) -> None:
    """Judge the last windows of scored images and write page and JSON."""
    from cxr.monitoring.drift import is_drift
    from cxr.registry import versions

    version = versions.get_version(versions.CHAMPION)
    reference = _reference(version)
    windows, limits, waiting = _judge(_scores(paths, version), reference, params)
    since = version.tags.get(versions.DRIFT_TAG, "")
    drift = is_drift(windows, alarm_windows=params.alarm_windows, of_windows=params.of_windows, after=since)
    page = _page(version, reference, params, drift=drift, windows=windows, limits=limits, waiting=waiting, since=since)
    _write(page, paths)
    log.info("monitor: version %s, %s\nreport: %s", version.number, page.headline(), paths.monitor.with_suffix(".html"))
    for window in windows[-params.of_windows :]:
        log.info("  window %d: %.2f of its limit  %s", window.number, window.score, "; ".join(page.explain(window)))
    log.info("drift: %s", str(drift).lower())


def _reference(version: Version) -> Reference:
    """Return the version's reference; a version registered before there were any says what to do."""
    from cxr.models.reference import REFERENCE_FILE, read_reference
    from cxr.registry.versions import fetch_bundle

    folder = fetch_bundle(version)
    if "reference_sha256" not in version.tags:
        raise WeightsError(
            f"version {version.number}, the champion, was registered without reference statistics: there is nothing to "
            "compare images with; run `dvc repro -f -s evaluate`, then `python -m tasks.register`, in a checkout with "
            "this model in models/trained, which adds them; or train and promote a new version"
        )
    return read_reference(folder / REFERENCE_FILE)


def _scores(paths: Paths, version: Version) -> pd.DataFrame:
    """Return what this version scored and measured, the oldest first, each image once.

    An image that cannot be opened is tried again every night, and is a row each time: the first counts.
    """
    from cxr.inference.score_store import read_scores, version_folder

    scores = read_scores(version_folder(paths.scores, version.number))
    scores = scores[scores["model_version"] == version.number].drop_duplicates(["location", "path", "sha256"])
    measured = scores.filter(like="m_").notna().any(axis=1) | scores["error"].notna()
    if not measured.all():
        log.warning(
            "%d images were scored before version %s had reference statistics and are left out",
            (~measured).sum(),
            version.number,
        )
    return scores[measured]


def _judge(
    scores: pd.DataFrame, reference: Reference, params: MonitorParams
) -> tuple[list[Window], dict[str, float], int]:
    """Return the last windows, the limits, and how many images wait for their window."""
    from tqdm import tqdm

    from cxr.monitoring.drift import Rules, cut_windows, find_limits, judge

    rules = Rules(
        images=params.window_images,
        false_alarm_share=params.false_alarm_share,
        resamples=params.resamples,
        seed=params.seed,
        max_failed_share=params.max_failed_share,
    )
    cut = cut_windows(scores, params.window_images)
    limits = find_limits(reference, rules)
    numbered = list(enumerate(cut, start=1))[-max(SHOWN, params.of_windows) :]
    windows = [
        judge(images, reference, limits, number=number)
        for number, images in tqdm(numbered, desc="monitor", unit=" windows", disable=None)
    ]
    return windows, limits, len(scores) - len(cut) * params.window_images


def _page(
    version: Version, reference: Reference, params: MonitorParams, *, drift: bool, since: str, **found: Any
) -> MonitorPage:
    import numpy as np

    from cxr.monitoring.page import MonitorPage

    counts = np.bincount(reference.predicted, minlength=len(reference.classes))
    return MonitorPage(
        version=version.number,
        drift=drift,
        rule=f"{params.alarm_windows} alarms among the last {params.of_windows} windows",
        window_images=params.window_images,
        usual_shares=dict(zip(reference.classes, (counts / counts.sum()).tolist(), strict=True)),
        reference_images=len(reference.predicted),
        since=since,
        **found,
    )


def _write(page: MonitorPage, paths: Paths) -> None:
    """Write the page, then the JSON: who finds the one finds the other."""
    from cxr.common.files import atomic_file, write_json
    from cxr.monitoring.page import render_page, to_markdown

    with atomic_file(paths.monitor.with_suffix(".html")) as partial:
        partial.write_text(render_page(page), encoding="utf-8")
    windows = [asdict(window) | {"alarm": window.alarm} for window in page.windows]
    said = asdict(page) | {"windows": windows, "headline": page.headline(), "markdown": to_markdown(page)}
    write_json(paths.monitor, said)


if __name__ == "__main__":
    run_step(monitor)
