import base64
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cxr.common.errors import SourceError
from tasks.data import NO_TOKEN, kaggle_authorization, main
from tests.support.project import PROJECT
from tests.support.servers import Web, serve_web

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


def test_both_sets_come_through_a_cut_and_lie_as_make_run_wants_them(
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
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == f"The images are in {sets}. Next: make run DATA={sets}"
    assert "secret-token" not in told.out + told.err

    monkeypatch.delenv("KAGGLE_API_TOKEN")
    before = len(web.asked)
    data()
    assert f"{sets / 'chest_xray'} is there already; remove it to fetch it again" in capsys.readouterr().out
    assert len(web.asked) == before


def test_a_corrupt_download_is_refused_and_removed(web: Web, data: Callable[..., None], tmp_path: Path) -> None:
    digest = hashlib.sha256(web.files[KERMANY]).hexdigest()
    assert error_of(data, "--only", "kermany", "--kermany-sha256", "0" * 64) == (
        f"{web.address}{KERMANY}: what came has the sha256 {digest}, expected {'0' * 64}; it was removed: "
        "run the same command again, or correct the digest if a new version was published"
    )
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_page_in_place_of_the_zip_is_refused_and_the_next_run_fetches_it_anew(
    web: Web, data: Callable[..., None], tmp_path: Path
) -> None:
    good, web.files[KERMANY] = web.files[KERMANY], b"<html>sorry</html>"
    assert error_of(data, "--only", "kermany", "--kermany-sha256", "any") == (
        f"{tmp_path}/downloads/ChestXRay2017.zip is no zip or is damaged (File is not a zip file); fetch it again"
    )
    web.files[KERMANY] = good
    data("--only", "kermany", "--kermany-sha256", "any")
    assert (tmp_path / "downloads/sets/chest_xray").is_dir()


def test_without_a_token_nothing_is_fetched_and_one_line_says_how_to_get_one(web: Web, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasks.data", *options_for(web, tmp_path)]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == SourceError.exit_code
    assert ended.stderr == (
        "error: Kaggle's pranavraikokte/covid19-image-dataset needs a Kaggle token and none was found: make one at "
        "https://www.kaggle.com/settings (API, Create New Token), then put the kaggle.json it gives you into "
        "~/.kaggle/ or set KAGGLE_API_TOKEN; without an account: python -m tasks.data --only kermany\n"
    )
    assert web.asked == []


def test_a_token_that_kaggle_refuses_is_named(
    web: Web, data: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    web.authorization = "Bearer right"
    monkeypatch.setenv("KAGGLE_API_TOKEN", "wrong")
    assert error_of(data, "--only", "covid19") == (
        f"{web.address}{COVID19}: refused (401 Unauthorized); check the credentials and terms"
    )


BASIC = "Basic " + base64.b64encode(b"me:key").decode()


def test_the_token_is_found_where_kaggles_own_client_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_without_any_token_the_error_says_how_to_get_one() -> None:
    with pytest.raises(SourceError) as caught:
        kaggle_authorization()
    assert str(caught.value) == NO_TOKEN


@pytest.mark.parametrize("content", ["", "[]", '{"username": "me"}'])
def test_a_kaggle_json_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "kaggle.json").write_text(content)
    with pytest.raises(SourceError) as caught:
        kaggle_authorization()
    assert str(caught.value) == (
        f"{tmp_path}/kaggle.json is not a Kaggle token: expected a JSON object with username and key; make a new one "
        "at https://www.kaggle.com/settings"
    )
