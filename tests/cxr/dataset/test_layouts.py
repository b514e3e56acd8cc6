from pathlib import Path, PurePosixPath

import pytest

from cxr.common.classes import Label
from cxr.common.errors import SourceError
from cxr.dataset.layouts import LAYOUTS, Placement, Refusal, files_of, find_set

KERMANY, COVID19 = LAYOUTS["chest_xray"], LAYOUTS["covid19"]


@pytest.mark.parametrize(
    ("path", "label", "part", "patient"),
    [
        ("train/PNEUMONIA/person12_bacteria_46.jpeg", "bacterial", "train", "person12"),
        ("train/PNEUMONIA/person12_virus_46.jpeg", "viral", "train", "person12"),
        ("val/PNEUMONIA/person1946_bacteria_4874.jpeg", "bacterial", "val", "person1946"),
        ("train/PNEUMONIA/person1_virus_2_1.jpeg", "viral", "train", "person1"),
        ("test/NORMAL/IM-0117-0001.jpeg", "normal", "test", "IM-0117"),
        # With and without the prefix: one person, to be safe.
        ("train/NORMAL/NORMAL2-IM-0117-0001-0002.jpeg", "normal", "train", "IM-0117"),
        ("train/NORMAL/another name.jpeg", "normal", "train", "another name"),
        # Kaggle's zip holds the set a second time inside itself.
        ("chest_xray/train/NORMAL/IM-0117-0001.jpeg", "normal", "train", "IM-0117"),
    ],
)
def test_a_kermany_path_tells_label_part_and_patient(path: str, label: Label, part: str, patient: str) -> None:
    assert KERMANY.place(PurePosixPath(path)) == Placement(label, part, f"{part}/{patient}")


@pytest.mark.parametrize(
    ("path", "label", "part", "patient"),
    [
        ("train/Covid/012.jpeg", "covid", "train", "Covid/012"),
        ("test/Viral Pneumonia/0101.jpeg", "viral", "test", "Viral Pneumonia/0101"),
        ("train/Normal/01.jpeg", "normal", "train", "Normal/01"),
        # Two views of one person.
        ("train/Covid/COVID-00003b.jpg", "covid", "train", "Covid/COVID-00003"),
        ("train/Covid/auntminnie-b-2020_01_28_Vietnam.jpeg", "covid", "train", "Covid/auntminnie-2020_01_28_Vietnam"),
    ],
)
def test_a_covid19_path_tells_label_part_and_patient(path: str, label: Label, part: str, patient: str) -> None:
    assert COVID19.place(PurePosixPath(path)) == Placement(label, part, f"{part}/{patient}")


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        (
            "train/UNSURE/person1_virus_1.jpeg",
            Refusal("unknown class folder", "lies in train/UNSURE; expected {train,val,test}/{NORMAL,PNEUMONIA}"),
        ),
        ("IM-1.jpeg", Refusal("unknown class folder", "lies in .; expected {train,val,test}/{NORMAL,PNEUMONIA}")),
        (
            "train/NORMAL/more/IM-1.jpeg",
            Refusal("unknown class folder", "lies in train/NORMAL/more; expected {train,val,test}/{NORMAL,PNEUMONIA}"),
        ),
        (
            "train/PNEUMONIA/person1_fungus_1.jpeg",
            Refusal(
                "unknown class in the file name",
                "lies in PNEUMONIA and its name is not personN_bacteria_M or personN_virus_M",
            ),
        ),
        (
            "train/NORMAL/person1_virus_1.jpeg",
            Refusal("unknown class in the file name", "lies in NORMAL and its name says virus"),
        ),
    ],
)
def test_a_path_that_tells_no_class_is_refused_with_the_reason(path: str, refusal: Refusal) -> None:
    assert KERMANY.place(PurePosixPath(path)) == refusal


@pytest.mark.parametrize("inside", ["", "chest_xray", "chest_xray/chest_xray"])
def test_the_set_is_found_in_the_folder_or_below_it(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside / "train").mkdir(parents=True)
    expected = tmp_path / "chest_xray" if inside else tmp_path
    assert find_set(tmp_path, KERMANY) == expected.resolve()


def test_a_folder_without_the_set_is_named_with_the_layout_that_was_expected(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError) as caught:
        find_set(tmp_path, COVID19)
    assert str(caught.value) == (
        f"{tmp_path}: no images of the set found; expected Covid19-dataset/{{train,test}}/"
        "{Covid,Normal,Viral Pneumonia} below it; unpack the set's zip there, or name the right folder, zip or address"
    )


def test_files_are_listed_sorted_with_links_to_folders_counted_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2").touch()
    (tmp_path / "b" / "1").touch()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    assert [str(path) for path in files_of(tmp_path)] == ["a", "b/1", "b/2"]
