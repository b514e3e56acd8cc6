"""Download of the public sets."""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from ruamel.yaml import YAML

from cxr.common.errors import SourceError
from cxr.common.locks import downloads_lock
from tasks.data import NO_TOKEN, kaggle_authorization, main
from tests.support.faults import fault
from tests.support.project import PROJECT
from tests.support.services.servers import Web, serve_web
from tests.support.waiting import wait_for

COVID19 = "/api/datasets/download/pranavraikokte/covid19-image-dataset"
KERMANY = "/kermany/file_downloaded"


def zip_of(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def web() -> Iterator[Web]:
    with serve_web() as web:
        web.files[KERMANY] = zip_of(
            {"chest_xray/train/NORMAL/IM-0001-0001.jpeg": bytes(200_000), "__MACOSX/chest_xray/._train": b"litter"}
        )
        web.files[COVID19] = zip_of({"Covid19-dataset/train/Covid/01.jpeg": b"image"})
        yield web


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def options_for(web: Web, tmp_path: Path, *more: str) -> list[str]:
    tree = YAML().load(PROJECT / "params.yaml")
    tree["paths"]["downloads"] = str(tmp_path / "downloads")
    YAML().dump(tree, tmp_path / "params.yaml")
    options = ["--params", str(tmp_path / "params.yaml"), "--kermany-url", web.address + KERMANY]
    return [*options, "--kaggle-api", f"{web.address}/api", *(more or ("--kermany-sha256", "any"))]


@pytest.fixture
def data(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The command, with its options."""

    def run(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["tasks.data", *options_for(web, tmp_path, *more)])
        main()

    return run


def error_of(data: Callable[..., None], *more: str) -> str:
    with pytest.raises(SourceError) as caught:
        data(*more)
    return str(caught.value)


@fault("data", "the connection ends in the middle of a download", "it goes on at that byte", "both sets are there")
def test_both_sets_are_downloaded_despite_an_interruption(
    web: Web,
    data: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    web.cut_after = [50_000]
    monkeypatch.setenv("KAGGLE_API_TOKEN", "secret-token")
    data()
    sets = tmp_path / "downloads" / "sets"
    assert (sets / "chest_xray/train/NORMAL/IM-0001-0001.jpeg").read_bytes() == bytes(200_000)
    assert (sets / "Covid19-dataset/train/Covid/01.jpeg").read_bytes() == b"image"
    assert (KERMANY, "bytes=50000-") in web.asked
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"The images are in {sets}. Next: make run DATA={sets}"
    assert "secret-token" not in printed.out + printed.err

    monkeypatch.delenv("KAGGLE_API_TOKEN")
    before = len(web.asked)
    data()
    assert f"{sets / 'chest_xray'} exists already" in capsys.readouterr().out
    assert len(web.asked) == before


@fault(
    "data",
    "it is killed after it has moved a set to its place",
    "nothing is missing where the set was unpacked",
    "a set that is removed is there again after the next run",
)
def test_a_kill_behind_the_last_step_leaves_no_unpacked_folder_without_its_set(
    data: Callable[..., None], tmp_path: Path
) -> None:
    tidy = shutil.rmtree

    def killed(path: Path, **options: bool) -> None:
        if not path.name.endswith((".partial", ".old")):  # what renaming tidies up, before
            raise KeyboardInterrupt
        tidy(path, **options)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        data("--only", "kermany", "--kermany-sha256", "any")
    chest_xray = tmp_path / "downloads" / "sets" / "chest_xray"
    shutil.rmtree(chest_xray)
    data("--only", "kermany", "--kermany-sha256", "any")
    assert (chest_xray / "train/NORMAL/IM-0001-0001.jpeg").is_file()


def test_a_second_process_waits_for_the_downloads_of_the_first(
    web: Web, data: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = Thread(target=data, args=("--only", "kermany", "--kermany-sha256", "any"))
    with downloads_lock(tmp_path / "downloads"):
        second.start()
        wait_for(lambda: "waiting for another download" in caplog.text or not second.is_alive())
        assert web.asked == []
    second.join()
    assert (tmp_path / "downloads" / "sets" / "chest_xray").is_dir()


@fault("data", "a download is damaged", "it is removed", "exit code 3, run it again")
def test_a_damaged_download_is_removed(web: Web, data: Callable[..., None], tmp_path: Path) -> None:
    message = error_of(data, "--only", "kermany", "--kermany-sha256", "0" * 64)
    assert hashlib.sha256(web.files[KERMANY]).hexdigest() in message
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_page_in_place_of_the_zip_is_removed_and_downloaded_again(
    web: Web, data: Callable[..., None], tmp_path: Path
) -> None:
    good, web.files[KERMANY] = web.files[KERMANY], b"<html>sorry</html>"
    message = error_of(data, "--only", "kermany", "--kermany-sha256", "any")
    assert f"{tmp_path}/downloads/ChestXRay2017.zip is not a zip" in message
    web.files[KERMANY] = good
    data("--only", "kermany", "--kermany-sha256", "any")
    assert (tmp_path / "downloads/sets/chest_xray").is_dir()


def test_without_a_token_nothing_is_downloaded_and_one_line_explains_it(web: Web, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasks.data", *options_for(web, tmp_path)]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == SourceError.exit_code
    assert "KAGGLE_API_TOKEN" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert web.asked == []


def test_a_rejected_token_is_reported(web: Web, data: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    web.authorization = "Bearer right"
    monkeypatch.setenv("KAGGLE_API_TOKEN", "wrong")
    assert "401" in error_of(data, "--only", "covid19")


BASIC = "Basic " + base64.b64encode(b"me:key").decode()


def test_the_token_is_found_in_the_places_of_kaggles_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home" / ".kaggle"
    home.mkdir(parents=True)
    (home / "kaggle.json").write_text(json.dumps({"username": "me", "key": "key"}))
    assert kaggle_authorization() == BASIC
    (home / "access_token").write_text("KGAT_file\n")
    assert kaggle_authorization() == "Bearer KGAT_file"
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "key")
    assert kaggle_authorization() == BASIC
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_variable")
    assert kaggle_authorization() == "Bearer KGAT_variable"


def test_without_a_token_the_error_explains_how_to_get_one() -> None:
    with pytest.raises(SourceError) as caught:
        kaggle_authorization()
    assert str(caught.value) == NO_TOKEN


@pytest.mark.parametrize("content", ["", "[]", '{"username": "me"}'])
def test_an_invalid_kaggle_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "kaggle.json").write_text(content)
    with pytest.raises(SourceError) as caught:
        kaggle_authorization()
    assert f"{tmp_path}/kaggle.json" in str(caught.value)
