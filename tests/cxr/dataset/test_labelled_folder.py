"""A hospital's folder: labels from its table, patients as digests."""

from pathlib import Path, PurePosixPath

import pytest

from cxr.common.errors import SourceError
from cxr.dataset.labelled_folder import read_labelled_folder
from cxr.dataset.layouts import Placement, Refusal
from cxr.dicom.deidentify import KEY_VARIABLE
from tests.support.dicom_images import SECRETS, dicom_image, picture


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "k" * 32)


def labels(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder


def test_label_part_and_patient_come_from_table_and_header_and_the_patient_only_as_a_digest(tmp_path: Path) -> None:
    folder = read_labelled_folder(
        labels(tmp_path, "path,label,official_split\na/IM1,viral,test\na/IM2,normal,\nb.png,bacterial,\n")
    )
    image = dicom_image(picture())
    one = folder.place(PurePosixPath("a/IM1"), image)
    other = folder.place(PurePosixPath("a/IM2"), image)
    png = folder.place(PurePosixPath("b.png"), b"\x89PNG")
    assert isinstance(one, Placement)
    assert isinstance(other, Placement)
    assert isinstance(png, Placement)
    assert (one.label, one.official_split, other.official_split) == ("viral", "test", "all")
    assert one.patient == other.patient != png.patient
    assert not any(secret in f"{one} {folder!r}" for secret in SECRETS)


def test_the_tables_patient_comes_before_the_headers(tmp_path: Path) -> None:
    folder = read_labelled_folder(labels(tmp_path, "path,label,patient_id\na,viral,P7\nb,normal,P8\nc,normal,P7\n"))
    patients = [folder.place(PurePosixPath(path), dicom_image(picture())) for path in "abc"]
    digests = [placed.patient for placed in patients if isinstance(placed, Placement)]
    assert digests[0] == digests[2] != digests[1]
    assert "P7" not in digests


def test_a_file_that_the_table_does_not_name_is_refused(tmp_path: Path) -> None:
    folder = read_labelled_folder(labels(tmp_path, "path,label\na,viral\n"))
    placed = folder.place(PurePosixPath("b"), b"")
    assert placed == Refusal("not in labels.csv", "has no line in labels.csv; add one, or leave the file out")


def test_what_is_kept_of_a_dicom_image_names_nobody_and_of_another_is_the_file(tmp_path: Path) -> None:
    folder = read_labelled_folder(labels(tmp_path, "path,label\na,viral\n"))
    kept = folder.kept(PurePosixPath("a"), dicom_image(picture()), max_pixels=10**6)
    assert not [secret for secret in SECRETS if secret.encode() in kept]
    assert folder.kept(PurePosixPath("a"), b"\x89PNG", max_pixels=10**6) == b"\x89PNG"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "labels.csv is missing: expected a table with the columns path, label"),
        ("image,label\na,viral\n", "missing in its header: path"),
        ("path,label\n", "has no line below its header"),
        ("path,label\na,flu\n", "line 2: label has to be one of normal, viral, bacterial, covid, got 'flu'"),
        ("path,label\n../a,viral\n", "line 2: path has to be of a file below the folder"),
        ("path,label\n/a,viral\n", "line 2: path has to be of a file below the folder"),
        ("path,label\na,viral\na,normal\n", "line 3: a has a line already"),
        ('path,label\n"a,viral\n', "cannot be read as CSV"),
    ],
)
def test_a_table_that_cannot_be_used_stops_with_the_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        labels(tmp_path, text)
    with pytest.raises(SourceError, match=message):
        read_labelled_folder(tmp_path)
