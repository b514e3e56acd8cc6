"""The report's figures, each a function from its numbers to SVG text (cxr/reporting/drawing.py).

Classes keep one colour and one dash pattern everywhere. Bars, cells, dots and points of a curve show their numbers
under the pointer.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr.common.classes import LABELS
from cxr.evaluation.headline import BY_NAME
from cxr.reporting.drawing import (
    COLOURS,
    GREEN,
    INK,
    ORANGE,
    PAPER_BLUE,
    hover,
    hover_at,
    in_our_style,
    new_figure,
    some,
    to_svg,
    unit_square,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cxr.evaluation.calibration import ReliabilityBin
    from cxr.evaluation.metrics import RocCurve
    from cxr.evaluation.rates import Floats, Ints

_DASHES: dict[str, Any] = dict(zip(LABELS, ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1))), strict=True))


@in_our_style
def training_curves(curves: Mapping[str, Sequence[float]], *, best_epoch: int) -> str:
    """Draw loss, and accuracy with macro F1, over epochs; the epoch whose weights were kept is marked.

    Args:
        curves: columns of curves.csv: epoch, loss and accuracy of train and validation, validation_macro_f1.
        best_epoch: as counted in `epoch`.
    """
    figure, (loss, score) = new_figure(width=8.4, height=3.2, columns=2)
    marker = "o" if len(curves["epoch"]) < 40 else ""
    for name, label, colour, style in (
        ("train_loss", "training", PAPER_BLUE, "-"),
        ("validation_loss", "validation", ORANGE, (0, (5, 1.5))),
    ):
        loss.plot(curves["epoch"], curves[name], color=colour, linestyle=style, marker=marker, ms=3.5, label=label)
    for name, label, colour, style in (
        ("train_accuracy", "training", PAPER_BLUE, "-"),
        ("validation_accuracy", "validation", ORANGE, (0, (5, 1.5))),
        ("validation_macro_f1", "validation, macro F1", GREEN, (0, (1, 1))),
    ):
        score.plot(curves["epoch"], curves[name], color=colour, linestyle=style, marker=marker, ms=3.5, label=label)
    for axes, title in ((loss, "Loss"), (score, "Accuracy")):
        axes.axvline(best_epoch, color=INK, linewidth=0.8, linestyle=":", label=f"kept: epoch {best_epoch}")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend()
    loss.set_ylim(bottom=0)
    score.set_ylim(top=1.0)
    return to_svg(figure, "Training curves: loss, accuracy and macro F1 over epochs")


@in_our_style
def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Draw counts (C, C) of actual by predicted class, each with its share of the row."""
    matrix = np.asarray(counts, dtype=np.float64)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, (axes,) = new_figure(width=1.4 + 1.05 * len(classes), height=0.9 + 0.95 * len(classes))
    for (row, column), share in np.ndenumerate(shares):
        count, total = int(matrix[row, column]), int(matrix[row].sum())
        _cell(axes, row, column, count=count, share=float(share))
        hover(axes.patches[-1], f"{classes[row]} called {classes[column]}: {count} of {total}, {share:.1%}")
    axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5))
    axes.set_aspect("equal")
    axes.set(xticks=range(len(classes)), yticks=range(len(classes)), xlabel="predicted", ylabel="actual")
    axes.set_xticklabels(classes)
    named = [f"{name}\nn = {int(n):,}" for name, n in zip(classes, matrix.sum(axis=1), strict=True)]
    axes.set_yticklabels(named, rotation=90, va="center", ma="center")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return to_svg(figure, "Confusion matrix: images by actual and predicted class, with the share of each actual class")


def _cell(axes: Axes, row: int, column: int, *, count: int, share: float) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    ground = colormaps["Blues"](share)
    dark = 0.2126 * ground[0] + 0.7152 * ground[1] + 0.0722 * ground[2] < 0.55
    colour = "#ffffff" if dark else "#10202f"
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ground, linewidth=0))
    axes.text(column, row - 0.08, f"{count}", ha="center", color=colour, fontsize=13)
    axes.text(column, row + 0.25, f"{share:.0%}", ha="center", color=colour, fontsize=9)


@in_our_style
def roc(
    curves: Mapping[str, RocCurve], per_class: Mapping[str, Mapping[str, Any]], ci95: Mapping[str, Mapping[str, Any]]
) -> str:
    """Draw the ROC curve of each class against the rest, with its images and its area in the legend.

    Args:
        curves: by class.
        per_class: `support` and `auroc` of each class, as in metrics.json.
        ci95: `auroc` of each class, its interval or None.
    """
    figure, (axes,) = new_figure(width=4.3, height=4.1)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="chance")
    for name, curve in curves.items():
        interval = ci95[name]["auroc"]
        limits = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        label = f"{name}, n = {per_class[name]['support']:,}\nAUC {per_class[name]['auroc']:.3f}{limits}"
        x, y = curve.false_positive_rate, curve.true_positive_rate
        axes.plot(x, y, color=COLOURS.get(name), linestyle=_DASHES.get(name, "-"), label=label)
    unit_square(axes, "false positive rate (1 - specificity)", "true positive rate (sensitivity)")
    axes.legend(loc="lower right", fontsize=9)
    return to_svg(figure, "ROC curves, each class against the rest")


@in_our_style
def reliability(before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin]) -> str:
    """Draw accuracy over confidence after temperature scaling, before it unless that is empty, and the images.

    The intervals are exact 95% ones (Clopper and Pearson), of images taken as independent.
    """
    figure, (axes, histogram) = new_figure(width=4.3, height=4.9, rows=2, heights=(3.3, 1))
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="perfect calibration")
    for table, label, colour, style, marker in (
        (before, "before scaling", ORANGE, (0, (5, 1.5)), "s"),
        (after, "after scaling", PAPER_BLUE, "-", "o"),
    ):
        if not table:
            continue
        x, y = [row.confidence for row in table], [row.accuracy for row in table]
        axes.plot(x, y, color=colour, linestyle=style, marker=marker, ms=4.5, label=label)
    for row in after:
        low, high = _exact_interval(round(row.accuracy * row.count), row.count)
        axes.plot((row.confidence, row.confidence), (low, high), color=PAPER_BLUE, linewidth=1, marker="_", ms=5)
        told = f"probability {row.confidence:.2f}: {row.accuracy:.1%} of {row.count} images right"
        hover(axes.lines[-1], f"{told} ({low:.1%} to {high:.1%})")
        (bar,) = histogram.bar(row.confidence, row.count, width=0.03, color=PAPER_BLUE)
        hover(bar, told)
    unit_square(axes, "", "share that is right", equal=False)
    axes.legend(loc="lower right")
    histogram.set(xlim=(0, 1), xlabel="probability of the predicted class", ylabel="images")
    histogram.grid(alpha=0.25, linewidth=0.6, axis="y")
    return to_svg(figure, "Reliability: share of right predictions over the predicted probability")


@in_our_style
def probability_histogram(labels: Ints, probabilities: Floats, classes: Sequence[str]) -> str:
    """Draw, for each actual class, how much probability (N, C) its images gave to that class."""
    figure, axes = new_figure(width=8.4, height=2.4, columns=len(classes))
    edges = np.linspace(0, 1, 21)
    for c, (name, panel) in enumerate(zip(classes, axes, strict=True)):
        given = probabilities[labels == c, c]
        counts, _, bars = panel.hist(given, bins=edges, color=COLOURS.get(name, PAPER_BLUE))
        for low, count, bar in zip(edges, counts, bars, strict=False):
            hover(bar, f"{low:.2f} to {low + 0.05:.2f}: {count:.0f} of {len(given)} images")
        panel.set(title=f"{name}, n = {len(given):,}", xlim=(0, 1), xlabel="probability of the true class")
        panel.grid(alpha=0.25, linewidth=0.6, axis="y")
    axes[0].set_ylabel("images")
    return to_svg(figure, "Probability given to the true class, images of each class")


@in_our_style
def scores_with_intervals(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw accuracy and macro AUROC, a bar a row, with 95% intervals where there are any.

    Args:
        rows: title -> accuracy, macro_auroc (None where undefined) and ci95 with [low, high] or None of each.
    """
    figure, axes = new_figure(width=8.4, height=0.7 + 0.42 * len(rows), columns=2)
    positions = np.arange(len(rows))
    for panel, name, title, colour in (
        (axes[0], "accuracy", BY_NAME["accuracy"].title, PAPER_BLUE),
        (axes[1], "macro_auroc", BY_NAME["macro_auroc"].title, ORANGE),
    ):
        values = [row[name] or 0 for row in rows.values()]
        bars = panel.barh(positions, values, height=0.6, color=colour)
        for position, row, bar in zip(positions, rows.values(), bars, strict=True):
            interval = row["ci95"][name]
            limits = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
            hover(bar, f"{title} {row[name] or 0:.3f}{limits}")
            if interval is not None:
                panel.plot(interval, (position, position), color=INK, linewidth=1.4, marker="|", ms=7)
        panel.set(title=title, xlim=(0, 1), yticks=positions, yticklabels=list(rows) if panel is axes[0] else [])
        panel.invert_yaxis()
        panel.tick_params(axis="y", length=0)
        panel.grid(alpha=0.25, linewidth=0.6, axis="x")
    axes[1].axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
    return to_svg(figure, "Accuracy and macro AUROC of each view of the images, with 95% intervals")


@in_our_style
def abstention(curve: Sequence[Mapping[str, Any]], referral: Mapping[str, Any] | None) -> str:
    """Draw accuracy over coverage with its 95% band; where images are referred, the share that is kept is marked.

    Args:
        curve: points with coverage, accuracy and ci95 ([low, high] or None), by rising coverage.
        referral: with coverage.value and accuracy_on_kept.value, or None.
    """
    figure, (axes,) = new_figure(width=4.3, height=3.6)
    x = [point["coverage"] for point in curve]
    axes.plot(x, [point["accuracy"] for point in curve], color=PAPER_BLUE, label="kept images")
    known = [point for point in curve if point["ci95"] is not None]
    low, high = ([point["ci95"][side] for point in known] for side in (0, 1))
    axes.fill_between([point["coverage"] for point in known], low, high, color=PAPER_BLUE, alpha=0.18, linewidth=0)
    if referral is not None and referral["accuracy_on_kept"]["value"] is not None:
        kept, accuracy = referral["coverage"]["value"], referral["accuracy_on_kept"]["value"]
        axes.plot([kept], [accuracy], color=ORANGE, marker="o", ms=7, linestyle="", label="referral threshold")
        hover(axes.lines[-1], f"referral threshold: {kept:.0%} answered, {accuracy:.1%} of them right")
    for point in some(curve):
        limits = "" if point["ci95"] is None else f" ({point['ci95'][0]:.1%} to {point['ci95'][1]:.1%})"
        told = f"{point['coverage']:.0%} answered: {point['accuracy']:.1%} of them right{limits}"
        hover_at(axes, point["coverage"], point["accuracy"], told)
    axes.set(
        xlim=(0, 1.01), ylim=(None, 1.01), xlabel="share of images that the model answers", ylabel="share that is right"
    )
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(loc="lower left")
    return to_svg(figure, "Accuracy over the share of images that the model answers, the most confident first")


@in_our_style
def decision_curves(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the net benefit of acting on the model, on all and on nobody, one panel per decision.

    Args:
        curves: decision -> thresholds, model, treat_all.
    """
    figure, panels = new_figure(width=4.2 * len(curves), height=3.4, columns=len(curves))
    for (name, curve), axes in zip(curves.items(), panels, strict=True):
        x = curve["thresholds"]
        axes.plot(x, curve["treat_all"], color=ORANGE, linestyle=(0, (5, 1.5)), label="act on all")
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=":", label="act on nobody")
        axes.plot(x, curve["model"], color=PAPER_BLUE, label="act on the model")
        for at, model, treat_all in some(list(zip(x, curve["model"], curve["treat_all"], strict=True))):
            told = f"acting from {at:.0%}: net benefit {model:.3f} with the model, {treat_all:.3f} acting on all"
            hover_at(axes, at, model, told)
        top = max(*curve["model"], *curve["treat_all"], 0.01)
        axes.set(title=name, xlim=(0, 1), ylim=(-0.25 * top, 1.1 * top), xlabel="probability from which to act")
        axes.grid(alpha=0.25, linewidth=0.6)
    panels[0].set_ylabel("net benefit an image")
    panels[0].legend(loc="lower left")
    return to_svg(figure, "Decision curves: net benefit over the probability from which to act")


@in_our_style
def operating_points(curve: RocCurve, points: Sequence[Mapping[str, Any]]) -> str:
    """Draw the ROC curve of pneumonia against normal with the result of each chosen threshold and its intervals.

    Args:
        curve: of the test images.
        points: with target_specificity, and sensitivity and specificity with value and ci95 ([low, high] or None).
    """
    figure, (axes,) = new_figure(width=4.3, height=4.1)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="chance")
    axes.plot(curve.false_positive_rate, curve.true_positive_rate, color=PAPER_BLUE, label="pneumonia")
    for point, marker in zip(points, itertools.cycle("osD^v")):
        sensitivity, specificity = point["sensitivity"], point["specificity"]
        if sensitivity["value"] is None or specificity["value"] is None:
            continue
        x, y = 1 - specificity["value"], sensitivity["value"]
        label = f"chosen for specificity {point['target_specificity']:.2f}"
        axes.plot([x], [y], color=ORANGE, marker=marker, ms=7, linestyle="", label=label)
        hover(axes.lines[-1], f"sensitivity {y:.3f}, specificity {1 - x:.3f}")
        if sensitivity["ci95"] is not None:
            axes.plot([x, x], sensitivity["ci95"], color=ORANGE, linewidth=1.2)
        if specificity["ci95"] is not None:
            axes.plot([1 - limit for limit in specificity["ci95"]], [y, y], color=ORANGE, linewidth=1.2)
    unit_square(axes, "false positive rate (1 - specificity)", "true positive rate (sensitivity)")
    axes.legend(loc="lower right")
    return to_svg(figure, "ROC curve of pneumonia against normal, with the operating points")


@in_our_style
def learning_curve(points: Sequence[tuple[int, float, float | None, float | None]], *, images: str) -> str:
    """Draw accuracy over the number of training images.

    Args:
        points: training images, accuracy, and the ends of its interval where there is one.
        images: on which images, "test" or "validation".
    """
    figure, (axes,) = new_figure(width=5.6, height=3.6)
    trained, accuracy = [point[0] for point in points], [point[1] for point in points]
    for n, _, low, high in points:
        if low is not None and high is not None:
            axes.plot((n, n), (low, high), color=PAPER_BLUE, linewidth=1.2, marker="_", ms=7)
    axes.plot(trained, accuracy, color=PAPER_BLUE, marker="o", ms=4.5)
    axes.set(xscale="log", xlabel="training images", ylabel=f"accuracy on the {images} images", xticks=trained)
    axes.set_xticklabels([f"{n:,}" for n in trained])
    axes.minorticks_off()
    axes.grid(alpha=0.25, linewidth=0.6)
    return to_svg(figure, f"Learning curve: accuracy on the {images} images over the number of training images")


def _exact_interval(hits: int, of: int) -> tuple[float, float]:
    """Return the exact 95% interval of a share (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, of).proportion_ci(confidence_level=0.95, method="exact")
    return float(interval.low), float(interval.high)
