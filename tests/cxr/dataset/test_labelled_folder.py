"""A folder with labels.csv: labels from the table, patients as digests."""

from datetime import date
from pathlib import Path, PurePosixPath

import pytest

from cxr.common.errors import SourceError
from cxr.dataset.layouts.labelled_folder import LabelledFolder
from cxr.dataset.layouts.raw_set import Acquisition, Annotation, Rejection
from cxr.dicom.deidentify import KEY_VARIABLE, shifted_day
from tests.support.images.dicom_images import SECRETS, dicom_image, picture


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "k" * 32)


def labels(folder: Path, text: str, *images: str) -> Path:
    """Write labels.csv and empty files `images` into `folder`."""
    for image in images:
        (folder / image).parent.mkdir(exist_ok=True)
        (folder / image).touch()
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder


def test_label_part_and_patient_digest_come_from_table_and_header(tmp_path: Path) -> None:
    folder = LabelledFolder().open(
        labels(
            tmp_path,
            "path,label,official_split\na/IM1,viral,test\na/IM2,normal,\nb.png,bacterial,\n",
            "a/IM1",
            "a/IM2",
            "b.png",
        )
    )
    image = dicom_image(picture())
    one = folder.annotate(PurePosixPath("a/IM1"), image)
    other = folder.annotate(PurePosixPath("a/IM2"), image)
    png = folder.annotate(PurePosixPath("b.png"), b"\x89PNG")
    assert isinstance(one, Annotation)
    assert isinstance(other, Annotation)
    assert isinstance(png, Annotation)
    assert (one.label, one.official_split, other.official_split) == ("viral", "test", "all")
    assert one.patient == other.patient != png.patient
    assert not any(secret in f"{one} {folder!r}" for secret in SECRETS)


def test_the_patient_of_the_table_overrides_that_of_the_header(tmp_path: Path) -> None:
    folder = LabelledFolder().open(
        labels(tmp_path, "path,label,patient_id\na,viral,P7\nb,normal,P8\nc,normal,P7\n", *"abc")
    )
    patients = [folder.annotate(PurePosixPath(path), dicom_image(picture())) for path in "abc"]
    digests = [one.patient for one in patients if isinstance(one, Annotation)]
    assert digests[0] == digests[2] != digests[1]
    assert "P7" not in digests


def acquired(folder: Path, table: str) -> list[Acquisition | None]:
    opened = LabelledFolder().open(labels(folder, table, *"abc"))
    image = {"a": dicom_image(picture(), StudyDate="20240131"), "b": dicom_image(picture(), StudyDate="not one")}
    found = [opened.annotate(PurePosixPath(path), image.get(path, b"\x89PNG")) for path in "abc"]
    return [one.acquisition for one in found if isinstance(one, Annotation)]


def test_the_order_of_acquisition_comes_from_the_table(tmp_path: Path) -> None:
    found = acquired(tmp_path, "path,label,acquired\na,viral,12\nb,normal,7\nc,normal,100\n")
    assert found == [Acquisition("acquired", number) for number in (12, 7, 100)]


def test_dates_become_days_that_keep_their_distance_and_hide_the_date(tmp_path: Path) -> None:
    one, other, _ = acquired(
        tmp_path, "path,label,acquired\na,viral,2024-02-01\nb,normal,2023-02-01\nc,normal,2024-02-01\n"
    )
    assert one is not None
    assert other is not None
    assert one.number - other.number == 365
    assert one.number != date(2024, 2, 1).toordinal()


def test_without_the_column_the_date_is_that_of_the_dicom_study(tmp_path: Path) -> None:
    study, *others = acquired(tmp_path, "path,label\na,viral\nb,normal\nc,normal\n")
    assert study == Acquisition("acquired", shifted_day(date(2024, 1, 31), key=b"k" * 32))
    assert others == [None, None]


def test_a_file_without_a_line_in_the_table_is_rejected(tmp_path: Path) -> None:
    folder = LabelledFolder().open(labels(tmp_path, "path,label\na,viral\n", "a"))
    annotation = folder.annotate(PurePosixPath("b"), b"")
    assert isinstance(annotation, Rejection)
    assert annotation.reason == "not in labels.csv"


def test_stored_bytes_have_no_patient_in_dicom_and_are_unchanged_otherwise(tmp_path: Path) -> None:
    folder = LabelledFolder().open(labels(tmp_path, "path,label\na,viral\n", "a"))
    kept = folder.stored_bytes(PurePosixPath("a"), dicom_image(picture()), max_pixels=10**6)
    assert not [secret for secret in SECRETS if secret.encode() in kept]
    assert folder.stored_bytes(PurePosixPath("a"), b"\x89PNG", max_pixels=10**6) == b"\x89PNG"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "labels.csv is missing"),
        ("image,label\na,viral\n", "path"),
        ("path,label,label\na,viral,normal\n", "names label more than once"),
        ("path,label\n", "one line per image"),
        ("path,label\na,flu\n", "line 2: label .*'flu'"),
        ("path,label\n../a,viral\n", "line 2: path"),
        ("path,label\n/a,viral\n", "line 2: path"),
        ("path,label\na,viral\na,normal\n", "line 3: a "),
        ("path,label,acquired\na,viral,late\n", "line 2: acquired is 'late'; expected a whole number"),
        ("path,label,acquired\na,viral,9999999999999999999\n", "line 2: acquired is"),
        ("path,label,acquired\na,viral,7\nb,viral,\n", "line 3: acquired is '', unlike"),
        ("path,label,acquired\na,viral,7\nb,viral,2024-01-31\n", "line 3: acquired is '2024-01-31', unlike"),
        ('path,label\n"a,viral\n', "CSV"),
        ("path,label\na,viral\ngone,viral\n", "such as gone"),
    ],
)
def test_an_error_in_the_table_names_the_line(tmp_path: Path, text: str | None, named: str) -> None:
    (tmp_path / "a").touch()
    if text is not None:
        labels(tmp_path, text)
    with pytest.raises(SourceError, match=named):
        LabelledFolder().open(tmp_path)
