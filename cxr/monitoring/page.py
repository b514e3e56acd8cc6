"""The page that `monitor` writes: windows in order of time, what moved and how far, in plain words.

It needs nothing else, neither network nor script, and shows no image: examples are named by their path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cxr.common.notices import NOT_CLINICAL
from cxr.monitoring.drift import FAILED, SIGNALS, Window

_WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter in contrast", "stronger in contrast"),
    "dark_share": ("with less black", "with more black"),
    "bright_share": ("with less white", "with more white"),
    "sharpness": ("less sharp", "sharper, or noisier"),
    "border": ("darker at the border", "brighter at the border"),
    "left_right": ("brighter on the left", "brighter on the right"),
    "feature_distance": ("nearer to what the model knows", "stranger to the model"),
    "confidence": ("answered with less confidence", "answered with more confidence"),
}
_MIDDLE = 0.2  # spreads: a median that moved by less than this did not move; the images are otherwise distributed


@dataclass(frozen=True)
class MonitorPage:
    """What the page shows.

    version           of the champion
    drift             whether the rule says so
    rule              in words
    windows           the last ones, the oldest first
    limits            by signal
    usual_shares      of the predicted classes among the reference's images
    reference_images   how many there are
    waiting           images scored since the last whole window, not judged yet
    since             a rebuild was started for windows up to this time; "" when none was
    """

    version: str
    drift: bool
    rule: str
    window_images: int
    windows: Sequence[Window]
    limits: Mapping[str, float]
    usual_shares: Mapping[str, float]
    reference_images: int
    waiting: int
    since: str

    def headline(self) -> str:
        """Say the answer in a sentence."""
        if not self.windows:
            return (
                f"Nothing to judge yet: {self.waiting} of {self.window_images} images of the first window are scored."
            )
        alarms = sum(window.alarm for window in self.windows)
        tail = f"{alarms} of {len(self.windows)} windows are alarms; the rule is {self.rule}."
        return ("The images have changed: " if self.drift else "No drift: ") + tail

    def explain(self, window: Window) -> list[str]:
        """Say in plain words what moved in a window, the furthest first."""
        return [_explain(signal, window, self) for signal in window.speaking]


def render_page(page: MonitorPage) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("monitor.html.j2").render(
        page=page, signals=(*SIGNALS, FAILED), not_clinical=NOT_CLINICAL
    )


def to_markdown(page: MonitorPage) -> str:
    """Return the windows as a table in markdown."""
    lines = [f"**{page.headline()}**", "", "| window | scored from | to | distance / limit | what moved |"]
    lines.append("|---|---|---|---|---|")
    lines += [
        f"| {window.number} | {window.first[:16]} | {window.last[:16]} | {window.score:.2f} "
        f"| {'; '.join(page.explain(window)) or 'nothing'} |"
        for window in page.windows
    ]
    return "\n".join(lines)


def _explain(signal: str, window: Window, page: MonitorPage) -> str:
    distance = f"distance {window.distances[signal]:.2f}, limit {page.limits[signal]:.2f}"
    if signal == FAILED:
        return f"{window.distances[FAILED]:.0%} of the images could not be read ({distance})"
    if signal == "class_shares":
        moved = {name: window.shares[name] - usual for name, usual in page.usual_shares.items()}
        name = max(moved, key=lambda name: abs(moved[name]))
        usual = page.usual_shares[name]
        return f"other answers: {window.shares[name]:.0%} {name} instead of {usual:.0%} ({distance})"
    move = window.moves[signal]
    if abs(move) < _MIDDLE:
        return f"{signal.replace('_', ' ')} is spread otherwise about the same middle ({distance})"
    return f"images are {_WORDS[signal][move > 0]}: the median moved by {abs(move):.1f} spreads ({distance})"
