"""What a split holds and what it left out: counts, patients in two splits, relatives of test images."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import pandas as pd

from cxr.common.classes import CLASSES, LABELS
from cxr.common.params import SplitParams
from cxr.dataset.splits import SPLITS, patient_groups
from cxr.dataset.subsample import UNUSED


@dataclass(frozen=True)
class Withheld:
    """Images that are unused because of an image of the test set.

    same_patient     they are of one of its patients
    near_duplicates  they are not, but look like one of its images or of its patients' images
    other_sources    of both, those from another source than that image's; such a copy is easily overlooked
    """

    same_patient: int
    near_duplicates: int
    other_sources: int

    @property
    def sentence(self) -> str:
        """Return the counts in words."""
        return (
            f"Used neither for training nor for validation: {self.same_patient} images of test patients and "
            f"{self.near_duplicates} near-duplicates of theirs; {self.other_sources} of both are from another source."
        )


@dataclass(frozen=True)
class PublishedSet:
    """What is at hand of a published set with an official test part.

    published, at_hand   images by part; the copies that ingest left out as duplicates count, quarantined files do not
    test_images          of the test set
    duplicates_of_test   images that ingest left out as duplicates of a test image
    """

    published: Mapping[str, int]
    at_hand: Mapping[str, int]
    test_images: int
    duplicates_of_test: int

    @property
    def sentences(self) -> list[str]:
        """Return the counts in words."""
        missing = {part: max(n - self.at_hand.get(part, 0), 0) for part, n in self.published.items()}
        parts = ", ".join(f"{n:,} of {part}" for part, n in missing.items())
        found = []
        if self.published:
            found.append(
                f"Of the {sum(self.published.values()):,} published images {sum(missing.values()):,} are missing here "
                f"({parts}). The test set has {self.test_images:,} of the {self.published['test']:,} images of the "
                "official test part; compare results only between equal test sets."
            )
        return [*found, f"Ingest had left out {self.duplicates_of_test} duplicates of test images before."]


@dataclass(frozen=True)
class PatientOverlap:
    """Number of test patients, and of those who also have images in training or validation."""

    overlapping: int
    test_patients: int


def withheld(
    table: pd.DataFrame, manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams
) -> Withheld:
    """Count the unused images of the task that share a patient or a near-duplicate with the test set.

    Args:
        table: from `assign`.
        manifest, near_duplicates, params: as for `assign`.
    """
    usable = table[table["label"].isin(CLASSES[params.task])].merge(manifest[["image_id", "source"]], on="image_id")
    usable["group"] = patient_groups(usable, near_duplicates)
    test = usable[usable["split"] == "test"]
    unused = usable["split"] == UNUSED
    if params.protocol == "block":  # quotas leave out images of the test set itself
        unused &= usable["fold"] != params.block
    left_out = usable[unused & usable["group"].isin(test["group"])]
    same_patient = left_out["patient_id"].isin(test["patient_id"])
    sources = test.groupby("group")["source"].agg(set)
    elsewhere = [
        source not in sources[group] for source, group in zip(left_out["source"], left_out["group"], strict=True)
    ]
    return Withheld(int(same_patient.sum()), int((~same_patient).sum()), sum(elsewhere))


def images_without_order(table: pd.DataFrame, manifest: pd.DataFrame) -> int:
    """Count the training images without an order of acquisition."""
    unordered = manifest.loc[manifest["acquisition_number"].isna(), "image_id"]
    return int((table["image_id"].isin(unordered) & (table["split"] == "train")).sum())


def published_set(
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    duplicates: pd.DataFrame,
    *,
    source: str,
    published: Mapping[str, int],
) -> PublishedSet:
    """Compare the images at hand with the published ones.

    Args:
        table: from `cxr.dataset.splits.assign`.
        manifest: as read.
        duplicates: duplicates.csv of ingest.
        source: name of the source with the official test part.
        published: images of each part of the published set; empty if they are not known.
    """
    paths = [
        *manifest.loc[manifest["source"] == source, "path"],
        *duplicates.loc[duplicates["source"] == source, "path"],
    ]
    # Some zips hold the set a second time inside itself: a file is its part, class folder and name.
    files = {PurePosixPath(path).parts[-3:] for path in paths}
    test = table.loc[table["split"] == "test", "image_id"]
    return PublishedSet(
        published=dict(published),
        at_hand=dict(Counter(parts[0] for parts in files)),
        test_images=len(test),
        duplicates_of_test=int(duplicates["kept_image_id"].isin(test).sum()),
    )


def patient_overlap(table: pd.DataFrame) -> PatientOverlap:
    """Count the patients of the test set who also have images in training or validation."""
    tested = set(table.loc[table["split"] == "test", "patient_id"])
    seen = set(table.loc[table["split"].isin(["train", "validation"]), "patient_id"])
    return PatientOverlap(overlapping=len(tested & seen), test_patients=len(tested))


def leakage(table: pd.DataFrame, params: SplitParams) -> str:
    """Return one sentence about patients that the test set shares with training and validation."""
    found = patient_overlap(table)
    if params.protocol == "paper":
        return (
            f"Split at random by image, as in the paper: {found.overlapping} of the {found.test_patients} patients in "
            "the test set also have images in training or validation, so the metrics are higher than for new patients."
        )
    by = f"by block {params.block} of {params.blocks} and by patient" if params.protocol == "block" else "by patient"
    return (
        f"Split {by}: {found.overlapping} of the {found.test_patients} patients in the test set have images in "
        "training or validation, as far as the sets identify patients. Near-duplicates are in the same split."
    )


def count_images(table: pd.DataFrame, params: SplitParams) -> dict[str, dict[str, int]]:
    """Return {split: {label: n}} with every class of the task; `unused` has only classes with images."""
    labels: dict[str, list[str]] = {name: list(CLASSES[params.task]) for name in SPLITS}
    unused = table.loc[table["split"] == UNUSED, "label"]
    labels[UNUSED] = [label for label in LABELS if label in set(unused)]
    found = table.groupby(["split", "label"]).size()
    return {name: {label: int(found.get((name, label), 0)) for label in labels[name]} for name in labels}
