"""Unpacking of images from their shards, with a check of their digests."""

from pathlib import Path

import pytest

from cxr.common.errors import DataError
from cxr.common.params import override
from tasks.unpack import main
from tests.support.images.raw_folder import RawFolder, pack, raw_folder, unpacked
from tests.support.project import PROJECT
from tests.support.projects.stage_files import write_split_files


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((PROJECT / "params.yaml").read_text())
    override(Path("params.yaml"), {"paths.raw": "raw"})
    return Path("raw")


@pytest.fixture
def tables(raw: Path) -> RawFolder:
    made = raw_folder(raw, patients_per_class=3)
    made.write(raw)
    return made


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["unpack", *arguments])
    main()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("tables")
def test_all_images_are_written_to_their_paths_repeatedly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raw: Path
) -> None:
    for _ in range(2):
        call(monkeypatch, "tree")
        assert tree(Path("tree")) == unpacked(raw)
        assert {Path(line).relative_to("tree").as_posix() for line in capsys.readouterr().out.splitlines()} == set(
            unpacked(raw)
        )


def test_only_the_first_or_the_named_images_are_written(monkeypatch: pytest.MonkeyPatch, tables: RawFolder) -> None:
    call(monkeypatch, "first", "--first", "1")
    assert list(tree(Path("first"))) == [tables.manifest["path"][0]]
    with pytest.raises(SystemExit):
        call(monkeypatch, "all but one", "--first", "-1")
    call(monkeypatch, "named", tables.manifest["image_id"][4], tables.manifest["image_id"][2])
    assert set(tree(Path("named"))) == {tables.manifest["path"][4], tables.manifest["path"][2]}


def test_the_test_images_are_written_with_their_labels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tables: RawFolder
) -> None:
    tested = tables.manifest[tables.manifest["label"] == "viral"].iloc[[1, 3]]
    splits = tables.manifest[["image_id", "label", "patient_id"]].assign(split="train", fold=0)
    splits.loc[tested.index, "split"] = "test"
    write_split_files(Path("data/split"), splits)
    call(monkeypatch, "test", "--split", "test", "--labels")
    assert [line.split("\t") for line in capsys.readouterr().out.splitlines()] == [
        [f"test/{path}", "viral"] for path in tested["path"]
    ]


@pytest.mark.usefixtures("tables")
def test_an_unknown_image_and_the_tracked_folder_are_rejected(monkeypatch: pytest.MonkeyPatch, raw: Path) -> None:
    before = tree(raw)
    with pytest.raises(DataError, match="kermany-none"):
        call(monkeypatch, "tree", "kermany-none")
    with pytest.raises(DataError, match="raw/images is inside raw"):
        call(monkeypatch, "raw/images")
    assert tree(raw) == before


def test_an_image_with_another_digest_is_rejected(
    monkeypatch: pytest.MonkeyPatch, raw: Path, tables: RawFolder
) -> None:
    path = tables.manifest["path"][0]
    pack(raw, unpacked(raw) | {path: b"other"})
    with pytest.raises(DataError, match=f"{path} does not have the SHA-256"):
        call(monkeypatch, "tree")


def test_an_image_with_a_path_outside_the_folder_is_rejected(
    monkeypatch: pytest.MonkeyPatch, raw: Path, tables: RawFolder
) -> None:
    tables.manifest.loc[0, "path"] = "images/../../out.png"
    tables.write(raw)
    with pytest.raises(DataError, match=r"images/\.\./\.\./out\.png"):
        call(monkeypatch, "tree")
    assert not Path("out.png").exists()
