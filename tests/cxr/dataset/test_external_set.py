"""The groups of an external set: folders and columns, as long as there are few of them."""

from pathlib import Path

import pytest

from cxr.common.errors import SourceError
from cxr.dataset.external_set import MOST_GROUPS, ExternalSet, read_external_set


def by_folder(folders: int) -> ExternalSet:
    paths = [f"{n}/{label}/{n}.png" for n in range(folders) for label in ("normal", "viral")]
    return read_external_set("set", paths, table=None, part=None)


def by_column(folder: Path, sites: int) -> ExternalSet:
    table = folder / "labels.csv"
    rows = [f"{n}.png,normal,site {n % sites}" for n in range(2 * MOST_GROUPS)]
    table.write_text("\n".join(["file,label,site", *rows]))
    return read_external_set("set", [f"{n}.png" for n in range(2 * MOST_GROUPS)], table=table, part=None)


@pytest.mark.parametrize(("count", "kinds"), [(MOST_GROUPS, True), (MOST_GROUPS + 1, False)])
def test_a_kind_of_too_many_groups_is_ignored(tmp_path: Path, count: int, kinds: bool) -> None:
    for found, kind in ((by_folder(count), "folder"), (by_column(tmp_path, count), "site")):
        assert {kind in image.groups for image in found.images} == {kinds}
        assert {image.label for image in found.images} <= {"normal", "viral"}


def test_two_columns_of_labels_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label,Label,,\n0.png,normal,viral,,\n")  # two readers; and empty columns of a spreadsheet
    with pytest.raises(SourceError, match="names label more than once"):
        read_external_set("set", ["0.png"], table=table, part=None)


def test_the_day_of_an_image_is_no_slice(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"  # that of a hospital's own folder
    table.write_text("path,label,official_split,acquired,room\na.png,viral,test,2024-01-31,one\nb.png,normal,,,two\n")
    found = read_external_set("set", ["a.png", "b.png"], table=table, part=None)
    assert [dict(image.groups) for image in found.images] == [{"room": "one"}, {"room": "two"}]
