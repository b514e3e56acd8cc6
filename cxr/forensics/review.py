"""The images whose labels are doubted most, for a person to look at."""

from dataclasses import dataclass

import pandas as pd

from cxr.dataset.shards import Shards
from cxr.forensics.measure import measure_image
from cxr.imaging.encode import jpeg_data_url


@dataclass(frozen=True)
class DoubtedImage:
    """An image on the contact sheet: its label, the suggested one, their probabilities, and the picture."""

    image_id: str
    path: str
    label: str
    suggested: str
    probability_of_label: float
    probability_of_suggested: float
    picture: str


def doubted_images(labels: pd.DataFrame, shards: Shards, *, at_most: int, max_pixels: int) -> list[DoubtedImage]:
    """Return the first flagged images of label_audit.csv, the most doubted first.

    Args:
        labels: as cxr.forensics.label_audit.ranked_table makes it; may hold several sources.
        shards: the packed images.
        at_most: number of images.
        max_pixels: larger images are rejected.

    Raises:
        DataError: an image is missing or its shard is damaged.
    """
    if labels.empty:
        return []
    flagged = labels[labels["flagged"]].sort_values(["margin", "image_id"], ascending=[False, True])
    return [
        DoubtedImage(
            image_id=row["image_id"],
            path=row["path"],
            label=row["label"],
            suggested=row["suggested"],
            probability_of_label=row[f"p_{row['label']}"],
            probability_of_suggested=row[f"p_{row['suggested']}"],
            picture=jpeg_data_url(
                measure_image(shards.read(row["path"]), name=row["path"], max_pixels=max_pixels).pixels
            ),
        )
        for row in flagged.head(at_most).to_dict("records")
    ]
