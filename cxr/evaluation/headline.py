"""The headline metrics: name, label, computation, direction, interval and the paper's value.

Everything that lists headline metrics reads this table: metrics.json and its intervals, the comparison of two models,
the gate, report and cards, the web app, the tracking store and the results page. A new metric is one entry of SCORES;
a floor and a margin under `promote` in params.yaml make it part of the gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cxr.common.errors import DataError, ParamsError

if TYPE_CHECKING:
    from cxr.common.command_params import PromoteParams
    from cxr.evaluation.rates import Figures, Floats

_ERRORS_KEY = "calibration"  # of metrics.json, which holds ERRORS


@dataclass(frozen=True)
class PaperValue:
    """What Pham and Nguyen 2023 report, and its 95% interval where it can be derived."""

    value: float
    ci95: tuple[float, float] | None = None


@dataclass(frozen=True)
class Headline:
    """One metric of a set of images.

    name              key in metrics.json and in params.yaml
    label             for people, within a sentence
    note              what it means, in a few words
    compute           from the figures of B weightings of the images to its values (B,); None for ERRORS, which
                      cxr.evaluation.calibration measures
    higher_is_better  the direction of the gate: a floor, or else a ceiling
    interval          percentiles of the bootstrap; "centred" where resampling biases the metric upwards, so that the
                      resampled values are moved to have the measured value as median; None for no interval
    by_source         also reported for each source and block, over the classes that it has
    paper             the paper's value
    """

    name: str
    label: str
    note: str
    compute: Callable[[Figures], Floats] | None = None
    higher_is_better: bool = True
    interval: Literal["percentile", "centred"] | None = "percentile"
    by_source: bool = False
    paper: PaperValue | None = None

    @property
    def title(self) -> str:
        """The label with a capital, for tables and tiles."""
        return self.label[0].upper() + self.label[1:]

    def value_in(self, metrics: Mapping[str, Any]) -> float | None:
        """Return the value in metrics.json, or in a part of it such as `per_source`; None where it is undefined.

        Raises:
            DataError: the metric is missing.
        """
        found = _flat(metrics)
        if self.name not in found:
            raise DataError(f"metrics.json lacks {self.name}; run `./run dvc repro -f -s evaluate`")
        return self.stored_in(found)

    def stored_in(self, metrics: Mapping[str, Any] | None) -> float | None:
        """Return the value in a metrics.json of any release; None where it is missing or not a finite number."""
        value = _flat(metrics or {}).get(self.name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)

    def interval_in(self, metrics: Mapping[str, Any] | None) -> list[float] | None:
        """Return the 95% interval [low, high] in metrics.json; None where there is none."""
        return ((metrics or {}).get("ci95") or {}).get(self.name)


SCORES = (
    Headline(
        "accuracy",
        "accuracy",
        "share of images called right",
        compute=lambda figures: figures.rates.accuracy,
        by_source=True,
        paper=PaperValue(0.918, ci95=(0.891, 0.939)),  # Wilson, from its 500 images; the paper gives none
    ),
    Headline(
        "macro_f1",
        "macro F1",
        "each class counts the same",
        compute=lambda figures: figures.mean_over_classes(figures.rates.f1),
        by_source=True,
    ),
    Headline(
        "macro_auroc",
        "macro AUROC",
        "each class against the rest",
        compute=lambda figures: figures.mean_over_classes(figures.auroc),
        paper=PaperValue(0.92),
    ),
)
"""Of predicted classes and rankings; the top level of metrics.json."""

ERRORS = (
    Headline("ece", "expected calibration error", "lower is better", higher_is_better=False, interval="centred"),
    Headline(
        "classwise_ece", "class-wise calibration error", "lower is better", higher_is_better=False, interval="centred"
    ),
    Headline("brier", "Brier score", "lower is better", higher_is_better=False),
    Headline("nll", "negative log-likelihood", "lower is better", higher_is_better=False, interval=None),
)
"""Of probabilities; under `calibration` in metrics.json."""

BY_NAME = {metric.name: metric for metric in (*SCORES, *ERRORS)}
HEADLINES = (*SCORES, BY_NAME["ece"])
COMPARED = (*SCORES, BY_NAME["nll"])
"""What the paired comparison of two models measures."""


HEADLINE_FILE = "headline.json"
"""The file of evaluation artifacts that DVC shows as metrics."""


def headline_table(metrics: Mapping[str, Any]) -> dict[str, float | int | str | None]:
    """Return what `dvc metrics show` prints of metrics.json: the headlines, and how many images of which protocol.

    Raises:
        DataError: a metric is missing.
    """
    found = {metric.name: metric.value_in(metrics) for metric in HEADLINES}
    return {**found, "n_test": metrics["n_test"], "protocol": metrics["protocol"]}


def _flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics.json with ERRORS beside SCORES."""
    return {**metrics, **(metrics.get(_ERRORS_KEY) or {})}


def check_gate(params: PromoteParams) -> None:
    """Check that the gate asks for metrics that there are.

    Raises:
        ParamsError: `floors`, `external_floors`, `ceilings` or `non_inferiority_margin` names a metric that it cannot
            hold.
    """
    known = (*SCORES, *ERRORS)
    higher = [metric for metric in known if metric.higher_is_better]
    _check("floors", params.floors, higher)
    _check("external_floors", params.external_floors, higher)
    _check("ceilings", params.ceilings, (metric for metric in known if not metric.higher_is_better))
    _check("non_inferiority_margin", params.non_inferiority_margin, COMPARED)


def _check(key: str, given: Mapping[str, float], metrics: Iterable[Headline]) -> None:
    names = [metric.name for metric in metrics]
    if unknown := [name for name in given if name not in names]:
        raise ParamsError(f"promote.{key}: there is no metric {', '.join(unknown)}; choose from {', '.join(names)}")
