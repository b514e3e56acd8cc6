"""How figures are drawn: as SVG text without a size of its own, so that a page can scale it.

Lines and letters take the colour of the page's text (`currentColor`), so one figure serves a light and a dark
page. Classes keep one colour everywhere, near those of Okabe and Ito, which colour-blind readers tell apart; each has
a contrast of 3 or more on both pages (WCAG 2.2, 1.4.11). The same data give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cxr.common.classes import LABELS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b2a3a"  # becomes currentColor
PAPER_BLUE = "#0072b2"
ORANGE = "#d55e00"
GREEN = "#009e73"
PURPLE = "#b5609a"
COLOURS: dict[str, str] = dict(zip(LABELS, (PAPER_BLUE, ORANGE, GREEN, PURPLE), strict=True))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cxr",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}

_HOVER_POINTS = 25  # on a line
_NEAR = 12  # diameter in points of what reacts to the pointer
_HOVER = "hover:"  # begins the identity of an artist whose rest is a text to show

P = ParamSpec("P")
Point = TypeVar("Point")


def in_our_style(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw with _STYLE, and leave matplotlib's settings as they were."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_figure(
    *, width: float, height: float, columns: int = 1, rows: int = 1, heights: Sequence[float] | None = None
) -> tuple[Figure, list[Any]]:
    """Return a figure, size in inches, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    return figure, list(axes.ravel())


def unit_square(axes: Axes, x_label: str, y_label: str, *, equal: bool = True) -> None:
    """Set the limits, labels and grid of axes on which shares stand."""
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25, linewidth=0.6)
    if equal:
        axes.set_aspect("equal")


def hover(artist: Artist, text: str) -> None:
    """Show a text while the pointer is on an artist, by the title that `to_svg` gives it."""
    artist.set_gid(f"{_HOVER}{text}")


def hover_at(axes: Axes, x: float, y: float, text: str) -> None:
    """Show a text while the pointer is near a point of a line; nothing is drawn."""
    hover(axes.plot([x], [y], color=INK, marker="o", ms=_NEAR, linestyle="", alpha=0)[0], text)


def some(points: Sequence[Point]) -> list[Point]:
    """Return points that are evenly spread over a line, as many as can be told apart under a pointer."""
    step = max(1, round(len(points) / _HOVER_POINTS))
    return list(points[::step])


def to_svg(figure: Figure, description: str) -> str:
    """Return the figure as SVG for a page: scalable, in the page's text colour, with a description for readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Each figure numbers its parts from 1, so they are not unique on a page.
    svg = re.sub(r' id="[A-Za-z0-9.]+_[0-9]+"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's own
    svg = re.sub(rf'<g id="{_HOVER}([^"]*)">', r"<g><title>\1</title>", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def standing_alone(svg: str) -> str:
    """Return a figure for a separate file: dark on white, since no page provides its colours."""
    return svg.replace("currentColor", INK).replace("<svg", '<svg style="background: #ffffff"', 1)
