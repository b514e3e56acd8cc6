"""The one Jinja environment: how every page and card is rendered, and how it writes numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from cxr.evaluation.bootstrap import Interval

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, content: Mapping[str, Any], *, folder: Path = TEMPLATES) -> str:
    """Return a template filled with content; the same content gives the same text.

    HTML templates (`.html.j2`) escape what they are given, Markdown does not: names of sources are checked by
    params.yaml.

    Args:
        template: file name in `folder`.
        content: by the names that the template uses.
        folder: of the template; it may include those of TEMPLATES.

    Raises:
        jinja2.UndefinedError: the template uses a name that `content` lacks.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(_FILTERS)
    return environment.get_template(template).render(content)


def _value(number: float | None) -> str:
    return "not defined" if number is None else f"{number:.3f}"


def _interval(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"


def _signed(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:+.3f} to {interval.high:+.3f}"


def _score(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Return a score with its interval; float() is what makes Jinja's Undefined raise its own error."""
    if value is None:
        return "not defined"
    return f"{float(value):.3f}" + ("" if interval is None else f" ({_interval(interval)})")


def _cell(value: object) -> str:
    """Return a value for a cell of a Markdown table, where a bar would end it."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _count(number: int) -> str:
    return f"{int(number):,}"


def _percent(share: float) -> str:
    return f"{float(share):.1%}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


_FILTERS = {
    "value": _value,
    "interval": _interval,
    "signed": _signed,
    "score": _score,
    "cell": _cell,
    "count": _count,
    "duration": _duration,
    "percent": _percent,
}
