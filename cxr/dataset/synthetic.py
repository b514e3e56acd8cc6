"""The embedded sample: synthetic images with the folders and file names of the real sets.

    chest_xray/{train,test}/{NORMAL,PNEUMONIA}                   several images per patient; numbers restart in test
    Covid19-dataset/{train,test}/{Covid,Normal,Viral Pneumonia}  fewer images, with another appearance

No image shows a real person. PLANTED lists files that ingest has to reject or deduplicate. The same seed writes the
same bytes on one kind of processor; on another, arithmetic differs in its last bits.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.common.classes import Label
from cxr.common.threads import map_in_order
from cxr.dataset.synthetic_image import (
    COVID19_LOOK,
    KERMANY_LOOK,
    Anatomy,
    Finding,
    Look,
    draw_anatomy,
    draw_finding,
    draw_image,
)

Grey = NDArray[np.uint8]
Drawing = Callable[[], None]
"""Draws and writes the images of one patient. Each has random numbers of its own, so threads may run them."""

_KERMANY, _COVID19 = "chest_xray", "Covid19-dataset"
_FIRST_NORMAL = 115  # the real set's first numbers
_COVID19_FOLDERS: dict[Label, str] = {"covid": "Covid", "normal": "Normal", "viral": "Viral Pneumonia"}
_IMAGES_A_PATIENT = (1, 1, 2, 2, 3)
_TEST_ONE_IN = 5
_COVID19_ONE_IN = 3

KEPT, DUPLICATE = "kept", "duplicate"
PLANTED: dict[str, str] = {
    "chest_xray/train/PNEUMONIA/person9001_bacteria_1.jpeg": DUPLICATE,
    "chest_xray/train/NORMAL/NORMAL2-IM-9002-0001.jpeg": DUPLICATE,
    "Covid19-dataset/train/Normal/0900.jpeg": DUPLICATE,
    "chest_xray/train/NORMAL/IM-9003-0001.jpeg": "conflicting labels",
    "chest_xray/train/PNEUMONIA/person9003_virus_1.jpeg": "conflicting labels",
    "chest_xray/train/PNEUMONIA/person9004_virus_1.jpeg": "truncated",
    "chest_xray/train/PNEUMONIA/person9005_bacteria_1.jpeg": "empty",
    "Covid19-dataset/train/Covid/0901.jpeg": "not an image",
    "chest_xray/train/UNSURE/person9006_virus_1.jpeg": "unknown class folder",
    "Covid19-dataset/train/Covid/0902.png": KEPT,
    "chest_xray/train/PNEUMONIA/person9007_virus_1.jpeg": KEPT,
}
"""Path of a planted file -> expected result: kept, duplicate, or the reason of its rejection.

The first two duplicates have the bytes of an image of their own set; the third is a re-encoded image of the other set.
The two files with conflicting labels have the same bytes. Of the two kept files one has 16 bits per pixel, and one is a
near-duplicate of the first viral image: both must be in the same split.
"""


def write_sample(folder: Path, *, patients_per_class: int, seed: int) -> None:
    """Write both synthetic sets into `folder`.

    A patient has one to three images. One patient in five is in the test parts; the second set has a third of the
    patients of the first. The `PLANTED` files are added. With fewer than 25 patients per class their share exceeds the
    default limit of `validate`.

    Args:
        folder: created if it does not exist; files with the same names are replaced.
        patients_per_class: at least 2.
        seed: of all random numbers.
    """
    if patients_per_class < 2:
        raise ValueError(f"a sample needs at least 2 patients of each class, got {patients_per_class}")
    kermany = _kermany(folder, patients_per_class, seed)
    covid19 = _covid19(folder, max(patients_per_class // _COVID19_ONE_IN, 2), seed)
    for _ in map_in_order(lambda drawing: drawing(), chain(kermany, covid19), workers=0):
        pass
    _plant(folder, seed)


def _kermany(folder: Path, n_patients: int, seed: int) -> Iterator[Drawing]:
    images_written = {"bacteria": 0, "virus": 0}

    def normal(number: int, image: int) -> str:
        prefix = "NORMAL2-" if number % 2 else ""
        return f"NORMAL/{prefix}IM-{number + _FIRST_NORMAL:04d}-{image + 1:04d}.jpeg"

    def pneumonia(agent: str) -> Callable[[int, int], str]:
        def name(number: int, _image: int) -> str:
            images_written[agent] += 1
            return f"PNEUMONIA/person{number}_{agent}_{images_written[agent]}.jpeg"

        return name

    for part, count in _parts(n_patients):
        # As in the real set, some patient numbers have images of both kinds.
        first_viral = count - count // 10 + 1
        root = folder / _KERMANY / part
        yield from _patients(root, "normal", range(1, count + 1), normal, seed)
        yield from _patients(root, "bacterial", range(1, count + 1), pneumonia("bacteria"), seed)
        yield from _patients(root, "viral", range(first_viral, first_viral + count), pneumonia("virus"), seed)


def _patients(
    root: Path, label: Label, numbers: range, name: Callable[[int, int], str], seed: int
) -> Iterator[Drawing]:
    """Yield the drawings of the patients `numbers` of one class; viral and bacterial patients share their numbers."""
    for number in numbers:
        person = _rng(seed, root.name, "normal" if label == "normal" else "pneumonia", number)
        anatomy = draw_anatomy(person)
        images = _rng(seed, root.name, label, number)
        finding = draw_finding(label, images)
        paths = [root / name(number, image) for image in range(int(images.choice(_IMAGES_A_PATIENT)))]
        yield partial(_write_patient, paths, anatomy, finding, images)


def _write_patient(paths: list[Path], anatomy: Anatomy, finding: Finding, rng: np.random.Generator) -> None:
    for path in paths:
        _write(path, draw_image(anatomy, finding, KERMANY_LOOK, rng))


def _covid19(folder: Path, n_patients: int, seed: int) -> Iterator[Drawing]:
    """Yield the drawings of one image per patient: PNG and JPEG, grey and RGB, the same names in every folder."""
    for part, count in _parts(n_patients):
        for label, class_folder in _COVID19_FOLDERS.items():
            for number in range(1, count + 1):
                suffix = "png" if number % 4 == 0 else "jpeg"
                path = folder / _COVID19 / part / class_folder / f"0{number}.{suffix}"
                rng = _rng(seed, part, class_folder, number)
                yield partial(_write_covid19, path, label, rng, is_rgb=number % 3 == 0)


def _write_covid19(path: Path, label: Label, rng: np.random.Generator, *, is_rgb: bool) -> None:
    image = _one_image(label, COVID19_LOOK, rng)
    _write(path, np.repeat(image[:, :, None], 3, axis=2) if is_rgb else image)


def _plant(folder: Path, seed: int) -> None:
    """Write the files of PLANTED."""
    (twin, normal_twin, across, conflict, conflict_too, truncated, empty, text, unsure, deep, alike) = (
        folder / path for path in PLANTED
    )
    train = folder / _KERMANY / "train"
    _write_bytes(twin, _first(train, "PNEUMONIA/person1_bacteria_*.jpeg").read_bytes())
    first_normal = _first(train, "NORMAL/*IM-*.jpeg")
    _write_bytes(normal_twin, first_normal.read_bytes())
    _write(across, _read(first_normal), quality=80)
    whole = [_encoded(_one_image("viral", KERMANY_LOOK, _rng(seed, "planted", "image", n)), ".jpeg") for n in range(3)]
    _write_bytes(conflict, whole[0])
    _write_bytes(conflict_too, whole[0])
    _write_bytes(truncated, whole[1][: len(whole[1]) // 2])
    _write_bytes(empty, b"")
    _write_bytes(text, b"Image not found in the archive.\n")
    _write_bytes(unsure, whole[2])
    covid = _one_image("covid", COVID19_LOOK, _rng(seed, "planted", "deep", 0))
    _write(deep, covid.astype(np.uint16) * 257)
    _write(alike, _shifted(_read(_first(train, "PNEUMONIA/*_virus_*.jpeg"))))


def _shifted(image: Grey) -> Grey:
    """Cut off rows and columns until thumbnails of both images correlate below 0.99: a near-duplicate."""
    small = [cv2.resize(image[cut:, cut:], (32, 32), interpolation=cv2.INTER_AREA).ravel() for cut in range(40)]
    return next((image[cut:, cut:] for cut in range(40) if np.corrcoef(small[0], small[cut])[0, 1] < 0.99), image)


def _parts(n_patients: int) -> Iterator[tuple[str, int]]:
    n_test = max(n_patients // _TEST_ONE_IN, 1)
    yield "train", n_patients - n_test
    yield "test", n_test


def _one_image(label: Label, look: Look, rng: np.random.Generator) -> Grey:
    anatomy, finding = draw_anatomy(rng), draw_finding(label, rng)
    return draw_image(anatomy, finding, look, rng)


def _rng(seed: int, part: str, kind: str, number: int) -> np.random.Generator:
    """Return a generator for one patient, so that adding patients does not change the others."""
    return np.random.default_rng([seed, *f"{part}/{kind}".encode(), number])


def _first(folder: Path, pattern: str) -> Path:
    return min(folder.glob(pattern))


def _read(path: Path) -> Grey:
    return np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE), dtype=np.uint8)


def _encoded(pixels: NDArray[np.uint8] | NDArray[np.uint16], suffix: str, quality: int = 92) -> bytes:
    _, data = cv2.imencode(suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpeg" else [])
    return data.tobytes()


def _write(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16], quality: int = 92) -> None:
    _write_bytes(path, _encoded(pixels, path.suffix, quality))


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
