"""The verdict of a shortcut audit: rules choose sentences from the numbers; each rule is stated beside its sentence."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["good", "doubt", "bad", "unknown"]

_SHORTCUT_AUROC, _SHORTCUT_LOW = 0.7, 0.6  # macro AUROC without the lungs, and the lower end of its interval
_SOURCE_KNOWN, _SOURCE_UNKNOWN = 0.9, 0.7  # AUROC of the source
_LOSS = 0.1  # macro AUROC


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict, its level, and the rule that chose it."""

    level: Level
    sentence: str
    rule: str


def verdict(audit: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the findings from an audit's views, probe and sources, as JSON holds them."""
    findings = (_without_thorax(audit), _border_alone(audit), _thorax_alone(audit), _source(audit))
    return [asdict(finding) for finding in findings]


def _without_thorax(audit: Mapping[str, Any]) -> Finding:
    """Judge the fill with the higher AUROC, so that the choice of fill cannot hide a shortcut."""
    blanked = max(
        (audit["views"][name] for name in ("thorax_blanked", "thorax_black")), key=lambda view: view["macro_auroc"] or 0
    )
    rule = (
        f"macro AUROC with the thorax blanked, the higher of both fills: {_outside_rule()}. "
        "The shape of the outline stays visible and may carry information"
    )
    return _outside(blanked, "with the thorax blanked", rule)


def _border_alone(audit: Mapping[str, Any]) -> Finding:
    rule = f"macro AUROC from the outer {audit['border']:.0%} of the image alone: {_outside_rule()}"
    return _outside(audit["views"]["border_only"], "from the border alone", rule)


def _outside_rule() -> str:
    return (
        f"{_SHORTCUT_AUROC} or more with an interval above {_SHORTCUT_LOW} is bad, an interval that reaches 0.5 good, "
        "all else is doubt"
    )


def _outside(view: Mapping[str, Any], where: str, rule: str) -> Finding:
    auroc, interval = view["macro_auroc"], view["ci95"]["macro_auroc"]
    if auroc is None or interval is None:
        return Finding("unknown", f"Too few patients to measure the model {where}.", rule)
    shown = f"macro AUROC {auroc:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
    if auroc >= _SHORTCUT_AUROC and interval[0] > _SHORTCUT_LOW:
        why = "Image content outside the lungs correlates with the class, and the model uses it."
        return Finding("bad", f"The model still separates the classes {where}: {shown}. {why}", rule)
    if interval[0] <= 0.5:
        return Finding("good", f"The model is not distinguishable from chance {where}: {shown}.", rule)
    why = "Image content outside the lungs may contribute to its predictions."
    return Finding("doubt", f"The model separates the classes a little {where}: {shown}. {why}", rule)


def _thorax_alone(audit: Mapping[str, Any]) -> Finding:
    rule = (
        f"macro AUROC of the thorax alone against the whole image: a loss below {_LOSS} is good, a larger one is doubt"
    )
    whole, alone = (audit["views"][name]["macro_auroc"] for name in ("whole", "thorax_only"))
    if whole is None or alone is None:
        return Finding("unknown", "Only one class was tested, so the thorax alone cannot be measured.", rule)
    numbers = f"macro AUROC {alone:.3f} against {whole:.3f} with the whole image"
    if whole - alone < _LOSS:
        return Finding("good", f"The thorax alone is sufficient: {numbers}.", rule)
    why = "The model uses the surroundings, or such images differ too much from its training images."
    return Finding("doubt", f"The model is worse with the thorax alone: {numbers}. {why}", rule)


def _source(audit: Mapping[str, Any]) -> Finding:
    rule = (
        f"AUROC of predicting the source from the features: {_SOURCE_KNOWN} or more is bad where the sources hold "
        f"different classes and doubt where they hold the same, {_SOURCE_UNKNOWN} or more is doubt, less is good"
    )
    found = audit["probe"]
    if found["unavailable_because"]:
        return Finding("unknown", f"The source was not probed: {found['unavailable_because']}.", rule)
    auroc, plain = found["features"]["auroc"], found["image_statistics"]["auroc"]
    numbers = f"AUROC {auroc:.3f} from its features, {plain:.3f} from five statistics of the pixels"
    if auroc < _SOURCE_UNKNOWN:
        return Finding("good", f"Its features hardly reveal the source of an image: {numbers}.", rule)
    if auroc < _SOURCE_KNOWN:
        return Finding("doubt", f"Its features partly reveal the source of an image: {numbers}.", rule)
    compare = "Compare the rows with one source and with both in docs/results.md."
    if len({tuple(sorted(counts)) for counts in audit["sources"].values()}) > 1:
        risk = "The sources hold different classes, so the source helps to guess the class."
        return Finding("bad", f"Its features reveal the source of an image: {numbers}. {risk} {compare}", rule)
    risk = "The sources hold the same classes, so the source alone does not reveal the class."
    return Finding("doubt", f"Its features reveal the source of an image: {numbers}. {risk} {compare}", rule)
