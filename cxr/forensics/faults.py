"""From the numbers of an examination to the faults of a set, each a sentence with the rule that chose it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cxr.forensics.measure import STYLE_FAMILIES

Kind = Literal["two populations", "style shortcut", "copies"]


@dataclass(frozen=True)
class Fault:
    """A fault of a set, and the rule that found it."""

    kind: Kind
    sentence: str
    rule: str


def faults_of(content: Mapping[str, Any], *, alpha: float, style_limit: float) -> list[Fault]:
    """Return the faults of forensics.json's content.

    Args:
        content: `sources` and `copies`.
        alpha: largest p-value of a change point, over all sequences of a source.
        style_limit: AUROC that the interval of a style probe has to exceed.
    """
    faults: list[Fault] = []
    for source, examined in content["sources"].items():
        if "unavailable_because" not in examined:
            faults += _populations(source, examined, alpha)
            faults += _shortcuts(source, examined, style_limit)
    unknown = [pair for pair in content["copies"]["pairs"] if not pair["known"]]
    if unknown:
        faults.append(_copies(unknown, content["copies"]["limit"]))
    return faults


def _populations(source: str, examined: Mapping[str, Any], alpha: float) -> Iterator[Fault]:
    for sequence in examined["sequences"]:
        points = sequence["change_points"]
        if points:
            rates = [points[0]["before"], *(point["after"] for point in points)]
            yield Fault(
                "two populations",
                f"{source}: along {sequence['series']}, the share of {sequence['label']} labels that predictions agree "
                f"with is {', then '.join(f'{rate:.0%}' for rate in rates)}; it changes at number "
                f"{', '.join(str(point['number']) for point in points)}",
                f"p at most {alpha:g}, divided by the sequences of the source, by permutation of persons",
            )


def _shortcuts(source: str, examined: Mapping[str, Any], style_limit: float) -> Iterator[Fault]:
    for probe in examined["probes"]:
        interval = probe["interval"]
        if probe["scope"] != "all" or probe["family"] not in STYLE_FAMILIES or interval is None:
            continue
        if interval[0] > style_limit:
            yield Fault(
                "style shortcut",
                f"{source}: {probe['family']} alone separates {' and '.join(probe['pair'])} with AUROC "
                f"{probe['auroc']:.3f} ({interval[0]:.3f} to {interval[1]:.3f})",
                f"the 95% interval lies above {style_limit:g}",
            )


def _copies(pairs: Sequence[Mapping[str, Any]], limit: float) -> Fault:
    labels = sum(pair["label_a"] != pair["label_b"] for pair in pairs)
    return Fault(
        "copies",
        f"{len(pairs)} pairs of kept images of different patients are copies of one picture; {labels} of them have two "
        "labels",
        f"correlation of aligned fine detail at least {limit:g}, and unknown to ingest",
    )
