"""All prepared images in one memory-mapped array, with an index from row to image_id.

`images.npy`          uint8 (N, H, W), C order
`index.csv`           `row,image_id`, in the order of the manifest
`preprocessing.json`  the fields of cxr.imaging.preprocess.Preprocessing
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cxr.common.artifacts import damaged, existing, read_csv, read_record
from cxr.common.errors import DataError
from cxr.common.files import write_json
from cxr.imaging.preprocess import Preprocessing

IMAGES_FILE, INDEX_FILE, PREPROCESSING_FILE = "images.npy", "index.csv", "preprocessing.json"
STAGE = "preprocess"


@with_config(ConfigDict(extra="forbid"))
class _PreprocessingKeys(TypedDict):
    image_size_px: int
    fit: Literal["stretch", "letterbox"]
    contrast: Literal["clahe", "equalize", "none"]
    clahe_clip_limit: float
    clahe_tiles: int
    max_pixels: int
    border_crop: NotRequired[float]


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
    with (folder / INDEX_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("row", "image_id"))
        writer.writerows(enumerate(image_ids))
    write_json(folder / PREPROCESSING_FILE, asdict(preprocessing))


def read_image_array(folder: Path) -> ImageArray:
    """Open the image array in `folder`; pixels stay on disk until they are used.

    Raises:
        DataError: a file is missing or damaged, or array and index disagree.
    """
    images = _open_images(existing(folder / IMAGES_FILE, STAGE))
    preprocessing = Preprocessing(**read_record(folder / PREPROCESSING_FILE, _PreprocessingKeys, stage=STAGE))
    index = read_csv(folder / INDEX_FILE, {"row": "int64", "image_id": "str"}, stage=STAGE)
    image_ids = index["image_id"].tolist()
    if len(image_ids) != len(images):
        raise DataError(
            f"{folder / IMAGES_FILE} holds {len(images)} images, but {folder / INDEX_FILE} lists {len(image_ids)}; "
            "run `./run dvc repro -f -s preprocess`"
        )
    return ImageArray(images, image_ids, preprocessing)


def _open_images(path: Path) -> NDArray[np.uint8]:
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise damaged(path, STAGE, expected="an array", found=str(error)) from error
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 3:
        shown = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise damaged(path, STAGE, expected="uint8 (N, H, W)", found=shown)
    return images
