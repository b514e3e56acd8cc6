"""The paper's results beside ours: Pham and Nguyen 2023, Table 2, with what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAPER_N_TEST = 500
PAPER_AUROC = 0.92
OTHER_IMAGES = (
    "The paper's test images are not published. Its confusion matrix (normal images over-called, bacterial ones rarely "
    "missed) resembles the official test part of the public set and not a random split of the train part, where "
    "nearly every normal image is found. Its figures and ours are of different images: not like with like."
)
FIGURES = ("precision", "recall", "f1", "specificity")
_TITLES = dict(zip(FIGURES, ("Precision", "Recall", "F1", "Specificity"), strict=True))


@dataclass(frozen=True)
class PaperClass:
    """One class of the paper: images of it, images called it, and those of both. Its rates follow from them."""

    actual: int
    predicted: int
    hits: int

    @property
    def precision(self) -> float:
        """Share of the images called the class that are of it."""
        return self.hits / self.predicted

    @property
    def recall(self) -> float:
        """Share of the class's images that are called it."""
        return self.hits / self.actual

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.hits / (self.actual + self.predicted)

    @property
    def specificity(self) -> float:
        """Share of the other classes' images that are not called the class."""
        return 1 - (self.predicted - self.hits) / (PAPER_N_TEST - self.actual)


PAPER_CLASSES = {
    "normal": PaperClass(actual=150, predicted=139, hits=130),
    "viral": PaperClass(actual=150, predicted=157, hits=136),
    "bacterial": PaperClass(actual=200, predicted=204, hits=193),
}
"""The only whole numbers that give the precision, recall and F1 of Table 2 and its accuracy of 0.918."""


@dataclass(frozen=True)
class Compared:
    """The paper's value and ours, with our 95% interval where there is one."""

    paper: float
    ours: float | None
    ours_ci95: Sequence[float] | None


@dataclass(frozen=True)
class ComparedClass:
    """One row of the comparison: the figures of a class, or their average over the classes, which has no counts."""

    name: str
    cells: dict[str, Compared]
    paper: PaperClass | None = None


def compare_with_paper(metrics: Mapping[str, Any]) -> list[ComparedClass]:
    """Return the rows of the paper's Table 2 with our values beside them, of the classes that both have."""
    rows = []
    for name, paper in PAPER_CLASSES.items():
        if name not in metrics["per_class"]:
            continue
        ours, ci95 = metrics["per_class"][name], metrics["ci95"]["per_class"][name]
        cells = {
            title: Compared(getattr(paper, figure), ours[figure], ci95[figure]) for figure, title in _TITLES.items()
        }
        rows.append(ComparedClass(name, cells, paper))
    return rows


def averages_beside_paper(metrics: Mapping[str, Any]) -> list[ComparedClass]:
    """Return macro and weighted averages over the classes, the paper's and ours; none with other classes."""
    if set(metrics["per_class"]) != set(PAPER_CLASSES):
        return []
    macro, weighted = {}, {}
    for figure, title in _TITLES.items():
        paper = [(getattr(of_class, figure), of_class.actual) for of_class in PAPER_CLASSES.values()]
        ours = [(of_class[figure], of_class["support"]) for of_class in metrics["per_class"].values()]
        alike = [[(value, 1) for value, _ in values] for values in (paper, ours)]
        ci95 = metrics["ci95"]["macro_f1"] if figure == "f1" else None
        macro[title] = Compared(_average(alike[0]) or 0.0, _average(alike[1]), ci95)
        weighted[title] = Compared(_average(paper) or 0.0, _average(ours), None)
    return [ComparedClass("macro average", macro), ComparedClass("weighted average", weighted)]


def reasons_not_comparable(metrics: Mapping[str, Any]) -> list[str]:
    """Return the reasons why our results are not comparable with the paper's; empty if they are, but for the images."""
    reasons = []
    if metrics["synthetic"]:
        reasons.append("ours come from synthetic images")
    if metrics["protocol"] != "paper":
        reasons.append(f"ours follow the protocol {metrics['protocol']}, the paper drew images at random")
    if metrics["task"] != "three_way":
        reasons.append("ours use another set of classes")
    if metrics["n_test"] != PAPER_N_TEST:
        reasons.append(f"ours rest on {metrics['n_test']:,} test images, the paper's on {PAPER_N_TEST}")
    return reasons


def _average(values: Sequence[tuple[float | None, int]]) -> float | None:
    """Return the mean of (value, weight) over the defined values; None if there are none."""
    known = [(value, weight) for value, weight in values if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
