"""The result of an external test: a table of answers and what is known of the images in, external.json out.

The table has a row an image: the columns of the score store, `reason` and `thumbnail` (cxr/inference/external_answers),
`label` and `patient` (None where not known), and `group:<kind>`, "" for none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.common.errors import ImageError
from cxr.dataset.inspect import THUMBNAIL_SIDE_PX
from cxr.dataset.near_duplicates import nearest
from cxr.dicom.deidentify import read_identity, read_manufacturer
from cxr.evaluation.external import CarriedThresholds, measure_labelled, share_of
from cxr.imaging.decode import is_dicom
from cxr.monitoring.drift import Rules, compare_window, find_limits

if TYPE_CHECKING:
    from cxr.dataset.external_set import ExternalSet
    from cxr.evaluation.summary import Settings
    from cxr.inference.image_source import Location
    from cxr.models.reference import Reference

MIN_IMAGES_FOR_DRIFT = 20
_DICOM_SUFFIXES = (".dcm", ".dicom")
_GROUP = "group:"


@dataclass(frozen=True)
class SeenImages:
    """What the model was trained and tuned on: N ids, and their thumbnails (N, 32, 32); None where not known."""

    image_ids: Sequence[str] | None
    thumbnails: NDArray[np.uint8] | None

    @property
    def limits(self) -> str:
        """What cannot be found, in words; "" where nothing is missing."""
        if self.image_ids is None:
            return "The version was registered without its training images, so copies of them cannot be found"
        if self.thumbnails is None or len(self.thumbnails) != len(self.image_ids):
            return (
                "The version was registered without thumbnails, so only copies with the same bytes are found; "
                "`./run register` in the checkout with this model adds them"
            )
        return ""


def answer_table(images: ExternalSet, answers: pd.DataFrame, location: Location) -> pd.DataFrame:
    """Return the table of a set, see the module; DICOM images give patient and vendor where nothing else does.

    Patients become numbers, so that no identifier leaves this function. An image without a patient is one of its own.
    """
    table = answers.set_index("path")
    table["label"] = pd.Series({image.path: image.label for image in images.images}, dtype=object)
    headers = {path: _read_header(path, location) for path in table.index[table["error"].isna()]}
    patients = {image.path: image.patient or headers.get(image.path, ("", ""))[0] for image in images.images}
    groups = {image.path: dict(image.groups) for image in images.images}
    for path, (_, vendor) in headers.items():
        groups[path] |= {"vendor": vendor} if vendor else {}
    for kind in sorted({kind for each in groups.values() for kind in each}):
        table[f"{_GROUP}{kind}"] = pd.Series({path: each.get(kind, "") for path, each in groups.items()})
    known = pd.Series(patients).reindex(table.index)
    table["patient_known"] = known != ""
    keys = [f"p {patient}" if patient else f"i {path}" for path, patient in known.items()]
    table["patient"] = (pd.factorize(np.array(keys, object))[0] + 1).astype(str)
    return table.reset_index()


def _read_header(path: str, location: Location) -> tuple[str, str]:
    """Return patient and vendor of a DICOM image that was answered; "" where it is none or does not say."""
    name = path.rpartition("/")[2]
    if "." in name and not name.lower().endswith(_DICOM_SUFFIXES) and any(map(str.isalpha, name.rpartition(".")[2])):
        return "", ""
    data = location.read(path)
    if not is_dicom(data):
        return "", ""
    try:
        identity = read_identity(data, name=path)
        patient = f"{identity.issuer}\0{identity.patient_id}" if identity.patient_id else ""
        return patient, read_manufacturer(data, name=path).strip()
    except ImageError:  # it was answered: what cannot be read is not the image
        return "", ""


def training_duplicates(table: pd.DataFrame, seen: SeenImages, *, near: float) -> pd.DataFrame:
    """Return the images that copy one that the model has seen: path, kind, training_image_id, correlation.

    Args:
        table: of answered images.
        seen: by the model.
        near: correlation of thumbnails from which two images count as the same, 0 to 1.
    """
    rows: list[tuple[str, str, str, float]] = []
    if seen.image_ids is not None:
        of_bytes = {image_id.rpartition("-")[2]: image_id for image_id in seen.image_ids}
        digests = table["sha256"].str.slice(stop=16)
        rows += [
            (path, "exact", of_bytes[digest], 1.0)
            for path, digest in zip(table["path"], digests, strict=True)
            if digest in of_bytes
        ]
    if seen.image_ids and seen.thumbnails is not None and not seen.limits:
        side, exact = THUMBNAIL_SIDE_PX, {row[0] for row in rows}
        thumbnails = np.frombuffer(b"".join(table["thumbnail"]), np.uint8).reshape(-1, side, side)
        found, correlation = nearest(thumbnails, seen.thumbnails)
        rows += [
            (path, "near", seen.image_ids[row], round(float(value), 6))
            for path, row, value in zip(table["path"], found.tolist(), correlation, strict=True)
            if value >= near and path not in exact
        ]
    return pd.DataFrame(sorted(rows), columns=["path", "kind", "training_image_id", "correlation"])


def drift(table: pd.DataFrame, reference: Reference | None, rules: Rules) -> dict[str, Any]:
    """Return how far the images lie from the model's reference; see cxr.monitoring.drift."""
    reason = None
    if reference is None:
        reason = "the version was registered without reference statistics"
    elif len(table) < MIN_IMAGES_FOR_DRIFT:
        reason = f"{len(table)} images are too few; {MIN_IMAGES_FOR_DRIFT} or more are needed"
    if reference is None or reason:
        return {"unavailable_because": reason, "alarm": None}
    limits = find_limits(reference, rules)
    window = compare_window(table, reference, limits, number=1)
    return {
        "unavailable_because": None,
        "alarm": window.alarm,
        "score": window.score,
        "quantile": 1 - rules.false_alarm_share,
        "distances": dict(window.distances),
        "limits": limits,
        "median_shifts": dict(window.median_shifts),
        "exceeded": list(window.exceeded),
        "examples": list(window.examples),
    }


def describe(
    table: pd.DataFrame,
    classes: Sequence[str],
    duplicates: pd.DataFrame,
    *,
    thresholds: CarriedThresholds,
    settings: Settings,
) -> dict[str, Any]:
    """Return what external.json says of answers and labels.

    Args:
        table: of all images.
        classes: of the model.
        duplicates: of training_duplicates.
        thresholds: of the model.
        settings: of intervals and calibration.
    """
    answered = table[table["error"].isna()]
    labelled = answered[answered["label"].notna()]
    unseen = labelled[~labelled["path"].isin(duplicates["path"])]
    result = {
        **_answers(table, answered, classes, settings),
        **measure_labelled(labelled, classes, thresholds, settings),
        "without_training_duplicates": None,
    }
    if len(unseen) < len(labelled):
        result["without_training_duplicates"] = measure_labelled(unseen, classes, thresholds, settings)
    return result


def _answers(table: pd.DataFrame, answered: pd.DataFrame, classes: Sequence[str], settings: Settings) -> dict[str, Any]:
    odd = answered["warning"].notna().to_numpy()
    called = answered["predicted_class"].value_counts(normalize=True)
    refer = answered["refer"].dropna()
    failed = table["reason"][table["error"].notna()]
    return {
        "not_answered": {"n": len(failed), "share": len(failed) / len(table), "reasons": _counts(failed)},
        "out_of_distribution": {
            "n": int(odd.sum()),
            "share": share_of(odd, answered["patient"].to_numpy(object), settings),
            "warnings": _counts(answered["warning"].dropna()),
        },
        "predicted": {
            "shares": {name: float(called.get(name, 0.0)) for name in classes},
            "mean_confidence": float(answered["confidence"].mean()),
            "referred_share": float(refer.astype(bool).mean()) if len(refer) else None,
        },
    }


def set_facts(table: pd.DataFrame) -> Mapping[str, Any]:
    """Return the counts of a set: images, labels, patients, and copies of an image within it."""
    answered, labels = table["error"].isna(), table["label"].dropna()
    read = table[table["sha256"].notna()]
    copied = read[read.duplicated("sha256", keep=False)]
    conflicting = copied.groupby("sha256")["label"].nunique() > 1
    return {
        "n_images": len(table),
        "n_answered": int(answered.sum()),
        "n_labelled": len(labels),
        "n_unlabelled": len(table) - len(labels),
        "labels": _counts(labels),
        "patients_known": bool(table["patient_known"].any()),
        "n_patients": int(table["patient"].nunique()),
        "copies": len(copied) - copied["sha256"].nunique(),
        "conflicting_copies": int(conflicting.sum()),
    }


def _counts(values: pd.Series[Any]) -> dict[str, int]:
    return {str(name): int(count) for name, count in values.value_counts().sort_index().items()}
