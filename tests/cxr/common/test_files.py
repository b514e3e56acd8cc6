"""Atomic files and folders, JSON and digests."""

import threading
import time
from pathlib import Path

import pytest

from cxr.common.files import atomic_file, atomic_folder, printable, read_json, sha256_of, write_json
from tests.support.faults import fault


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


@fault("every command", "two write one file at the same moment", "they take turns; the file is whole", "nothing")
def test_two_that_write_one_file_take_turns(tmp_path: Path) -> None:
    path, turns = tmp_path / "a.txt", []

    def write(name: str) -> None:
        with atomic_file(path) as partial:
            turns.append(name)
            partial.write_text(name * 1000)
            time.sleep(0.2)  # the other one comes meanwhile
            turns.append(name)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns in (["a", "a", "b", "b"], ["b", "b", "a", "a"])
    assert path.read_text() == turns[-1] * 1000
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupt_between_the_two_renames_of_a_folder_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "out", Path.replace
    with atomic_folder(folder) as partial:
        (partial / "one").write_text("1")

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == ".out.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as partial:
        (partial / "two").write_text("2")
    assert [file.name for file in folder.iterdir()] == ["one"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_replaced_only_after_success(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with atomic_folder(folder) as partial:
        (partial / "one").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(folder) as partial:
        (partial / "two").write_text("2")
        raise RuntimeError
    assert [file.name for file in folder.iterdir()] == ["one"]
    with atomic_folder(folder) as partial:
        (partial / "three").write_text("3")
    assert [file.name for file in folder.iterdir()] == ["three"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    disk, link = tmp_path / "disk", tmp_path / "project" / "out"
    disk.mkdir()
    link.parent.mkdir()
    link.symlink_to(disk / "out")  # where nothing is yet
    for name in ("one", "two", "three"):
        with atomic_folder(link) as partial:
            assert partial.parent == disk  # a rename between disks is impossible
            (partial / name).touch()
        assert [file.name for file in (disk / "out").iterdir()] == [name]
    assert link.is_symlink()
    assert [path.name for folder in (disk, link.parent) for path in folder.iterdir()] == ["out", "out"]


def test_the_partial_folder_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stale").touch()
    with atomic_folder(tmp_path / "out") as partial:
        (partial / "fresh").touch()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["fresh"]


def test_json_is_read_back_and_nan_is_rejected(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_in_the_place_of_a_folder_is_replaced_and_does_not_stop_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("a file")
    for number in range(2):
        with atomic_folder(tmp_path / "made") as partial:
            (partial / "a").write_text(str(number))
    assert (tmp_path / "made" / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("person 1/é中.png", "person 1/é中.png"),
        ("Röntgen\u3000肺\u200c.png", "Röntgen\u3000肺\u200c.png"),  # a wide space, and a joiner as Persian has
        ("caf\udce9.png", "caf\\xe9.png"),  # a byte that is not UTF-8
        ("\ud800.png", "\\ud800.png"),
        ("\x1b[2J.png", "\\x1b[2J.png"),
        ("two\nlines\u2028three.png", "two\\nlines\\u2028three.png"),
        ("\u202egnp.exe", "\\u202egnp.exe"),  # it would be shown as exe.png
    ],
)
def test_what_commands_a_terminal_is_escaped_in_a_name_and_nothing_else(name: str, shown: str) -> None:
    assert printable(name) == shown
