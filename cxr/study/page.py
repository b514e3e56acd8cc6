"""docs/results.md: the study's figures as Markdown tables. What has not been run is said to be missing."""

from collections import Counter
from collections.abc import Sequence

from cxr.common.notices import NOT_CLINICAL, SYNTHETIC
from cxr.evaluation.bootstrap import HEADLINES
from cxr.study.findings import findings
from cxr.study.results import GroupResult, RowResult, RunRecord, Settings, stale_tags
from cxr.study.spec import TAG_PREFIX, Study
from cxr.study.text import NAMES, NOT_RUN, NOTHING, bullets, count, difference_text, distinct, figure_text, table


def render_page(study: Study, results: Sequence[GroupResult], records: Sequence[RunRecord], settings: Settings) -> str:
    """Return the whole page.

    Args:
        study: what should be there.
        results: of `study_results`.
        records: the runs they were made of.
        settings: with which the intervals were computed.
    """
    by_name = {result.group.name: result for result in results}
    sections = []
    for result in results:
        section = [f"## {result.group.title}", result.group.text.strip(), _table(result)]
        section += findings(result, by_name, settings)
        sections.append("\n\n".join(section))
    return "\n\n".join([_header(study, results, records, settings), *sections]) + "\n"


def _header(study: Study, results: Sequence[GroupResult], records: Sequence[RunRecord], settings: Settings) -> str:
    used = {run.run_id: run for result in results for row in result.rows for run in row.runs.values()}
    wanted = sum(len(row.seeds) for result in results for row in result.rows)
    done = sum(len(row.runs) for result in results for row in result.rows)
    seeds = sorted({seed for result in results for row in result.rows for seed in row.runs})
    lines = [
        "# Results",
        f"Written by `python -m tasks.results` from {count(len(used), 'tracked run')}; no number is typed by hand, "
        "so edit `study.yaml` and not this page. `python -m flows.study` runs what is missing.",
        NOT_CLINICAL,
        bullets(
            f"{done} of {wanted} trials have been run (a trial is a row with one of its seeds). Seeds: "
            f"{', '.join(map(str, seeds)) or 'none'}.",
            f"Trained at {_commits(list(used.values()))}.",
            *_stale(study, records),
            *_synthetic(list(used.values())),
        ),
        "How to read the figures:",
        bullets(
            "One seed: the figure and its 95% interval, from "
            f"{settings.resamples:,} bootstrap resamples of the patients of the images (seed {settings.seed}). Several "
            "seeds: the mean over them, and in brackets the lowest and highest.",
            "Validation images choose the epoch and the configuration, so their figures are optimistic. Test images "
            "are used once for each finished configuration, and only in the tables that have test columns.",
            "A difference to another row is taken on the same images, paired by image and by seed; NLL is the mean "
            "negative log-likelihood, lower is better.",
            "Time is that of training, in minutes.",
        ),
    ]
    return "\n\n".join(lines)


def _commits(runs: Sequence[RunRecord]) -> str:
    if not runs:
        return "no commit yet"
    found = Counter((run.tags.get("git_commit", "unknown"), run.tags.get("git_dirty") == "true") for run in runs)
    return ", ".join(
        f"commit `{commit[:8]}`{' with uncommitted changes' if dirty else ''} ({count(n, 'run')})"
        for (commit, dirty), n in sorted(found.items())
    )


def _stale(study: Study, records: Sequence[RunRecord]) -> list[str]:
    tags = [tag.removeprefix(TAG_PREFIX) for tag in stale_tags(study, records)]
    return [f"Run, but with other settings than study.yaml has now, and not shown: {', '.join(tags)}."] if tags else []


def _synthetic(runs: Sequence[RunRecord]) -> list[str]:
    n = sum(run.tags.get("synthetic") == "true" for run in runs)
    return [f"{count(n, 'run')} used the synthetic sample. {SYNTHETIC}"] if n else []


def _table(result: GroupResult) -> str:
    group = result.group
    heads = ["row", "seeds", "trained with", "validation macro-F1", "validation accuracy"]
    if group.baseline:
        label = next(row.label for row in group.rows if row.name == group.baseline)
        heads += [f"macro-F1 minus that of: {label}", "NLL minus that"]
    if group.tested:
        heads += [f"test {NAMES[name]}" for name in HEADLINES]
    return table([*heads, "time, min", "hardware", "runs"], [_cells(row, result) for row in result.rows])


def _cells(row: RowResult, result: GroupResult) -> list[str]:
    group = result.group
    cells = [row.row.label, f"{len(row.runs)} of {len(row.seeds)}", _trained_with(row)]
    cells += [figure_text(row.validation.get(name)) for name in ("macro_f1", "accuracy")]
    if group.baseline:
        cells += [_to_baseline(row, name, group.baseline) for name in ("macro_f1", "nll")]
    if group.tested:
        cells += [figure_text(row.test.get(name)) for name in HEADLINES]
    runs = list(row.runs.values())
    minutes = [run.training["seconds"] / 60 for run in runs]
    return [
        *cells,
        f"{sum(minutes) / len(minutes):.1f}" if minutes else NOTHING,
        distinct(run.training["hardware"] for run in runs),
        " ".join(f"`{run.run_id[:8]}`" for run in runs) or NOTHING,
    ]


def _to_baseline(row: RowResult, name: str, baseline: str) -> str:
    if row.row.name == baseline:
        return "baseline"
    if not row.runs:
        return NOTHING
    return difference_text(row.to_baseline[name]) if row.to_baseline else "other images, or no baseline run"


def _trained_with(row: RowResult) -> str:
    """Say images, pixels, epochs and starting weights of a row's runs."""
    runs = list(row.runs.values())
    if not runs:
        return NOT_RUN
    images = distinct(f"{run.train_images:,}" for run in runs)
    size = distinct(run.params.get("preprocess.image_size_px", "?") for run in runs)
    epochs = distinct(str(run.training["epochs_run"]) for run in runs)
    networks = {run.training["params"].get("members", 1) for run in runs}
    several = f", {distinct(str(n) for n in sorted(networks))} networks" if networks != {1} else ""
    return f"{images} images, {size} px, {epochs} epochs{several}, {distinct(_weights(run) for run in runs)}"


def _weights(run: RunRecord) -> str:
    report = run.training["weights"]
    loaded, partial, left = (len(report[key]) for key in ("loaded", "partial", "random"))
    if not loaded and not partial:
        return "weights none (random)"
    source = "imagenet" if report["source"] == "imagenet" else f"file {report['sha256'][:8]}"
    head_alone = not partial and set(report["random"]) <= {"head"}
    parts = "all but the head" if head_alone else f"{loaded} parts whole, {partial} in part, {left} random"
    return f"weights {source} ({parts})"
