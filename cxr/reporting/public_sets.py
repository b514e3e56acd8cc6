"""Published facts about the public sets, for cards and front pages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublicSet:
    """Published facts about a set with a known layout."""

    name: str
    creators: str
    address: str
    licence: str
    collected: str
    people: str
    labels: str
    biases: tuple[str, ...]


PUBLIC_SETS = {
    "chest_xray": PublicSet(
        name="Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, version 2",
        creators="Kermany, Zhang and Goldbaum, 2018",
        address="https://doi.org/10.17632/rscbjbr9sj.2",
        licence="CC BY 4.0",
        collected="Frontal (anterior-posterior) images of children of one to five years, taken in routine care at the "
        "Guangzhou Women and Children's Medical Center.",
        people="children of one to five years in one hospital in Guangzhou",
        labels="Read by two physicians; a third checked the set's own test part (Kermany et al. 2018).",
        biases=(
            "Children of one hospital: results do not carry over to adults, other hospitals or other machines.",
            "Bacterial and viral are readings of an image, not results of a culture; readers agree only moderately.",
            "Several images of one patient; one number stands for two people, one with each agent.",
            "Labels and style change together along the numbers of the file names (docs/data-forensics.md).",
            "Neither age, sex nor date of an image is published.",
        ),
    ),
    "covid19": PublicSet(
        name="Covid-19 Image Dataset",
        creators="Kaggle, pranavraikokte",
        address="https://www.kaggle.com/datasets/pranavraikokte/covid19-image-dataset",
        licence="CC BY-SA 4.0",
        collected="Images put together from public collections, mostly of adults.",
        people="mostly adults, from public collections",
        labels="Taken over from those collections; how they were made is not documented.",
        biases=(
            "It has no bacterial class: where both sets are merged, the source gives part of the label away.",
            "Adults here, children in the Kermany set: age, size and text markers reveal the source.",
            "Neither patients, age, sex nor machine are published; each file counts as a patient of its own unless "
            "its name says otherwise.",
        ),
    ),
}
"""By the layout of a source. A folder with the layout of a set is not necessarily that set."""


def public_set(name: str, ingest: Mapping[str, Any]) -> PublicSet | None:
    """Return the public description of a source of ingest.json; None for synthetic images or an unrecorded layout."""
    return None if ingest["synthetic"] else PUBLIC_SETS.get(ingest.get("layouts", {}).get(name, ""))
