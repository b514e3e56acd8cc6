"""The images whose labels are doubted most, for a person to look at."""

from dataclasses import dataclass

import pandas as pd

from cxr.dataset.shards import Shards
from cxr.forensics.measure import measure_each
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
        ImageError: an image cannot be decoded; see cxr.forensics.measure.measure_each.
    """
    if labels.empty:
        return []
    flagged = labels[labels["flagged"]].sort_values(["margin", "image_id"], ascending=[False, True]).head(at_most)
    measured = measure_each(shards, flagged["path"].tolist(), max_pixels=max_pixels, workers=1)
    return [
        DoubtedImage(
            image_id=row["image_id"],
            path=row["path"],
            label=row["label"],
            suggested=row["suggested"],
            probability_of_label=row[f"p_{row['label']}"],
            probability_of_suggested=row[f"p_{row['suggested']}"],
            picture=jpeg_data_url(image.pixels),
        )
        for row, image in zip(flagged.to_dict("records"), measured, strict=True)
    ]
