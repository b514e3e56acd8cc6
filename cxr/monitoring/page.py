"""The page of `tasks.monitor`: windows in order of time, and which signals shifted and how far.

The page is self-contained, without network access and scripts. It shows no images: examples are named by their path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr.common.notices import NOT_CLINICAL, SYNTHETIC
from cxr.monitoring.agreement import Agreement
from cxr.monitoring.drift import FAILED, SIGNALS, Window
from cxr.reporting.front_page import FrontPage, with_contents
from cxr.reporting.templating import render

_TEMPLATES = Path(__file__).parent / "templates"

_WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter in contrast", "stronger in contrast"),
    "dark_share": ("with less black", "with more black"),
    "bright_share": ("with less white", "with more white"),
    "sharpness": ("less sharp", "sharper, or noisier"),
    "border": ("darker at the border", "brighter at the border"),
    "left_right": ("brighter on the left", "brighter on the right"),
    "feature_distance": ("closer to the reference in feature space", "further from the reference in feature space"),
    "confidence": ("predicted with less confidence", "predicted with more confidence"),
}
_NO_SHIFT = 0.2  # in spreads: with a smaller shift of the median, only the distribution about it has changed


@dataclass(frozen=True)
class MonitorPage:
    """The content of the page.

    version           of the champion
    drift             result of the rule
    rule              as text
    window_images     number of images in a window
    windows           the last ones, the oldest first
    limits            by signal
    usual_shares      of the predicted classes among the reference's images
    reference_images  their number
    waiting           number of images scored since the last complete window
    agreement         of readers with the version, by month
    since             end of the windows that a rebuild was started for; "" if there was none
    origin            date, commit, version and role of the model, as the registry knows them
    synthetic         the model was trained on synthetic images
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
    origin: Mapping[str, str]
    agreement: Sequence[Agreement] = ()
    synthetic: bool = False

    def headline(self) -> str:
        """Return the result as a sentence."""
        if not self.windows:
            return f"No window yet: {self.waiting} of {self.window_images} images of the first window are scored."
        alarms = sum(window.alarm for window in self.windows)
        tail = f"{alarms} of {len(self.windows)} windows are alarms; the rule is {self.rule}."
        return ("The images have changed: " if self.drift else "No drift: ") + tail

    def explain(self, window: Window) -> list[str]:
        """Return a sentence for each exceeded signal of a window, the furthest first."""
        return [_explain(signal, window, self) for signal in window.exceeded]


def render_page(page: MonitorPage) -> str:
    """Return the page as HTML."""
    front = _front_page(page)
    content = {
        "page": page,
        "front": front,
        "signals": (*SIGNALS, FAILED),
        "not_clinical": NOT_CLINICAL,
        "synthetic_notice": SYNTHETIC,
    }
    return with_contents(render("monitor.html.j2", content, folder=_TEMPLATES))


def _front_page(page: MonitorPage) -> FrontPage:
    windows, alarms = page.windows, [window for window in page.windows if window.alarm]
    shifts = page.explain(alarms[-1]) if alarms else []
    scored = f"{len(windows)} windows of {page.window_images:,} images in the order in which they were scored"
    last = windows[-1].last[:16].replace("T", " ") if windows else "none yet"
    return FrontPage(
        sentences={
            "What it is": "A comparison of the images that the model answers now with those it was tested on, without "
            "any label.",
            "Result": page.headline(),
            "On what": f"{scored}, each against {page.reference_images:,} validation and test images.",
            "What shifted": f"In the last alarm, window {alarms[-1].number}: {'; '.join(shifts)}."
            if shifts
            else "Nothing.",
            "What it does not say": "Changed images do not prove that predictions are worse, and unchanged images do "
            "not prove that they are right. Only labelled images can decide that.",
        },
        facts={"Last image scored": last, **page.origin, "Rule": page.rule},
    )


def to_markdown(page: MonitorPage) -> str:
    """Return the headline and a table of the windows in Markdown."""
    lines = [f"**{page.headline()}**", "", "| window | scored from | to | distance / limit | what shifted |"]
    lines.append("|---|---|---|---|---|")
    lines += [
        f"| {window.number} | {window.first[:16]} | {window.last[:16]} | {window.score:.2f} "
        f"| {'; '.join(page.explain(window)) or 'nothing'} |"
        for window in page.windows
    ]
    if page.agreement:
        lines += ["", "| month | images | readers agreed | 95% interval |", "|---|---|---|---|"]
    lines += [
        f"| {one.month} | {one.images} | {one.share:.0%} | {one.low:.0%} to {one.high:.0%} |" for one in page.agreement
    ]
    return "\n".join(lines)


def _explain(signal: str, window: Window, page: MonitorPage) -> str:
    distance = f"distance {window.distances[signal]:.2f}, limit {page.limits[signal]:.2f}"
    if signal == FAILED:
        return f"{window.distances[FAILED]:.0%} of the images could not be read ({distance})"
    if signal == "class_shares":
        changes = {name: window.shares[name] - usual for name, usual in page.usual_shares.items()}
        name = max(changes, key=lambda name: abs(changes[name]))
        usual = page.usual_shares[name]
        return f"other predictions: {window.shares[name]:.0%} {name} instead of {usual:.0%} ({distance})"
    shift = window.median_shifts[signal]
    if abs(shift) < _NO_SHIFT:
        return f"{signal.replace('_', ' ')} has another distribution about the same median ({distance})"
    return f"images are {_WORDS[signal][shift > 0]}: the median shifted by {abs(shift):.1f} spreads ({distance})"
