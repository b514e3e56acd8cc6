"""Label, official part and patient from the file names of the public sets; the table of layouts."""

from pathlib import Path, PurePosixPath

import pytest

from cxr.common.classes import Label
from cxr.common.errors import ParamsError, SourceError
from cxr.dataset.layouts.raw_set import Acquisition, Annotation, Rejection, files_below
from cxr.dataset.layouts.table import COVID19, KERMANY, LAYOUTS, layout_named, layouts_in


@pytest.mark.parametrize(
    ("path", "label", "part", "patient", "acquisition"),
    [
        ("train/PNEUMONIA/person12_bacteria_46.jpeg", "bacterial", "train", "person12", ("bacteria", 12)),
        # The agents count by themselves; the patient is the same, to be safe.
        ("train/PNEUMONIA/person12_virus_46.jpeg", "viral", "train", "person12", ("virus", 12)),
        ("val/PNEUMONIA/person1946_bacteria_4874.jpeg", "bacterial", "val", "person1946", ("bacteria", 1946)),
        ("train/PNEUMONIA/person1_virus_2_1.jpeg", "viral", "train", "person1", ("virus", 1)),
        ("test/NORMAL/IM-0117-0001.jpeg", "normal", "test", "IM-0117", ("IM", 117)),
        # With and without the prefix: one patient, to be safe.
        ("train/NORMAL/NORMAL2-IM-0117-0001-0002.jpeg", "normal", "train", "IM-0117", ("NORMAL2-IM", 117)),
        ("train/NORMAL/another name.jpeg", "normal", "train", "another name", None),
        # No running number, and more than a table of whole numbers holds.
        ("train/NORMAL/IM-20231231235959123456-0001.jpeg", "normal", "train", "IM-20231231235959123456", None),
        # Kaggle's zip holds the set a second time inside itself.
        ("chest_xray/train/NORMAL/IM-0117-0001.jpeg", "normal", "train", "IM-0117", ("IM", 117)),
    ],
)
def test_a_kermany_path_gives_label_part_patient_and_acquisition(
    path: str, label: Label, part: str, patient: str, acquisition: tuple[str, int] | None
) -> None:
    expected = Acquisition(*acquisition) if acquisition else None
    assert KERMANY.annotate(PurePosixPath(path)) == Annotation(label, part, f"{part}/{patient}", expected)


@pytest.mark.parametrize(
    ("path", "label", "part", "patient"),
    [
        ("train/Covid/012.jpeg", "covid", "train", "Covid/012"),
        ("test/Viral Pneumonia/0101.jpeg", "viral", "test", "Viral Pneumonia/0101"),
        ("train/Normal/01.jpeg", "normal", "train", "Normal/01"),
        # Two views of one patient.
        ("train/Covid/COVID-00003b.jpg", "covid", "train", "Covid/COVID-00003"),
        ("train/Covid/auntminnie-b-2020_01_28_Vietnam.jpeg", "covid", "train", "Covid/auntminnie-2020_01_28_Vietnam"),
    ],
)
def test_a_covid19_path_gives_label_part_and_patient(path: str, label: Label, part: str, patient: str) -> None:
    assert COVID19.annotate(PurePosixPath(path)) == Annotation(label, part, f"{part}/{patient}")


@pytest.mark.parametrize(
    ("path", "reason", "detail"),
    [
        ("train/UNSURE/person1_virus_1.jpeg", "unknown class folder", "train/UNSURE"),
        ("IM-1.jpeg", "unknown class folder", "{train,val,test}/{NORMAL,PNEUMONIA}"),
        ("train/NORMAL/more/IM-1.jpeg", "unknown class folder", "train/NORMAL/more"),
        ("train/PNEUMONIA/person1_fungus_1.jpeg", "unknown class in the file name", "personN_virus_M"),
        ("train/NORMAL/person1_virus_1.jpeg", "unknown class in the file name", "virus"),
    ],
)
def test_a_path_without_a_class_is_rejected_with_the_reason(path: str, reason: str, detail: str) -> None:
    found = KERMANY.annotate(PurePosixPath(path))
    assert isinstance(found, Rejection)
    assert found.reason == reason
    assert detail in found.detail


@pytest.mark.parametrize("inside", ["", "chest_xray", "chest_xray/chest_xray"])
def test_the_set_is_found_in_the_folder_or_below_it(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside / "train").mkdir(parents=True)
    expected = tmp_path / "chest_xray" if inside else tmp_path
    assert KERMANY.find(tmp_path) == expected.resolve()


def test_an_error_names_the_expected_layout_where_there_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError) as caught:
        COVID19.open(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}:")
    assert "Covid19-dataset/{train,test}/{Covid,Normal,Viral Pneumonia}" in str(caught.value)


def test_layouts_are_recognised_by_their_markers(tmp_path: Path) -> None:
    (tmp_path / "Covid19-dataset").mkdir()
    (tmp_path / "chest_xray").mkdir()
    assert layouts_in(tmp_path) == ["chest_xray", "covid19"]
    (tmp_path / "labels.csv").touch()
    assert layouts_in(tmp_path) == ["labelled"]


def test_an_unknown_layout_is_named_with_the_known_ones() -> None:
    assert layout_named("covid19") is COVID19
    with pytest.raises(ParamsError) as caught:
        layout_named("mimic")
    assert all(name in str(caught.value) for name in ("mimic", *LAYOUTS))


def test_files_are_listed_sorted_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2").touch()
    (tmp_path / "b" / "1").touch()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    assert [str(path) for path in files_below(tmp_path)] == ["a", "b/1", "b/2"]
