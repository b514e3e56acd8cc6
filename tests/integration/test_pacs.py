"""Images are sent to a real Orthanc as a modality does; each gets exactly one report, despite crashes."""

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import pydicom
import pytest
from pydicom.encaps import encapsulate

from cxr.common.errors import MemoryLimitError, ParamsError, RegistryError, SourceError
from cxr.inference.decoding.decoders import Decoders
from cxr.inference.pipeline import ModelInput
from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.pacs.feed import ACCOUNT_VARIABLES, PacsUnavailableError
from cxr.pacs.journal import digest_of
from cxr.pacs.orthanc import Orthanc
from cxr.pacs.worker import MAX_TRIES
from cxr.registry import runs
from cxr.registry.champion import aliases
from cxr.registry.registration import register_version
from tasks import pacs
from tests.support.faults import fault
from tests.support.images.dicom_answers import sound_answers
from tests.support.images.dicom_images import BASELINE, SECRETS
from tests.support.images.hostile_files import many_scans
from tests.support.project import PROJECT
from tests.support.projects.registry_project import call, enter_project, spec
from tests.support.services.orthanc import USER, OrthancServer, serve_orthanc
from tests.support.services.pacs_worker import (
    CT,
    UID_ROOT,
    FailingClassifier,
    ImpatientOnce,
    answers_to,
    classifier,
    follow,
    image,
    worker,
)
from tests.support.waiting import wait_for


@pytest.fixture
def orthanc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OrthancServer]:
    with serve_orthanc(tmp_path / "orthanc") as server:
        for name, value in zip(ACCOUNT_VARIABLES, (USER, server.password), strict=True):
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def reports(server: OrthancServer) -> Counter[str]:
    """Return how many reports each study has, by the last number of the study's UID."""
    read = [pydicom.dcmread(io.BytesIO(server.file(one))) for one in server.instances(Modality="SR")]
    return Counter(str(one.StudyInstanceUID).removeprefix(f"{UID_ROOT}.") for one in read)


def killed(server: OrthancServer, state_file: Path, moment: str, *, times: int = 1) -> int:
    """Run a worker that kills itself at a moment, `times` times; return how often it did."""
    worker = [sys.executable, "-m", "tests.support.services.pacs_worker"]
    command = [*worker, moment, str(times), str(state_file), server.url]
    return subprocess.run(command, cwd=PROJECT, check=False, timeout=300).returncode


def assert_no_secrets(text: str, server: OrthancServer) -> None:
    assert not [secret for secret in (*SECRETS, UID_ROOT, server.password) if secret in text]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Enter a project with a registry."""
    (tmp_path / "project").mkdir()
    enter_project(tmp_path / "project", monkeypatch, tmp_path_factory)


def make_champion(*, instead_of: str = "") -> str:
    """Register a small network with random weights, make it champion and return its number."""
    described = spec(image_size_px=32, backbone="small_cnn")
    written = write_bundle(Path("made"), build("small_cnn", 3).state_dict(), described)
    run_id = runs.start_run(run_id=None, name="n", tags={})
    version, _ = register_version(Path("made"), written, run_id=run_id, lineage={}, evaluation={})
    aliases.move_champion(version.number, instead_of=instead_of, kind="promote", approved_by="ann", reason="test")
    return version.number


@pytest.mark.usefixtures("project")
@fault("PACS", "SIGTERM of the worker", "it ends between two images", "exit code 143, run the same command again")
def test_each_image_is_processed_once_through_an_outage_and_no_patient_data_are_logged(
    orthanc: OrthancServer,
) -> None:
    number = make_champion()
    orthanc.send(image(1), image(2, **CT), image(3, ViewPosition="LL"), image(4, BodyPartExamined="HAND"))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    explains = ["--overlay", "--heat-map"]
    command = [sys.executable, "-m", "tasks.pacs", orthanc.url, *explains, "--poll-interval", "0.2"]
    with Path("log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            wait_for(lambda: reports(orthanc) == {"1": 1}, log=Path("log"))
            orthanc.kill()
            wait_for(lambda: "does not respond" in Path("log").read_text())
            orthanc.start()
            orthanc.send(image(5), image(6, study=5))
            wait_for(lambda: reports(orthanc) == {"1": 1, "5": 2}, log=Path("log"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(300) == 143
        finally:
            process.kill()
    output = Path("log").read_text()
    assert output.splitlines()[-1] == "terminated; run the same command again to continue"
    assert "Traceback" not in output
    assert sound_answers(orthanc, Path()) == answers_to(1, 5, 6)
    assert output.count("does not respond") == 1
    (rejected,) = [line for line in output.splitlines() if "rejected: " in line]
    assert rejected.endswith("rejected: lateral view")
    audit_log = pacs.STATE_FILE.with_suffix(".audit.jsonl").read_text()
    assert_no_secrets(output + pacs.STATE_FILE.read_text() + audit_log, orthanc)
    lines = [json.loads(line) for line in audit_log.splitlines()]
    assert [(line["requested_by"], line["version"]) for line in lines] == [("STORESCU", number)] * 3
    assert lines[0]["image_sha256"] == digest_of(f"{UID_ROOT}.1.1.1")
    (report,) = [one for one in orthanc.instances(Modality="SR") if orthanc.file(one).count(b"7770.1.1.1") > 0]
    read = highdicom.sr.srread(io.BytesIO(orthanc.file(report)))
    groups = read.content.get_image_measurement_groups()
    assert (str(read.PatientID), read.SoftwareVersions) == ("MRN-8675309", number)
    assert {one.referenced_sop_instance_uid for group in groups for one in group.source_images} == {f"{UID_ROOT}.1.1.1"}


@pytest.mark.usefixtures("project")
def test_once_stops_at_the_end_of_the_feed_and_a_new_champion_takes_over(
    orthanc: OrthancServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orthanc.send(image(1))
    with pytest.raises(RegistryError, match="champion"):
        call(monkeypatch, pacs.main, orthanc.url, "--once")
    older = make_champion()
    call(monkeypatch, pacs.main, orthanc.url, "--once")
    newer = make_champion(instead_of=older)
    orthanc.send(image(2))
    monkeypatch.setenv(pacs.ADDRESS_VARIABLE, orthanc.url)
    call(monkeypatch, pacs.main, "--once")
    stored = [pydicom.dcmread(io.BytesIO(orthanc.file(one))) for one in orthanc.instances(Modality="SR")]
    authors = {(str(one.StudyInstanceUID), one.SoftwareVersions) for one in stored}
    assert authors == {(f"{UID_ROOT}.1", older), (f"{UID_ROOT}.2", newer)}
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 images classified, 0 ")
    orthanc.kill()
    with pytest.raises(PacsUnavailableError, match=orthanc.url):
        call(monkeypatch, pacs.main, "--once")


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "http://127.0.0.1:port", "cxr:word@host"])
def test_an_invalid_address_is_an_error_that_does_not_repeat_it(address: str) -> None:
    with pytest.raises(SourceError) as caught:
        Orthanc(address)
    assert address not in str(caught.value)


def test_a_missing_address_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pacs.ADDRESS_VARIABLE, raising=False)
    with pytest.raises(ParamsError, match=pacs.ADDRESS_VARIABLE):
        call(monkeypatch, pacs.main)


@pytest.mark.parametrize("moment", ["before 1", "after 1", "after 5"])
@fault("PACS", "SIGKILL of the worker", "it goes on at the same change", "each image has one report")
def test_a_killed_and_restarted_worker_misses_no_image_and_repeats_none(
    orthanc: OrthancServer, state_file: Path, moment: str
) -> None:
    orthanc.send(image(1), image(2))
    assert killed(orthanc, state_file, moment) == 1
    state = json.loads(state_file.read_text())
    assert (state["since"], state["tries"], state["alone_until"] > 0) == (0, 1, True)
    assert list(state) == ["server", "since", "mark", "tries", "alone_until"]  # as release 0.4.0 writes and reads it
    follow(worker(orthanc.url, state_file, explains=True))
    assert sound_answers(orthanc, state_file.parent) == answers_to(1, 2)
    assert_no_secrets(state_file.read_text(), orthanc)


@fault("PACS", "the state file is lost", "reports that exist are found", "each image has one report")
def test_a_lost_state_file_repeats_no_image(orthanc: OrthancServer, state_file: Path) -> None:
    orthanc.send(image(1))
    champion = classifier(state_file.parent)
    follow(worker(orthanc.url, state_file, champion=champion))
    for contents in ("", "{}", '{"server": 1, "what": 2}', None):
        state_file.unlink() if contents is None else state_file.write_text(contents)
        summary = follow(worker(orthanc.url, state_file, champion=champion)).summary
        assert (summary.classified, summary.known, summary.skipped) == (0, 1, 1)


def test_a_new_champion_processes_new_images_and_older_ones_with_reprocess(
    orthanc: OrthancServer, state_file: Path
) -> None:
    orthanc.send(image(1))
    older, newer = (classifier(state_file.parent, number=str(seed), seed=seed) for seed in (1, 2))
    follow(worker(orthanc.url, state_file, champion=older))
    state_file.unlink()
    assert follow(worker(orthanc.url, state_file, champion=newer)).summary.classified == 0
    orthanc.send(image(2))
    assert follow(worker(orthanc.url, state_file, champion=newer)).summary.classified == 1
    for expected in (1, 0):
        state_file.unlink()
        assert follow(worker(orthanc.url, state_file, champion=newer, reprocess=True)).summary.classified == expected
    assert reports(orthanc) == {"1": 2, "2": 1}


@pytest.mark.parametrize("new_images", [1, 4])
def test_a_new_database_at_the_same_address_is_followed_from_its_beginning(
    orthanc: OrthancServer, state_file: Path, caplog: pytest.LogCaptureFixture, new_images: int
) -> None:
    champion = classifier(state_file.parent)
    orthanc.send(image(1), image(2))
    follow(worker(orthanc.url, state_file, champion=champion))
    restarted = worker(orthanc.url, state_file, champion=champion)
    orthanc.kill()
    orthanc.storage = "new"
    orthanc.start()
    orthanc.send(*(image(number) for number in range(3, 3 + new_images)))
    assert follow(restarted).summary.classified == new_images
    assert caplog.text.count("has a new feed") == 1


def test_an_image_that_the_model_fails_on_is_named_by_its_id_and_skipped(
    orthanc: OrthancServer, state_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    orthanc.send(image(1), image(2), image(3))
    champion = FailingClassifier(**vars(classifier(state_file.parent)), bad=image(2))
    summary = follow(worker(orthanc.url, state_file, champion=champion)).summary
    assert (summary.classified, summary.rejected) == (2, 1)
    (bad,) = orthanc.instances(SOPInstanceUID=f"{UID_ROOT}.2.1.1")
    assert f"pacs: image {bad} rejected: RuntimeError" in caplog.text
    assert_no_secrets(caplog.text, orthanc)


@fault("PACS", "the file of an image is missing", "it is skipped", "the log names it")
def test_an_image_whose_file_is_missing_is_skipped(
    orthanc: OrthancServer, state_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    orthanc.send(image(1))
    (lost,) = orthanc.instances(Modality="DX")
    orthanc.kill()
    for file in (orthanc.folder / "db").glob("*/*/*"):
        file.unlink()
    orthanc.start()  # with nothing in memory
    orthanc.send(image(2))
    summary = follow(worker(orthanc.url, state_file)).summary
    assert (summary.classified, summary.rejected) == (1, 1)
    assert f"pacs: image {lost} rejected: its file is missing" in caplog.text


@fault("PACS", "an image crashes the process each time", "it is skipped after a few tries", "the log names it")
def test_an_image_that_crashes_the_process_each_time_is_skipped(orthanc: OrthancServer, state_file: Path) -> None:
    orthanc.send(image(1), image(2))
    assert killed(orthanc, state_file, "before 1", times=MAX_TRIES) == MAX_TRIES
    assert json.loads(state_file.read_text())["tries"] == MAX_TRIES
    summary = follow(worker(orthanc.url, state_file)).summary
    assert (summary.classified, summary.rejected) == (1, 1)
    assert reports(orthanc) == {"2": 1}


class StarvedByOne(Decoders):
    """Decoders that the system kills for lack of memory whenever they get the first image."""

    def model_input(self, data: bytes, *given: Any, **named: Any) -> ModelInput:
        if f"{UID_ROOT}.1.1.1".encode() in data:
            raise MemoryLimitError("killed")
        return super().model_input(data, *given, **named)


@fault("PACS", "an image takes all memory each time", "the worker ends, and skips the image after a few tries",
       "exit code 13; then the log names the image")  # fmt: skip
def test_an_image_that_takes_all_memory_each_time_is_skipped(orthanc: OrthancServer, state_file: Path) -> None:
    orthanc.send(image(1), image(2))
    with StarvedByOne(1, seconds=60) as decoders:
        starved = replace(worker(orthanc.url, state_file), decoders=decoders)
        for tries in range(1, MAX_TRIES + 1):
            with pytest.raises(MemoryLimitError):
                follow(starved)
            assert json.loads(state_file.read_text())["tries"] == tries
        summary = follow(starved).summary
    assert (summary.classified, summary.rejected) == (1, 1)
    assert reports(orthanc) == {"2": 1}


@fault("PACS", "an image that takes long to decode", "its decoder is killed; the next image is answered", "too slow")
def test_an_image_that_takes_long_to_decode_is_skipped(
    orthanc: OrthancServer, state_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    side = 7000
    frame = many_scans(side, side, 14)  # 190 KB, 0.5 to 3 s of one core; not quite refused for its cost
    slow = image(1, Rows=side, Columns=side, PixelData=encapsulate([frame]), syntax=BASELINE)
    assert Orthanc(orthanc.url).store(slow)
    orthanc.send(image(2))
    champion = classifier(state_file.parent)
    preprocessing = replace(champion.spec.preprocessing, max_pixels=50_000_000)
    champion = replace(champion, spec=replace(champion.spec, preprocessing=preprocessing))
    with ImpatientOnce(1, seconds=0.1) as decoders:
        summary = follow(replace(worker(orthanc.url, state_file, champion=champion), decoders=decoders)).summary
    assert (summary.classified, summary.rejected) == (1, 1)
    (bad,) = orthanc.instances(SOPInstanceUID=f"{UID_ROOT}.1.1.1")
    assert f"pacs: image {bad} rejected: too slow" in caplog.text


def test_a_wrong_password_is_an_error_that_names_the_variables_and_not_the_password(
    orthanc: OrthancServer, state_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ACCOUNT_VARIABLES:
        monkeypatch.delenv(name)
    by_address = f"http://{USER}:{orthanc.password}@127.0.0.1:{orthanc.http_port}"
    assert follow(worker(by_address, state_file)).summary.classified == 0
    with pytest.raises(SourceError) as caught:
        follow(worker(by_address.replace(orthanc.password, "guessed"), state_file))
    message = str(caught.value)
    assert all(name in message for name in (orthanc.url, *ACCOUNT_VARIABLES))
    assert "guessed" not in message
