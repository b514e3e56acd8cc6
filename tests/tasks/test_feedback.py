"""What readers said becomes a folder that ingest and the external test take."""

import hashlib
from pathlib import Path

import pytest

from cxr.common.errors import ParamsError, SourceError
from cxr.dataset.external_set import read_external_set
from cxr.dataset.labelled_folder import LabelledFolder
from cxr.inference.feedback import Feedback, add_feedback
from tasks.feedback import feedback
from tests.support.dicom_images import dicom_image, picture


def labelled(table: Path, data: bytes, label: str) -> str:
    """Add feedback on an image; return its digest."""
    sha256 = hashlib.sha256(data).hexdigest()
    add_feedback(table, Feedback("2026-03-01T11:30:00+00:00", sha256, "12", "viral", label))
    return sha256


def test_labelled_images_are_found_by_digest_and_both_readers_take_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, table, output = tmp_path / "images" / "Jane Sorrowful", tmp_path / "feedback.csv", tmp_path / "readers"
    images.mkdir(parents=True)
    contents = {"a.PNG": b"first", "b.dcm": dicom_image(picture()), "c.png": b"nobody looked at it"}
    for name, data in contents.items():
        (images / name).write_bytes(data)
    labelled(table, b"elsewhere", "normal")
    first = labelled(table, contents["a.PNG"], "normal")
    second = labelled(table, contents["b.dcm"], "viral")
    labelled(table, contents["a.PNG"], "bacterial")
    assert feedback(table, tmp_path / "images", output) == 2
    said = capsys.readouterr().out
    assert said.startswith("2 of 3 labelled images found")
    assert "agreed with 1 answers and corrected 1" in said
    expected = {f"{first[:32]}.png": "bacterial", f"{second[:32]}.dcm": "viral"}
    assert sorted(path.name for path in output.iterdir()) == sorted([*expected, "labels.csv"])
    paths = list(expected)
    external = read_external_set("readers", paths, table=output / "labels.csv", part=None)
    assert {image.path: image.label for image in external.images} == expected
    monkeypatch.setenv("CXR_PATIENT_KEY", "k" * 32)
    opened = LabelledFolder().open(output)
    assert {str(path): row.label for path, row in opened.rows.items()} == expected
    assert not list(tmp_path.glob(".*partial"))


def test_nothing_to_export_is_one_line(tmp_path: Path) -> None:
    table = tmp_path / "feedback.csv"
    with pytest.raises(ParamsError, match="has no row"):
        feedback(table, tmp_path, tmp_path / "readers")
    labelled(table, b"elsewhere", "normal")
    with pytest.raises(SourceError, match="has none of the 1 images"):
        feedback(table, tmp_path, tmp_path / "readers")
    with pytest.raises(SourceError, match="is not a folder"):
        feedback(table, tmp_path / "nowhere", tmp_path / "readers")
    assert not (tmp_path / "readers").exists()
