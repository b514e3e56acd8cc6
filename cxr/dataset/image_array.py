"""All prepared images in one memory-mapped array, with an index from row to image_id.

`images.npy`          uint8 (N, H, W), C order
`index.csv`           `row,image_id`, in the order of the manifest
`preprocessing.json`  the fields of cxr.imaging.preprocess.Preprocessing
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import DataError
from cxr.common.files import read_json, write_json
from cxr.imaging.preprocess import Preprocessing

IMAGES_FILE = "images.npy"


@dataclass(frozen=True)
class ImageArray:
    """Prepared images, uint8 (N, H, W), and the image_id of each row."""

    images: NDArray[np.uint8]
    image_ids: list[str]
    preprocessing: Preprocessing

    def rows(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each image_id. Raises DataError for an image_id that is not in the array."""
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        missing = [image_id for image_id in image_ids if image_id not in row_of]
        if missing:
            raise DataError(
                f"{len(missing)} images of the split are not in the image array, such as {missing[0]}; "
                "run `./run dvc repro preprocess`"
            )
        return np.array([row_of[image_id] for image_id in image_ids], np.int64)


def write_index(folder: Path, image_ids: Sequence[str], preprocessing: Preprocessing) -> None:
    """Write index.csv and preprocessing.json beside an images.npy."""
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("row", "image_id"))
        writer.writerows(enumerate(image_ids))
    write_json(folder / "preprocessing.json", asdict(preprocessing))


def read_image_array(folder: Path) -> ImageArray:
    """Open the image array in `folder`; pixels stay on disk until they are used.

    Raises:
        DataError: a file is missing, or array and index disagree.
    """
    try:
        images = np.load(folder / IMAGES_FILE, mmap_mode="r", allow_pickle=False)
        preprocessing = Preprocessing(**read_json(folder / "preprocessing.json"))
        with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
            image_ids = [row["image_id"] for row in csv.DictReader(file)]
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing; run `./run dvc repro preprocess`") from None
    if len(image_ids) != len(images):
        raise DataError(
            f"{folder} holds {len(images)} images, but its index lists {len(image_ids)}; "
            "run `./run dvc repro -f preprocess`"
        )
    return ImageArray(images, image_ids, preprocessing)
