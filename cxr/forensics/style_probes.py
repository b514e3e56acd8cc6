"""How well two classes can be told apart by style alone: what is no sign of a disease.

Each kind of style is a small set of numbers of an image (see cxr.forensics.measure). A model of gradient boosting gets
these and nothing else; its out-of-fold AUROC says how much of the difference between two classes is style. A network
that does no better than the border and the grey histogram may read nothing but them.

Each pair of classes is compared among all images, among the early, among the late, and from early to late: trained on
the early images, measured on the late. What holds within an era and not across it belongs to the era's style.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cxr.evaluation.bootstrap import Interval, patient_draws, percentile_interval
from cxr.evaluation.rates import Floats, Ints, weighted_auroc
from cxr.forensics.out_of_fold import Kind, fit, out_of_fold

EARLY, LATE = 0, 1
MIN_PERSONS = 20
"""Of each class; boosting with fewer images grows no tree, and its folds differ by their shares alone."""

SCOPES = ("all", "early", "late", "early_to_late")


@dataclass(frozen=True)
class ProbeImages:
    """The images of one source.

    labels   (N,) class names
    groups   (N,) images of a group are in one fold and are drawn together
    era      (N,) EARLY, LATE, or -1 where the order of acquisition is unknown
    """

    labels: NDArray[np.str_]
    groups: Ints
    era: Ints


@dataclass(frozen=True)
class Probe:
    """How well `family` separates the classes of `pair` (the second counts as positive) in `scope`.

    auroc              None where a class has too few persons
    interval           95% over persons
    images, persons    that were measured
    """

    pair: tuple[str, str]
    family: str
    scope: str
    auroc: float | None
    interval: Interval | None
    images: int
    persons: int


@dataclass(frozen=True)
class ProbeSettings:
    """Resamples of persons for the intervals, and the seed of folds, models and draws."""

    resamples: int
    seed: int


@dataclass(frozen=True)
class Family:
    """Features (N, D) of one kind of style, and the kind of model for them."""

    name: str
    features: Floats
    kind: Kind


def probe_styles(
    families: Sequence[Family], images: ProbeImages, settings: ProbeSettings, *, scopes: Sequence[str] = SCOPES
) -> list[Probe]:
    """Return a probe for each pair of classes, family and scope; N images each."""
    probes = []
    for pair in combinations(sorted(set(images.labels.tolist())), 2):
        for scope in scopes:
            rows = np.flatnonzero(np.isin(images.labels, pair) & _in_scope(images.era, scope))
            chosen = ProbeImages(images.labels[rows], images.groups[rows], images.era[rows])
            train, test = _train_and_test(chosen, scope)
            positive = chosen.labels == pair[1]
            measurable = all(_enough(positive[part], chosen.groups[part]) for part in (train, test))
            for family in families:
                auroc, interval = None, None
                if measurable:
                    scores = _scores(family, rows, chosen, positive, (train, test), settings)
                    auroc, interval = auroc_with_interval(scores, positive[test], chosen.groups[test], settings)
                persons = len(np.unique(chosen.groups[test]))
                probes.append(Probe(pair, family.name, scope, auroc, interval, len(test), persons))
    return probes


def _train_and_test(images: ProbeImages, scope: str) -> tuple[Ints, Ints]:
    """Return the rows to train on and to measure; the same rows where the measurement is out of fold."""
    everything = np.arange(len(images.groups))
    if scope != "early_to_late":
        return everything, everything
    train = np.flatnonzero(images.era == EARLY)
    return train, np.flatnonzero((images.era == LATE) & ~np.isin(images.groups, images.groups[train]))


def _scores(
    family: Family,
    rows: Ints,
    images: ProbeImages,
    positive: NDArray[np.bool_],
    train_and_test: tuple[Ints, Ints],
    settings: ProbeSettings,
) -> Floats:
    """Return the score of each image to measure."""
    (train, test), features, labels = train_and_test, family.features[rows], positive.astype(np.int64)
    if train is test:
        return out_of_fold(features, labels, images.groups, n_classes=2, kind=family.kind, seed=settings.seed)[:, 1]
    model = fit(features[train], labels[train], kind=family.kind, seed=settings.seed)
    return np.asarray(model.predict_proba(features[test])[:, 1], np.float64)


def auroc_with_interval(
    scores: Floats, positive: NDArray[np.bool_], groups: Ints, settings: ProbeSettings
) -> tuple[float, Interval | None]:
    """Return the AUROC of scores (N,) with its 95% interval over groups (N,)."""
    auroc = float(weighted_auroc(scores, positive, np.ones((1, len(scores))))[0])
    names, person = np.unique(groups, return_inverse=True)
    draws = patient_draws(len(names), settings.resamples, seed=settings.seed, width=len(scores))
    values = np.concatenate([weighted_auroc(scores, positive, counts[:, person]) for counts in draws])
    return auroc, percentile_interval(values)


def _in_scope(era: Ints, scope: str) -> NDArray[np.bool_]:
    known: dict[str, NDArray[np.bool_]] = {
        "all": era >= -1,
        "early": era == EARLY,
        "late": era == LATE,
        "early_to_late": era >= 0,
    }
    return known[scope]


def _enough(positive: NDArray[np.bool_], groups: Ints) -> bool:
    """Return whether both classes have images of MIN_PERSONS persons."""
    return min(len(np.unique(groups[side])) for side in (positive, ~positive)) >= MIN_PERSONS
