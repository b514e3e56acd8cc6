"""The examination of a set, source by source: predictions, order, style, labels, persons."""

from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
import pandas as pd

from cxr.common.classes import LABELS, Label
from cxr.evaluation.bootstrap import Interval, Resampling, headline_scores, pair
from cxr.evaluation.rates import Floats, Ints
from cxr.forensics.agreement import Era, Sequence, eras_of, high_agreement, sequences_of
from cxr.forensics.change_points import SearchSettings
from cxr.forensics.features import SetFeatures
from cxr.forensics.label_audit import LabelAudit, audit_labels, ranked_table
from cxr.forensics.measure import STYLE_FAMILIES
from cxr.forensics.out_of_fold import classes_with_groups, out_of_fold
from cxr.forensics.persons import Similarity, similarity
from cxr.forensics.style_probes import Family, Probe, ProbeImages, ProbeSettings, probe_styles

WHOLE_IMAGE = "whole image"


@dataclass(frozen=True)
class Settings:
    """How a set is examined; see params.yaml, section forensics."""

    blocks: int
    alpha: float
    style_limit: float
    permutations: int
    resamples: int
    seed: int


@dataclass(frozen=True)
class Order:
    """What the order of acquisition shows: the sequences of a source and the eras of its axes."""

    sequences: list[Sequence]
    eras: list[Era]


@dataclass(frozen=True)
class SourceExamination:
    """What one source shows: `content` for forensics.json, and a row an image for label_audit.csv."""

    content: dict[str, Any]
    labels: pd.DataFrame


def examine_source(
    images: pd.DataFrame, features: SetFeatures, groups: Ints, settings: Settings
) -> SourceExamination | str:
    """Examine the images of one source, or return why that is impossible.

    Args:
        images: rows of the manifest.
        features: of these images.
        groups: (N,) images of a group are of one patient, or near-duplicates of such.
        settings: of the examination.
    """
    kept = classes_with_groups(images["label"].to_numpy(str), groups)
    classes = [name for name in LABELS if name in kept]
    if len(classes) < 2:
        return "fewer than two classes have images of five patients"
    rows = np.flatnonzero(images["label"].isin(classes))
    images, features, groups = images.iloc[rows].reset_index(drop=True), features.where(rows), groups[rows]
    labels = images["label"].map(classes.index).to_numpy(np.int64)
    probabilities = out_of_fold(
        features.whole_image(), labels, groups, n_classes=len(classes), kind="linear", seed=settings.seed
    )
    table = _table(images, groups, labels, probabilities)
    search = SearchSettings(settings.alpha, 1, settings.permutations, settings.resamples, settings.seed)
    sequences = sequences_of(table, search, blocks=settings.blocks)
    eras, era = eras_of(table, sequences)
    families = _families(features)
    draws = ProbeSettings(settings.resamples, settings.seed)
    probes = probe_styles(families, ProbeImages(images["label"].to_numpy(str), groups, era), draws)
    audit = audit_labels(labels, probabilities)
    content = {
        **_counts(images, groups, classes),
        "predictions": headline_scores(
            labels,
            probabilities,
            groups.astype(str).tolist(),
            classes,
            resamples=settings.resamples,
            seed=settings.seed,
        ),
        "sequences": to_json(sequences),
        "eras": to_json(eras),
        "probes": to_json(probes),
        "populations": to_json(_populations(table, Order(sequences, eras), families, groups, draws)),
        "labels": _doubted(images, audit, groups, classes, settings),
        "similarity": to_json(_similarity(images, features, settings)),
    }
    return SourceExamination(content, ranked_table(images, audit, probabilities, classes))


def _counts(images: pd.DataFrame, groups: Ints, classes: list[Label]) -> dict[str, Any]:
    return {
        "images": len(images),
        "groups": len(np.unique(groups)),
        "classes": {name: int((images["label"] == name).sum()) for name in classes},
        "without_order": int(images["acquisition_number"].isna().sum()),
    }


def _doubted(
    images: pd.DataFrame, audit: LabelAudit, groups: Ints, classes: list[Label], settings: Settings
) -> dict[str, Any]:
    return {
        "thresholds": dict(zip(classes, audit.thresholds.tolist(), strict=True)),
        "joint": audit.joint.tolist(),
        "flagged": _flagged(images["label"].to_numpy(str), audit.flagged.astype(np.float64), groups, settings),
    }


def _similarity(images: pd.DataFrame, features: SetFeatures, settings: Settings) -> list[Similarity]:
    labels, patients = (images[name].to_numpy(str) for name in ("label", "patient_id"))
    return similarity(features.thumbnail, labels, patients, resamples=settings.resamples, seed=settings.seed)


def to_json(value: Any) -> Any:
    """Return dataclasses as dicts and intervals as [low, high], through lists and dicts."""
    if isinstance(value, Interval):
        return pair(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in asdict(value)}
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def _table(images: pd.DataFrame, groups: Ints, labels: Ints, probabilities: Floats) -> pd.DataFrame:
    """Return a row an image, as cxr.forensics.agreement expects.

    A person is a patient and a class: where one number stands for two people, they have different classes.
    """
    return pd.DataFrame(
        {
            "series": images["acquisition_series"],
            "number": images["acquisition_number"],
            "label": images["label"],
            "patient_id": images["patient_id"],
            "person": images["patient_id"] + "|" + images["label"],
            "group": groups,
            "agrees": (probabilities.argmax(axis=1) == labels).astype(np.int64),
        }
    )


def _families(features: SetFeatures) -> list[Family]:
    style = [Family(name, features.style(name), "boosting") for name in STYLE_FAMILIES]
    varying = [family for family in style if np.ptp(family.features, axis=0).any()]
    return [*varying, Family(WHOLE_IMAGE, features.whole_image(), "linear")]


def _populations(
    table: pd.DataFrame, found: Order, families: list[Family], groups: Ints, draws: ProbeSettings
) -> list[dict[str, Any]]:
    """Return how well each family tells runs of high agreement from those of low agreement within one class.

    As a control, the same boundaries divide the other sequences on the axis: a style that changed with the time changes
    in them as well, one that came with the class does not.
    """
    populations = []
    for sequence in found.sequences:
        on_axis = next(era.series for era in found.eras if sequence.series in era.series)
        for other in found.sequences:
            if not sequence.change_points or other.series not in on_axis:
                continue
            chosen = (table["series"] == other.series) & (table["label"] == other.label) & table["number"].notna()
            rows = np.flatnonzero(chosen)
            side = np.where(high_agreement(table.iloc[rows], sequence), "high", "low")
            of_rows = [Family(family.name, family.features[rows], family.kind) for family in families]
            sides = ProbeImages(side, groups[rows], np.full(len(rows), -1))
            probes: list[Probe] = probe_styles(of_rows, sides, draws, scopes=("all",))
            if probes:
                populations.append({"boundaries": _name(sequence), "images": _name(other), "probes": probes})
    return populations


def _name(sequence: Sequence) -> str:
    return f"{sequence.series}, {sequence.label}"


def _flagged(labels: Any, flagged: Floats, groups: Ints, settings: Settings) -> dict[str, Any]:
    """Return the number and share of flagged labels of each class, with its interval over patients."""
    result = {}
    for name in sorted(set(labels.tolist()), key=LABELS.index):
        rows = labels == name
        draws = Resampling(groups[rows], settings.resamples, settings.seed)
        (interval,) = draws.ratios(flagged[rows][:, None], np.ones((int(rows.sum()), 1)))
        result[name] = {
            "images": int(rows.sum()),
            "flagged": int(flagged[rows].sum()),
            "share": float(flagged[rows].mean()),
            "ci95": pair(interval),
        }
    return result
