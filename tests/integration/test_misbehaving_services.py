"""Services that are up and useless: one line with the address, within a time limit, and nothing taken for an answer."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cxr.common import s3
from cxr.common.errors import CxrError, RegistryError, SourceError
from cxr.pacs import transport
from cxr.pacs.dicomweb import DicomWeb
from cxr.pacs.feed import PacsUnavailableError
from cxr.pacs.orthanc import Orthanc
from cxr.registry import runs, tracking_store, versions
from flows import remote_cache
from tests.flows.test_server_errors import start_flow
from tests.support.faults import fault
from tests.support.services.misbehaving import DRIPPING, MANNERS, misbehaving
from tests.support.services.servers import s3_settings

GARBAGE = "it answers with a web page, JSON of another form, status 500, half an answer, or not at all"
PREFIX = "s3://bucket/images"
LINE = "one line with the address"
REGISTRY_LINE = "exit code 9, one line with the address"
SOURCE_LINE = "exit code 3, one line with the address"


def one_line(raised: pytest.ExceptionInfo[CxrError], address: str) -> None:
    message = str(raised.value)
    assert address in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("manner", MANNERS)
@fault("MLflow", GARBAGE, "nothing is started", REGISTRY_LINE)
def test_mlflow(manner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"TIMEOUT": "1", "MAX_RETRIES": "1", "BACKOFF_FACTOR": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    monkeypatch.setattr("cxr.registry.direct_lookup._WAIT_SECONDS", 1)
    asking: list[Callable[[], object]] = [
        lambda: versions.get_version("champion"),
        lambda: runs.start_run(run_id=None, name="n", tags={}),
    ]
    with misbehaving(manner) as address:
        monkeypatch.setenv(tracking_store.STORE_VARIABLE, address)
        for ask in asking:
            with pytest.raises(RegistryError) as raised:
                ask()
            one_line(raised, address)


@pytest.mark.parametrize("manner", MANNERS)
@fault("S3", GARBAGE, "it is not taken for an empty bucket", SOURCE_LINE)
def test_s3(manner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_TIMEOUTS_S", (1, 1))
    with misbehaving(manner) as address:
        for name, value in s3_settings(address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        for ask in (
            lambda: s3.Prefix(PREFIX).objects(),
            lambda: s3.mirror(PREFIX, tmp_path),
        ):
            with pytest.raises(SourceError) as raised:
                ask()
            one_line(raised, PREFIX)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("manner", MANNERS)
@fault("PACS, Orthanc", GARBAGE, "nothing is taken for an image, and nothing for answered", SOURCE_LINE)
def test_orthanc(manner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "TIMEOUTS_SECONDS", (1, 1))
    with misbehaving(manner) as address:
        pacs = Orthanc(address)
        for ask in (lambda: pacs.changes(0, 10), pacs.last_change, lambda: pacs.instance("a")):
            with pytest.raises(SourceError) as raised:
                ask()
            one_line(raised, address)
            is_foreign = manner in {"a page", "a list", "an empty object"}
            assert isinstance(raised.value, PacsUnavailableError) is not is_foreign


@pytest.mark.parametrize("manner", ["an error", "half an answer", "nothing"])
@fault("PACS, DICOMweb", "it answers with status 500, half an answer, or not at all",
       "the worker waits and asks again", LINE)  # fmt: skip
def test_dicomweb(manner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "TIMEOUTS_SECONDS", (1, 1))
    with misbehaving(manner) as address:
        pacs = DicomWeb(address, tmp_path / "state.found", days=7)
        with pytest.raises(PacsUnavailableError) as raised:
            pacs.changes(0, 10)
        one_line(raised, address)
    assert pacs.last_change() == 0


@pytest.mark.parametrize("part", DRIPPING)
@fault("MLflow", "it sends a byte now and then, and never a whole answer", "nothing is started; a minute is waited",
       REGISTRY_LINE)  # fmt: skip
def test_a_dripping_mlflow(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxr.registry.direct_lookup._ANSWER_SECONDS", 0.5)
    with misbehaving(part) as address:
        monkeypatch.setenv(tracking_store.STORE_VARIABLE, address)
        with pytest.raises(RegistryError, match="no whole answer") as raised:
            versions.get_version("champion")
        one_line(raised, address)


@pytest.mark.parametrize("part", DRIPPING)
@fault("S3", "it sends a byte now and then, and never a whole answer",
       "the request and its repetitions end after 15 minutes, or later by the size of a file", SOURCE_LINE)  # fmt: skip
def test_a_dripping_s3(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_ANSWER_S", 0.5)
    monkeypatch.setattr("cxr.common.deadline._AGAIN_SECONDS", 0.1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    (tmp_path / "part").write_bytes(b"scores")
    with misbehaving(part) as address:
        for name, value in s3_settings(address).items():
            monkeypatch.setenv(name, value)
        images = s3.Prefix(PREFIX)
        one = s3.RemoteObject("images/one.png", "", size_bytes=10, written_s=0)
        for ask in (
            images.objects,
            lambda: images.read(one.key),
            lambda: images.download(one, tmp_path / "one.png"),
            lambda: images.upload(tmp_path / "part", "part"),
            lambda: images.remove(one),
            lambda: s3.mirror(PREFIX, tmp_path / "mirrored"),
        ):
            with pytest.raises(SourceError, match=r"no whole answer within|an answer lacks 'ContentLength'") as raised:
                ask()
            one_line(raised, PREFIX)


@pytest.mark.parametrize("part", DRIPPING)
@fault("PACS, Orthanc and DICOMweb", "it sends a byte now and then, and never a whole answer",
       "the request ends after 15 minutes; the worker waits and asks again", LINE)  # fmt: skip
def test_a_dripping_pacs(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ANSWER_SECONDS", 0.5)
    with misbehaving(part) as address:
        for pacs in (Orthanc(address), DicomWeb(address, tmp_path / "state.found", days=7)):
            with pytest.raises(PacsUnavailableError) as raised:
                pacs.changes(0, 10)
            one_line(raised, address)


@pytest.mark.parametrize("manner", ["a page", "nothing"])
@fault("Prefect", "its API answers with a web page, or not at all",
       "the flow does not start", REGISTRY_LINE)  # fmt: skip
def test_prefect(manner: str, tmp_path: Path) -> None:
    with misbehaving(manner) as address:
        done = start_flow(f"{address}/api", tmp_path, PREFECT_API_REQUEST_TIMEOUT="1")
    assert done.returncode == 9, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: Prefect's server {address}/api ")
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning")  # pg8000 leaves it open
@fault("PostgreSQL", "it takes connections and stays silent", "nothing is started", REGISTRY_LINE)
def test_a_silent_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking_store, "_CONNECT_SECONDS", 1)
    with misbehaving("nothing") as address:
        place, account = address.removeprefix("http://"), "mlflow:secret"
        monkeypatch.setenv(tracking_store.STORE_VARIABLE, f"postgresql+pg8000://{account}@{place}/mlflow")
        with pytest.raises(RegistryError) as raised:
            versions.get_version("champion")
    one_line(raised, f"postgresql+pg8000://{place}/mlflow")
    assert "secret" not in str(raised.value)
    del raised
    gc.collect()


@fault("DVC remote", "the S3 service answers with a web page", "the run ends", LINE)
def test_dvc_remote(tmp_path: Path) -> None:
    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, check=True, capture_output=True)

    dvc("init", "--no-scm", "--quiet")
    dvc("remote", "add", "--default", "team", "s3://bucket/cache")
    with misbehaving("a page") as address, pytest.raises(remote_cache.RemoteError) as raised:
        settings = {**s3_settings(address), "AWS_MAX_ATTEMPTS": "1", "DVC_NO_ANALYTICS": "1"}
        remote_cache.fetch(tmp_path, on_line=lambda _: None, environment=settings)
    one_line(raised, "dvc fetch --run-cache")
