"""DICOMweb and C-STORE, with a real Orthanc: each image gets exactly one report, although the worker is killed."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxr.common.errors import ParamsError
from cxr.pacs.audit_log import AuditLog
from cxr.pacs.feed import ACCOUNT_VARIABLES, PacsUnavailableError
from cxr.pacs.journal import digest_of
from tests.support.images.dicom_answers import sound_answers
from tests.support.images.dicom_images import SECRETS
from tests.support.project import PROJECT
from tests.support.services.orthanc import USER, OrthancServer, serve_orthanc
from tests.support.services.pacs_worker import CT, UID_ROOT, answers_to, classifier, connected, follow, image
from tests.support.services.servers import free_ports


@pytest.fixture
def orthanc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OrthancServer]:
    with serve_orthanc(tmp_path / "orthanc", dicomweb=True) as server:
        for name, value in zip(ACCOUNT_VARIABLES, (USER, server.password), strict=True):
            monkeypatch.setenv(name, value)
        yield server


def killed(moment: str, state_file: Path, *arguments: str) -> int:
    """Run a worker that kills itself at a moment; return how often it did."""
    command = [sys.executable, "-m", "tests.support.services.pacs_worker", moment, "1", str(state_file), *arguments]
    return subprocess.run(command, cwd=PROJECT, check=False, timeout=300).returncode


def assert_no_secrets(folder: Path) -> None:
    """Check the files beside the state file that are not images."""
    kept = [path for path in folder.glob("state*/**/*") if path.is_file()] + list(folder.glob("state*.*"))
    text = "".join(path.read_text() for path in kept if path.is_file() and path.suffix != ".dcm")
    assert text
    assert not [secret for secret in (*SECRETS, UID_ROOT) if secret in text]


def test_by_dicomweb_each_image_is_answered_once_despite_a_kill(
    orthanc: OrthancServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)  # as the command logs
    state_file, address = tmp_path / "state.json", f"{orthanc.url}/dicom-web"
    arguments = ("--dicomweb", address, "--days", "0")
    orthanc.send(image(1), image(2), image(3, **CT), image(4, ViewPosition="LL"))
    assert killed("after 5", state_file, *arguments) == 1
    champion = classifier(tmp_path)
    with connected(state_file, *arguments, champion=champion) as worker:
        worker.overlay, worker.heat_map, worker.audit_log = True, True, AuditLog(tmp_path / "audit.jsonl")
        follow(worker)
        assert (worker.summary.known, worker.summary.classified, worker.summary.rejected) == (1, 1, 1)
        orthanc.send(image(5, study=1))  # a study that has been searched
        follow(worker)
    assert sound_answers(orthanc, tmp_path) == answers_to(1, 2, 5)
    state_file.unlink()
    with connected(state_file, *arguments, champion=champion) as worker:
        assert follow(worker).summary.known == 3
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["requested_by"], line["version"]) for line in lines] == [(address, "1")] * 2
    assert digest_of(f"{UID_ROOT}.5.1.1") in {line["image_sha256"] for line in lines}
    assert_no_secrets(tmp_path)
    assert UID_ROOT not in caplog.text
    assert "lateral view" in caplog.text
    orthanc.kill()
    with (
        pytest.raises(PacsUnavailableError, match=orthanc.url),
        connected(state_file, *arguments, champion=champion) as worker,
    ):
        follow(worker)


def test_by_c_store_each_image_is_answered_once_despite_a_kill(orthanc: OrthancServer, tmp_path: Path) -> None:
    state_file, (port,) = tmp_path / "state.json", free_ports(1)
    arguments = ("--listen", f"READER@127.0.0.1:{port}", "--send-to", f"CXR@127.0.0.1:{orthanc.dicom_port}")
    champion = classifier(tmp_path)
    with connected(state_file, *arguments, champion=champion):
        orthanc.send(image(1), image(2), title="READER", port=port)
        orthanc.send(image(2), title="READER", port=port)
    assert killed("after 5", state_file, *arguments) == 1
    with connected(state_file, *arguments, champion=champion) as worker:
        worker.overlay, worker.heat_map, worker.audit_log = True, True, AuditLog(tmp_path / "audit.jsonl")
        follow(worker)
        assert (worker.summary.known, worker.summary.classified) == (1, 1)
        orthanc.send(image(1), image(5), title="READER", port=port)
        follow(worker)
        assert worker.summary.classified == 2
        worker.process_next()  # finds nothing, and removes what was processed
    assert sound_answers(orthanc, tmp_path) == answers_to(1, 2, 5)
    assert not list(tmp_path.glob("state*/*.dcm"))
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {line["requested_by"] for line in lines} == {"STORESCU"}
    assert_no_secrets(tmp_path)
    orthanc.kill()
    with connected(state_file, *arguments, champion=champion) as worker:
        orthanc.send(image(6), title="READER", port=port)
        with pytest.raises(PacsUnavailableError, match=f"CXR@127.0.0.1:{orthanc.dicom_port}"):
            follow(worker)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "CXR_PACS_URL"),
        (("http://127.0.0.1:1", "--dicomweb", "http://127.0.0.1:1"), "more than one PACS"),
        (("--listen", "CXR@11112"), "go together"),
        (("--listen", "11112", "--send-to", "A@b:1"), "'11112' is not a DICOM node"),
        (("--listen", "CXR@11112", "--send-to", "A@104"), "'A@104' is not a DICOM node"),
        (("--listen", "CXR@11112", "--send-to", "A@b:1", "--reprocess"), "send them again"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXR_PACS_URL", raising=False)
    with pytest.raises(ParamsError, match=message), connected(tmp_path / "state.json", *arguments):
        pass
