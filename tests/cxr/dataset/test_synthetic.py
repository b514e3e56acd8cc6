"""The embedded sample: laid out like the real sets, learnable, independent of exposure, with known faults."""

from collections import Counter
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr.dataset.layouts.raw_set import Annotation
from cxr.dataset.layouts.table import COVID19, KERMANY
from cxr.dataset.synthetic import DUPLICATE, KEPT, PLANTED, write_sample

PATIENTS = 24


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, patients_per_class=PATIENTS, seed=5)
    return folder


def all_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def annotations(folder: Path) -> dict[str, Annotation]:
    """Return the annotation of each image that was not planted."""
    found = {}
    for name in all_files(folder):
        if name not in PLANTED:
            top, inside = name.split("/", 1)
            layout = next(layout for layout in (KERMANY, COVID19) if layout.marker == top)
            annotation = layout.annotate(PurePosixPath(inside))
            assert isinstance(annotation, Annotation), annotation
            found[name] = annotation
    return found


def grey(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return np.asarray(image, dtype=np.uint8)


def thumbnail_correlation(one: Path, other: Path) -> float:
    thumbnails = [cv2.resize(grey(path), (32, 32), interpolation=cv2.INTER_AREA).ravel() for path in (one, other)]
    return float(np.corrcoef(*thumbnails)[0, 1])


def test_a_seed_writes_the_same_bytes_and_another_seed_other_images(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_sample(tmp_path / name, patients_per_class=2, seed=seed)
    one, again, other = (all_files(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert not [name for name in set(one) & set(other) - set(PLANTED) if one[name] == other[name]]


def test_more_patients_do_not_change_the_first_ones(tmp_path: Path) -> None:
    write_sample(tmp_path / "few", patients_per_class=2, seed=1)
    write_sample(tmp_path / "more", patients_per_class=3, seed=1)
    name = "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg"
    assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "more" / name).read_bytes()


def test_every_part_has_every_class(sample: Path) -> None:
    counted = Counter((name.split("/")[0], at.official_split, at.label) for name, at in annotations(sample).items())
    for part in ("train", "test"):
        assert min(counted["chest_xray", part, label] for label in ("normal", "viral", "bacterial")) >= 4
        assert min(counted["Covid19-dataset", part, label] for label in ("normal", "viral", "covid")) >= 1


def test_patients_have_several_images_and_numbers_restart_between_the_parts(sample: Path) -> None:
    kermany = [at for name, at in annotations(sample).items() if name.startswith("chest_xray")]
    images = Counter((at.official_split, at.patient) for at in kermany)
    assert max(images.values()) >= 3
    assert {("train", "train/person1"), ("test", "test/person1")} <= set(images)
    kinds = {patient: {at.label for at in kermany if at.patient == patient} for _, patient in images}
    assert any(len(labels) == 2 for labels in kinds.values()), "some person numbers have images of both kinds"


def test_images_have_the_sizes_and_formats_of_two_different_sources(sample: Path) -> None:
    sides = [side for name in list(annotations(sample))[::10] for side in grey(sample / name).shape]
    assert 300 <= min(sides) <= max(sides) <= 420
    assert {path.suffix for path in (sample / "Covid19-dataset").rglob("*.*")} == {".jpeg", ".png"}
    for image in list((sample / "Covid19-dataset/train/Covid").glob("0[1-9].*"))[:4]:
        assert grey(image)[0].max() < 40, "the second source's images have a black border"


def test_planted_files_have_their_faults(sample: Path) -> None:
    files = all_files(sample)
    assert set(PLANTED) <= set(files)
    copies = Counter(files.values())
    exact = [name for name, fate in PLANTED.items() if fate == DUPLICATE and copies[files[name]] == 2]
    assert len(exact) == 2
    (near,) = (name for name, fate in PLANTED.items() if fate == DUPLICATE and name not in exact)
    original = min((sample / "chest_xray/train/NORMAL").glob("*IM-*.jpeg"))
    assert files[near] != original.read_bytes()
    assert thumbnail_correlation(sample / near, original) > 0.999
    one, other = (files[name] for name, fate in PLANTED.items() if fate == "conflicting labels")
    assert one == other


def test_of_the_kept_planted_files_one_has_16_bits_and_one_is_a_near_duplicate(sample: Path) -> None:
    deep, alike = (sample / name for name, fate in PLANTED.items() if fate == KEPT)
    image = cv2.imread(str(deep), cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert image.dtype == np.uint16
    assert image.max() > 60_000
    original = min((sample / "chest_xray/train/PNEUMONIA").glob("*_virus_*.jpeg"))
    assert 0.98 < thumbnail_correlation(alike, original) < 0.995


def test_other_images_are_not_duplicates(sample: Path) -> None:
    names = list(annotations(sample))
    thumbnails = [cv2.resize(grey(sample / name), (32, 32), interpolation=cv2.INTER_AREA).ravel() for name in names]
    correlation = np.triu(np.corrcoef(np.array(thumbnails, dtype=np.float64)), 1)
    assert correlation.max() < 0.98


def test_classes_differ_in_shape_and_texture_and_not_in_exposure(sample: Path) -> None:
    """A sample that grey level alone separates would let any model look good."""
    kermany = {name: at for name, at in annotations(sample).items() if name.startswith("chest_xray")}
    images = [grey(sample / name) for name in kermany]
    label = np.array([at.label for at in kermany.values()])
    is_test = np.array([at.official_split == "test" for at in kermany.values()])
    exposure = np.array([[image.mean(), image.std()] for image in images])
    texture = np.array([shape_and_texture(image) for image in images])
    by_exposure, by_texture = (accuracy(features, label, is_test) for features in (exposure, texture))
    assert by_exposure < 0.5
    assert by_texture > by_exposure + 0.15


def shape_and_texture(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return coarse maps of fine structure, of medium structure, and of left-right difference, free of exposure."""
    small = cv2.resize(image, (112, 112), interpolation=cv2.INTER_AREA).astype(np.float32)
    small = (small - small.mean()) / small.std()
    fine = np.abs(small - cv2.GaussianBlur(small, (0, 0), 1.5))
    medium = np.abs(cv2.GaussianBlur(small, (0, 0), 2) - cv2.GaussianBlur(small, (0, 0), 6))
    coarse = cv2.resize(small, (8, 8), interpolation=cv2.INTER_AREA)
    maps = [cv2.resize(plane, (6, 6), interpolation=cv2.INTER_AREA).ravel() for plane in (fine, medium)]
    return np.concatenate([*maps, np.abs(coarse - coarse[:, ::-1])[:, :4].ravel()])


def accuracy(features: NDArray[np.float32], label: NDArray[np.str_], is_test: NDArray[np.bool_]) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000))
    return float(model.fit(features[~is_test], label[~is_test]).score(features[is_test], label[is_test]))


def test_a_sample_of_one_patient_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a sample needs at least 2 patients of each class, got 1"):
        write_sample(tmp_path, patients_per_class=1, seed=0)
