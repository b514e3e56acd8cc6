"""Formatting of figures and tables in Markdown."""

from collections.abc import Iterable, Sequence

from cxr.evaluation.bootstrap import Interval
from cxr.evaluation.comparison import Difference
from cxr.study.results import Figure

NOT_RUN = "not run"
NOTHING = "-"


def figure_text(figure: Figure | None) -> str:
    """Return a figure with its interval or range, or NOTHING."""
    if figure is None:
        return NOTHING
    return f"{figure.value:.3f}{_between(figure.low, figure.high)}"


def interval_text(value: float, interval: Interval | None) -> str:
    """Return a value and, if it has one, its interval."""
    return f"{value:.3f}" + ("" if interval is None else _between(interval.low, interval.high))


def difference_text(difference: Difference) -> str:
    """Return a difference with its sign and interval."""
    interval = difference.interval
    return signed_text(difference.value, *((interval.low, interval.high) if interval else (None, None)))


def signed_text(value: float, low: float | None, high: float | None) -> str:
    """Return a value with its sign and, if it has one, its interval."""
    return f"{value:+.3f}" + ("" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})")


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"


def distinct(texts: Iterable[str]) -> str:
    """Return each distinct text once, in order, or NOTHING."""
    return " / ".join(dict.fromkeys(texts)) or NOTHING


def count(n: int, noun: str) -> str:
    """Return "1 run", "2 runs"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def bullets(*items: str) -> str:
    """Return a bullet list."""
    return "\n".join(f"- {item}" for item in items)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; bars inside cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
