"""The verdict of a shortcut audit: sentences chosen from its numbers by rules, each stated beside its sentence."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["good", "doubt", "bad", "unknown"]

_READS, _READS_A_LITTLE = 0.7, 0.6  # macro AUROC without the lungs
_TOLD, _HARDLY_TOLD = 0.9, 0.7  # AUROC of the source
_LOST = 0.1  # macro AUROC


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict, how it is meant, and the rule that chose it."""

    level: Level
    sentence: str
    rule: str


def verdict(audit: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the findings from an audit's views, probe and sources, as JSON holds them."""
    findings = (_without_thorax(audit), _border_alone(audit), _thorax_alone(audit), _source(audit))
    return [asdict(finding) for finding in findings]


def _without_thorax(audit: Mapping[str, Any]) -> Finding:
    """Judge the better of the two fills, so that no lucky fill hides a shortcut."""
    blanked = max(
        (audit["views"][name] for name in ("thorax_blanked", "thorax_black")), key=lambda view: view["macro_auroc"] or 0
    )
    rule = (
        f"macro AUROC with the thorax blanked, the higher of both fills: {_outside_rule()}. "
        "The outline's own shape stays visible and may tell a little"
    )
    return _outside(blanked, "with the thorax blanked", rule)


def _border_alone(audit: Mapping[str, Any]) -> Finding:
    rule = f"macro AUROC from the outer {audit['border']:.0%} of the image alone: {_outside_rule()}"
    return _outside(audit["views"]["border_only"], "from the border alone", rule)


def _outside_rule() -> str:
    return (
        f"{_READS} or more with an interval above {_READS_A_LITTLE} is bad, an interval that reaches down to 0.5 is "
        "good, all else is doubt"
    )


def _outside(view: Mapping[str, Any], where: str, rule: str) -> Finding:
    auroc, interval = view["macro_auroc"], view["ci95"]["macro_auroc"]
    if auroc is None or interval is None:
        return Finding("unknown", f"Too few patients to say what the model tells {where}.", rule)
    shown = f"macro AUROC {auroc:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
    if auroc >= _READS and interval[0] > _READS_A_LITTLE:
        why = "What lies outside the lungs goes with the class, and it responds to that."
        return Finding("bad", f"It still tells the classes apart {where}: {shown}. {why}", rule)
    if interval[0] <= 0.5:
        return Finding("good", f"It tells nothing {where} that chance would not: {shown}.", rule)
    why = "What lies outside the lungs may be part of its answers."
    return Finding("doubt", f"It tells a little {where}: {shown}. {why}", rule)


def _thorax_alone(audit: Mapping[str, Any]) -> Finding:
    rule = f"macro AUROC of the thorax alone against the whole image: less than {_LOST} lost is good, more is doubt"
    whole, alone = (audit["views"][name]["macro_auroc"] for name in ("whole", "thorax_only"))
    if whole is None or alone is None:
        return Finding("unknown", "Only one class was tested: nothing can be said of the thorax alone.", rule)
    numbers = f"macro AUROC {alone:.3f} against {whole:.3f} with the whole image"
    if whole - alone < _LOST:
        return Finding("good", f"The thorax alone is enough for it: {numbers}.", rule)
    why = "It uses the surroundings, or such images are too unlike those it was trained on."
    return Finding("doubt", f"It does worse with the thorax alone: {numbers}. {why}", rule)


def _source(audit: Mapping[str, Any]) -> Finding:
    rule = (
        f"AUROC of telling the source from the features: {_TOLD} or more is bad where the sources hold different "
        f"classes and doubt where they hold the same, {_HARDLY_TOLD} or more is doubt, less is good"
    )
    found = audit["probe"]
    if found["skipped"]:
        return Finding("unknown", f"The source was not probed: {found['skipped']}.", rule)
    auroc, plain = found["features"]["auroc"], found["image_statistics"]["auroc"]
    numbers = f"AUROC {auroc:.3f} from its features, {plain:.3f} from five plain statistics of the pixels"
    if auroc < _HARDLY_TOLD:
        return Finding("good", f"Its features hardly tell where an image comes from: {numbers}.", rule)
    if auroc < _TOLD:
        return Finding("doubt", f"Its features tell in part where an image comes from: {numbers}.", rule)
    compare = "Compare the rows with one source and with both in docs/results.md."
    if len({tuple(sorted(counts)) for counts in audit["sources"].values()}) > 1:
        risk = "The sources do not hold the same classes, so knowing the source helps it guess the class."
        return Finding("bad", f"Its features tell where an image comes from: {numbers}. {risk} {compare}", rule)
    risk = "The sources hold the same classes, so the source alone gives none away."
    return Finding("doubt", f"Its features tell where an image comes from: {numbers}. {risk} {compare}", rule)
