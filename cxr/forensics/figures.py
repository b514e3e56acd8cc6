"""The figures of an examination, in the style of the report's."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cxr.forensics.style_probes import SCOPES
from cxr.reporting.drawing import COLOURS, INK, ORANGE, PAPER_BLUE, PURPLE, in_our_style, new_figure, to_svg

_SCOPE_COLOURS = dict(zip(SCOPES, (INK, PAPER_BLUE, ORANGE, PURPLE), strict=True))
_SCOPE_MARKERS = dict(zip(SCOPES, "osD^", strict=True))


@in_our_style
def agreement_along_order(sequences: Sequence[Mapping[str, Any]]) -> str:
    """Draw the agreement of each sequence block by block, and its runs between change points.

    Args:
        sequences: as in forensics.json.
    """
    figure, panels = new_figure(width=8.4, height=0.4 + 2.0 * len(sequences), rows=len(sequences))
    for sequence, axes in zip(sequences, panels, strict=True):
        blocks, points = sequence["blocks"], sequence["change_points"]
        middle = [(block["first"] + block["last"]) / 2 for block in blocks]
        colour = COLOURS.get(sequence["label"], PAPER_BLUE)
        axes.plot(middle, [block["agreement"] for block in blocks], "o", ms=4, color=colour, label="block")
        for x, block in zip(middle, blocks, strict=True):
            if block["interval"] is not None:
                axes.plot((x, x), block["interval"], color=colour, linewidth=1)
        edges = [blocks[0]["first"], *(point["number"] for point in points), blocks[-1]["last"]]
        rates = [points[0]["before"], *(point["after"] for point in points)] if points else []
        for (left, right), rate in zip(pairwise(edges), rates, strict=False):
            axes.plot((left, right), (rate, rate), color=INK, linewidth=1.4)
        for point in points:
            axes.axvspan(*point["interval"], color=ORANGE, alpha=0.18, linewidth=0)
            axes.axvline(point["number"], color=ORANGE, linewidth=1, linestyle=":")
        axes.set(ylim=(0, 1.02), title=f"{sequence['label']}, series {sequence['series']}", ylabel="agreement")
        axes.grid(alpha=0.25, linewidth=0.6, axis="y")
    panels[-1].set_xlabel("acquisition number")
    return to_svg(
        figure,
        "Share of labels that out-of-fold predictions agree with along the acquisition numbers: blocks with 95% "
        "intervals, runs between change points, and the change points with their intervals",
    )


@in_our_style
def style_probes(probes: Sequence[Mapping[str, Any]]) -> str:
    """Draw the AUROC of each pair of classes: a row a family, a marker a scope.

    Args:
        probes: as in forensics.json.
    """
    pairs = list(dict.fromkeys(tuple(probe["pair"]) for probe in probes))
    families = list(dict.fromkeys(probe["family"] for probe in probes))
    figure, panels = new_figure(width=2.8 * len(pairs) + 0.8, height=1.2 + 0.45 * len(families), columns=len(pairs))
    for pair, axes in zip(pairs, panels, strict=True):
        for scope, shift in zip(SCOPES, np.linspace(-0.24, 0.24, len(SCOPES)), strict=True):
            chosen = [p for p in probes if tuple(p["pair"]) == pair and p["scope"] == scope and p["auroc"] is not None]
            heights = [families.index(probe["family"]) + shift for probe in chosen]
            for height, probe in zip(heights, chosen, strict=True):
                if probe["interval"] is not None:
                    axes.plot(probe["interval"], (height, height), color=_SCOPE_COLOURS[scope], linewidth=1)
            axes.plot(
                [probe["auroc"] for probe in chosen],
                heights,
                _SCOPE_MARKERS[scope],
                ms=4,
                color=_SCOPE_COLOURS[scope],
                label=scope.replace("_", " "),
            )
        axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
        axes.set(title=" and ".join(pair), xlim=(0.3, 1.01), xlabel="AUROC", yticks=range(len(families)))
        axes.set_yticklabels(families if axes is panels[0] else [])
        axes.set_ylim(len(families) - 0.5, -0.5)
        axes.grid(alpha=0.25, linewidth=0.6, axis="x")
    panels[0].legend(loc="lower left", fontsize=7)
    return to_svg(figure, "AUROC of telling two classes apart from each kind of style, with 95% intervals, by scope")
