"""The front page that report, external test and monitor share: five sentences for a clinician, and where it comes from.

A page includes `front.html.j2` with `front`, and marks with CONTENTS where links to its sections belong.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr.reporting.public_sets import public_set

CONTENTS = "<!-- contents -->"
_LARGE_SLICE = 30  # images: with fewer, the worst slice is a matter of chance
_LEVELS = {"bad": "bad", "doubt": "in doubt", "good": "good", "unknown": "not measured"}


@dataclass(frozen=True)
class FrontPage:
    """The top of a page.

    sentences  by the question that each answers
    facts      date, commit, version and the like, by name
    """

    sentences: Mapping[str, str]
    facts: Mapping[str, str]


def with_contents(html: str) -> str:
    """Give each section's heading an anchor, and put links to them where the page says CONTENTS."""
    links: list[str] = []

    def anchored(found: re.Match[str]) -> str:
        title = found["title"]
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        links.append(f'<li><a href="#{anchor}">{title}</a></li>')
        return f'<section{found["attributes"]} id="{anchor}">\n<h2>{title}</h2>'

    body = re.sub(r"<section(?P<attributes>[^>]*)>\s*<h2>(?P<title>[^<]+)</h2>", anchored, html)
    contents = f'<nav class="contents" aria-label="Contents"><ol>{"".join(links)}</ol></nav>'
    return body.replace(CONTENTS, contents)


def what_it_is(classes: Sequence[str], *, network: str) -> str:
    """Return what the model does, in a sentence."""
    return f"{network} that sorts a frontal chest X-ray into {_or(classes)}; research software, not for clinical use."


def how_good(metrics: Mapping[str, Any]) -> str:
    """Return accuracy and the recall of each class, as counts of 100 images."""
    right, interval = metrics["accuracy"], metrics["ci95"].get("accuracy")
    if right is None:
        return "Not measured: no image with a label was answered."
    has_width = interval and interval[0] < interval[1]  # without an error, resampling finds none either
    between = f" (95% interval {interval[0]:.0%} to {interval[1]:.0%})" if has_width else ""
    found = [
        f"{of_class['recall']:.0%} of the {of_class['support']:,} {name} ones"
        for name, of_class in metrics["per_class"].items()
        if of_class["recall"] is not None
    ]
    return f"Of 100 images it classifies {right * 100:.0f} correctly{between}; it finds {_and(found)}."


def on_whom(metrics: Mapping[str, Any], ingest: Mapping[str, Any], leakage: str) -> str:
    """Return whose images it was tested on, and whether it knew them."""
    if metrics["synthetic"]:
        return f"{metrics['n_test']:,} synthetic images: it has never seen a patient."
    sources = []
    for name, of_source in metrics["per_source"].items():
        known = public_set(name, ingest)
        sources.append(f"{of_source['n']:,} of {name}" + (f" ({known.people})" if known else ""))
    return f"{metrics['n_test']:,} images of {metrics['n_patients']:,} patients: {_and(sources)}. {leakage}"


def where_it_fails(metrics: Mapping[str, Any]) -> str:
    """Return the most frequent error and the worst slice of 30 images or more."""
    classes, counts = metrics["classes"], metrics["confusion_matrix"]
    errors = {(i, j): n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n}
    if not errors:
        return "It made no error on these images; that does not mean that none can occur."
    (actual, called), most = max(errors.items(), key=lambda error: error[1])
    sentence = (
        f"Its most frequent error: {classes[actual]} images called {classes[called]}, {most:,} of "
        f"{sum(counts[actual]):,}. That is {most / sum(errors.values()):.0%} of all its errors."
    )
    worst = _worst_slice(metrics)
    return sentence if worst is None else f"{sentence} {worst}"


def _worst_slice(metrics: Mapping[str, Any]) -> str | None:
    slices = {f"source {name}": one for name, one in metrics.get("per_source", {}).items()}
    slices |= {f"block {name} of the order of acquisition": one for name, one in metrics.get("per_block", {}).items()}
    large = {name: one for name, one in slices.items() if one["n"] >= _LARGE_SLICE and one["accuracy"] is not None}
    if len(large) < 2:
        return None
    name = min(large, key=lambda name: float(large[name]["accuracy"]))
    return f"It is worst on {name}: {large[name]['accuracy']:.0%} of {large[name]['n']:,} images are right."


def verdict_of(audit: Mapping[str, Any]) -> str:
    """Return the audit's verdict: how many checks are bad, in doubt, good and not measured, and the worst finding."""
    findings = audit["verdict"]
    if not findings:
        return "The audit has no finding."
    counts = {level: sum(one["level"] == level for one in findings) for level in _LEVELS}
    told = _and([f"{n} {_LEVELS[level]}" for level, n in counts.items() if n])
    worst = next(one for level in _LEVELS for one in findings if one["level"] == level)
    if worst["level"] == "good":
        return f"The audit for shortcuts found nothing against it ({told}); that is no proof that it reads the lungs."
    return f"The audit for shortcuts: {told}. {worst['sentence']}"


def _and(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def _or(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} or {parts[-1]}"
