"""Texts below the tables of docs/results.md: comparisons and summaries of their rows."""

from collections.abc import Mapping, Sequence
from itertools import chain

import pandas as pd
from scipy.stats import kendalltau, spearmanr

from cxr.evaluation.bootstrap import Interval
from cxr.evaluation.comparison import (
    MCNEMAR_NOTE,
    Difference,
    compare,
    compare_over_sets,
    difference_over_seeds,
    holm,
    interval_over_sets,
)
from cxr.evaluation.headline import SCORES
from cxr.study.endpoints import secondary_endpoints
from cxr.study.results import Figure, GroupResult, RowResult, RunRecord, Settings, have_same_images, pooled
from cxr.study.text import NOT_RUN, NOTHING, count, difference_text, figure_text, interval_text, signed_text, table

LEARNING_CURVE = "results-learning-curve.svg"
_MEANS_NOTE = (
    "Means over the test sets of the mean over the seeds; in brackets 95% intervals, by bootstrap over the patients of "
    "each set."
)
_DIFFERENCES_NOTE = (
    " Differences are to {baseline}, paired in the same bootstrap; a seed that one of both rows lacks on a set is left "
    "out there."
)
_HOLM_NOTE = " The p-values are of that bootstrap, two-sided, corrected by Holm's method for the rows of the table."
_OTHER_IMAGES = "other test images"


def findings(result: GroupResult, by_name: Mapping[str, GroupResult], settings: Settings) -> list[str]:
    """Return the texts below a group's table."""
    texts = []
    if result.group.name == "leakage":
        texts.append(_leakage(result))
    if result.group.name == "blocks":
        texts += [_over_blocks(result), _all_folds(result, settings)]
    if result.group.name == "learning_curve" and learning_curve_points(result):
        texts.append(f"![Accuracy against the number of training images]({LEARNING_CURVE})")
    if result.group.name == "proxy_full" and "proxy_cheap" in by_name:
        texts.append(_proxy(by_name["proxy_cheap"], result))
    if result.group.tested and len(result.group.seeds) > 1:
        texts.append(_over_sets([result], settings))
    if result.group.headline and len(result.group.seeds) > 1:
        texts.append(secondary_endpoints([result], settings))
    if result.group.tested and result.group.baseline:
        texts.append(_pairwise(result, settings))
    if result.group.together:
        together = [by_name[name] for name in result.group.together]
        texts += [_over_sets(together, settings), secondary_endpoints(together, settings)]
    return [text for text in texts if text]


def learning_curve_points(result: GroupResult) -> list[tuple[int, Figure]]:
    """Return number of training images and accuracy of each row that was run, by number of images."""
    points = []
    for row in result.rows:
        figure = row.test.get("accuracy") if result.group.tested else row.validation.get("accuracy")
        if row.runs and figure is not None:
            points.append((next(iter(row.runs.values())).train_images, figure))
    return sorted(points, key=lambda point: point[0])


def _leakage(result: GroupResult) -> str:
    paper, patient = result.row("paper"), result.row("patient")
    if paper is None or patient is None or not paper.runs or not patient.runs:
        return f"The difference between `paper` and `patient`: {NOT_RUN}."
    rows = []
    for metric in SCORES:
        values = [
            [value for run in row.runs.values() if (value := metric.stored_in(run.metrics)) is not None]
            for row in (paper, patient)
        ]
        if not all(values):
            continue
        found = difference_over_seeds(*values)
        interval = (found.interval.low, found.interval.high) if found.interval else (None, None)
        rows.append(
            [f"test {metric.label}", signed_text(found.value, *interval), f"{len(values[0])} and {len(values[1])}"]
        )
    heads = [f"{paper.row.label} minus {patient.row.label}", "mean difference (95% interval)", "seeds"]
    covers = "the draw of the images and the randomness of the training"
    if "split.seed" not in result.group.seeded:
        covers = "only the randomness of the training, because all seeds have the same images"
    note = f"Welch's t interval over seeds, unpaired because the images differ. It covers {covers}."
    return f"{table(heads, rows)}\n\n{note}"


def _over_blocks(result: GroupResult) -> str:
    """Return mean and worst of the rows; a row with several seeds counts with their mean."""
    missing = [row.row.label for row in result.rows if not row.runs]
    if missing:
        return f"Mean and worst block: {len(missing)} of {len(result.rows)} blocks were not run."
    means, worst = ["mean of the blocks"], ["worst block"]
    for metric in SCORES:
        values = {row.row.label: row.test[metric.name].value for row in result.rows if metric.name in row.test}
        label = min(values, key=lambda name: values[name], default="")
        means.append(f"{sum(values.values()) / len(values):.3f}" if values else NOTHING)
        worst.append(f"{values[label]:.3f} ({label})" if values else NOTHING)
    return table(["over the blocks", *(f"test {metric.label}" for metric in SCORES)], [means, worst])


def _over_sets(results: Sequence[GroupResult], settings: Settings) -> str:
    """Return the means of the rows that all groups have over the seeds and test sets, compared with the baseline."""
    first = results[0]
    base = first.row(first.group.baseline or "")
    names = [row.row.name for row in first.rows if all(group.row(row.row.name) for group in results)]
    over = "the seeds" if len(results) == 1 else count(len(results), "test set")
    heads = [f"over {over}", "seeds", *(f"mean test {metric.label}" for metric in SCORES), "mean recall"]
    heads += ["worst macro F1"] * (len(results) > 1)
    lines = [_means(name, results, settings) for name in names]
    note = _MEANS_NOTE
    if base is not None:
        found = {name: _differences(name, base.row.name, results, settings) for name in names if name != base.row.name}
        compared = {name: each for name, each in found.items() if not isinstance(each, str)}
        corrected = _corrected({name: each["macro_f1"].p_value for name, each in compared.items()})
        heads += [f"{metric.label}, difference" for metric in SCORES]
        heads += [f"p of the macro F1, corrected for {len(corrected)} rows"] * bool(corrected)
        for name, line in zip(names, lines, strict=True):
            line.extend([*_difference_cells(found.get(name)), *[corrected.get(name, NOTHING)] * bool(corrected)])
        note += _DIFFERENCES_NOTE.format(baseline=base.row.label) + _HOLM_NOTE * bool(corrected)
    return f"{table(heads, lines)}\n\n{note}"


def _corrected(p_values: Mapping[str, float | None]) -> dict[str, str]:
    """Return the text of each p-value as corrected by Holm's method; nothing where fewer than two are known."""
    known = {name: p for name, p in p_values.items() if p is not None}
    if len(known) < 2:
        return {}
    return {name: f"{p:.3g}" for name, p in zip(known, holm(list(known.values())), strict=True)}


def _means(name: str, results: Sequence[GroupResult], settings: Settings) -> list[str]:
    """Return the cells of a row up to its differences."""
    rows = [row for result in results if (row := result.row(name)) is not None]
    label, several = rows[0].row.label, len(results) > 1
    if not all(row.test for row in rows):
        return [label, NOT_RUN, *[NOTHING] * (len(SCORES) + 1 + several)]
    seeds = [len(row.runs) for row in rows]
    fewest, most = min(seeds), max(seeds)
    cells = [label, str(most) if fewest == most else f"{fewest} to {most}", *_scores(rows, settings), _recalls(rows)]
    if several:
        worst = min(zip(results, rows, strict=True), key=lambda each: each[1].test["macro_f1"].value)
        cells.append(f"{worst[1].test['macro_f1'].value:.3f} ({worst[0].group.title})")
    return cells


def _scores(rows: Sequence[RowResult], settings: Settings) -> list[str]:
    """Return the mean of each of SCORES, with its interval where all seeds of a set have the same images."""
    tables = [[tested for run in row.runs.values() if (tested := run.test_images) is not None] for row in rows]
    intervals: Mapping[str, Interval | None] = {}
    if all(each and have_same_images(each) for each in tables):
        intervals = interval_over_sets(tables, resamples=settings.resamples, seed=settings.seed)
    means = {metric.name: sum(row.test[metric.name].value for row in rows) / len(rows) for metric in SCORES}
    return [interval_text(mean, intervals.get(name)) for name, mean in means.items()]


def _recalls(rows: Sequence[RowResult]) -> str:
    """Return the mean recall of each class over the sets of the mean over the seeds."""
    sets = [[run.metrics["per_class"] for run in row.runs.values() if run.metrics] for row in rows]
    means = {
        name: sum(sum(found[name]["recall"] for found in each) / len(each) for each in sets) / len(sets)
        for name in sets[0][0]
    }
    return ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())


def _difference_cells(found: Mapping[str, Difference] | str | None) -> list[str]:
    """Return the cells of differences, of what stands in their place, or of the baseline, which has None."""
    if found is None:
        return ["baseline"] * len(SCORES)
    if isinstance(found, str):
        return [found, *[NOTHING] * (len(SCORES) - 1)]
    return [difference_text(found[metric.name]) for metric in SCORES]


def _differences(
    name: str, base: str, results: Sequence[GroupResult], settings: Settings
) -> dict[str, Difference] | str:
    """Return the differences to the baseline, or what stands in their place."""
    pairs = [_pairs_of(result, name, base) for result in results]
    if not all(pairs):
        return NOTHING
    if not all(have_same_images([table for pair in each for table in pair]) for each in pairs):
        return _OTHER_IMAGES
    return compare_over_sets(pairs, resamples=settings.resamples, seed=settings.seed)


def _pairs_of(result: GroupResult, name: str, base: str) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Return the predictions of the test images by a row and by the baseline, of each seed that both have."""
    ours, theirs = result.row(name), result.row(base)
    if ours is None or theirs is None:
        return []
    pairs = [(run.test_images, theirs.runs[seed].test_images) for seed, run in ours.runs.items() if seed in theirs.runs]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _all_folds(result: GroupResult, settings: Settings) -> str:
    """Return the scores of all test images, each predicted by the model of the row that held it out."""
    tables = [
        tested for row in result.rows for run in list(row.runs.values())[:1] if (tested := run.test_images) is not None
    ]
    if len(tables) < len(result.rows):
        return f"All rows together: {len(tables)} of {len(result.rows)} were run."
    ids = list(chain.from_iterable(tested["image_id"] for tested in tables))
    if len(set(ids)) < len(ids):
        return "All rows together: not computed, because an image is in the test sets of two rows."
    figures = pooled(tables, settings)
    heads = ["all rows together", *(f"test {metric.label}" for metric in SCORES)]
    return table(
        heads, [[f"{len(ids):,} images, each once", *(figure_text(figures.get(metric.name)) for metric in SCORES)]]
    )


def _proxy(cheap: GroupResult, full: GroupResult) -> str:
    """Return the rank correlation of the cheap and the full runs."""
    rows = []
    for row in full.rows:
        other = cheap.row(row.row.name)
        if other is not None and "macro_f1" in other.validation and "macro_f1" in row.validation:
            rows.append((row.row.label, other.validation["macro_f1"].value, row.validation["macro_f1"].value))
    if len(rows) < 3:
        return f"Rank correlation of proxy and full run: {len(rows)} of {len(full.rows)} rows have both runs."
    values = [[row[1] for row in rows], [row[2] for row in rows]]
    if any(len(set(each)) == 1 for each in values):
        return "Rank correlation of proxy and full run: undefined, because all rows have the same value."
    tau, rho = kendalltau(values[0], values[1]), spearmanr(values[0], values[1])
    both = table(
        ["row", "proxy, validation macro F1", "full, validation macro F1"],
        [[label, f"{a:.3f}", f"{b:.3f}"] for label, a, b in rows],
    )
    return (
        f"{both}\n\nRank correlation of proxy and full run over {len(rows)} rows: Kendall's tau {tau.statistic:.2f} "
        f"(p = {tau.pvalue:.3f}), Spearman's rho {rho.statistic:.2f}."
    )


def _pairwise(result: GroupResult, settings: Settings) -> str:
    """Compare each row with the baseline on the test images, seed by seed."""
    base = result.row(result.group.baseline or "")
    if base is None:
        return ""
    rows = [
        [row.row.label, str(seed), *_against(run, base.runs[seed], settings)]
        for row in result.rows
        for seed, run in row.runs.items()
        if row is not base and seed in base.runs
    ]
    if not rows:
        return f"Each row against {base.row.label} on the test images: {NOT_RUN}."
    heads = [f"against: {base.row.label}", "seed", *(f"test {metric.label}, difference" for metric in SCORES)]
    against = table([*heads, "correct only in row, only in baseline", "McNemar p"], rows)
    return f"{against}\n\nPaired bootstrap over patients. {MCNEMAR_NOTE}"


def _against(run: RunRecord, baseline: RunRecord, settings: Settings) -> list[str]:
    """Return the cells of one comparison on the test images."""
    ours, theirs = run.test_images, baseline.test_images
    if ours is None or theirs is None or not have_same_images([ours, theirs]):
        return [_OTHER_IMAGES, *[NOTHING] * (len(SCORES) + 1)]
    found = compare(ours, theirs, resamples=settings.resamples, seed=settings.seed)
    sides = f"{found.mcnemar.first_alone_right} and {found.mcnemar.second_alone_right}"
    differences = [difference_text(found.differences[metric.name]) for metric in SCORES]
    return [*differences, sides, f"{found.mcnemar.p_value:.3g}"]
