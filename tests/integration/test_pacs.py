"""Images go into a real Orthanc as a modality sends them, and each comes back with one answer, whatever dies when."""

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import highdicom
import pydicom
import pytest

from cxr.common.errors import ParamsError, RegistryError, SourceError
from cxr.models.bundle import write_bundle
from cxr.models.factory import build
from cxr.pacs.orthanc import ACCOUNT_VARIABLES, Orthanc
from cxr.pacs.worker import TRIES
from cxr.registry import aliases, runs
from cxr.registry.registration import register_version
from tasks import pacs
from tests.support.dicom_images import SECRETS
from tests.support.orthanc import USER, OrthancServer, serve_orthanc
from tests.support.pacs_worker import CT, UID_ROOT, Spoilt, classifier, follow, image, link
from tests.support.prefect_servers import wait_for
from tests.support.project import PROJECT
from tests.support.registry_project import call, enter_project, spec


@pytest.fixture
def orthanc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OrthancServer]:
    with serve_orthanc(tmp_path / "orthanc") as server:
        for name, value in zip(ACCOUNT_VARIABLES, (USER, server.password), strict=True):
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "place.json"


def answers(server: OrthancServer, modality: str = "SR") -> Counter[str]:
    """Return how many objects of a modality each study has, by the last number of the study's UID."""
    read = [pydicom.dcmread(io.BytesIO(server.file(one))) for one in server.instances(Modality=modality)]
    return Counter(str(one.StudyInstanceUID).removeprefix(f"{UID_ROOT}.") for one in read)


def killed(server: OrthancServer, place: Path, moment: str, *, times: int = 1) -> int:
    """Run a link that kills itself at a moment, so many times; return how often it did."""
    command = [sys.executable, "-m", "tests.support.pacs_worker", server.url, str(place), moment, str(times)]
    return subprocess.run(command, cwd=PROJECT, check=False, timeout=300).returncode


def assert_tells_nothing(text: str, server: OrthancServer) -> None:
    assert not [secret for secret in (*SECRETS, UID_ROOT, server.password) if secret in text]


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Be in a project with a registry; what the command does to signals is undone."""
    (tmp_path / "project").mkdir()
    enter_project(tmp_path / "project", monkeypatch, tmp_path_factory)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def make_champion(*, instead_of: str = "") -> str:
    """Register a small network of random weights and make it champion; return its number."""
    described = spec(image_size_px=32, backbone="small_cnn")
    written = write_bundle(Path("made"), build("small_cnn", 3).state_dict(), described)
    run_id = runs.start_run(run_id=None, name="n", tags={})
    version, _ = register_version(Path("made"), written, run_id=run_id, lineage={}, evaluation={})
    aliases.move_champion(version.number, instead_of=instead_of, kind="promote", approved_by="ann", reason="test")
    return version.number


@pytest.mark.usefixtures("project")
def test_the_command_answers_each_image_once_through_an_outage_and_tells_no_ones_name(orthanc: OrthancServer) -> None:
    number = make_champion()
    orthanc.send(image(1), image(2, **CT), image(3, ViewPosition="LL"), image(4, BodyPartExamined="HAND"))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "tasks.pacs", orthanc.url, "--overlay", "--every", "0.2", "--place", "place.json"]
    with Path("log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            wait_for(lambda: answers(orthanc) == {"1": 1}, log=Path("log"))
            orthanc.kill()
            wait_for(lambda: "does not answer" in Path("log").read_text())
            orthanc.start()
            orthanc.send(image(5), image(6, study=5))
            wait_for(lambda: answers(orthanc) == {"1": 1, "5": 2}, log=Path("log"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 130
        finally:
            process.kill()
    told = Path("log").read_text()
    assert answers(orthanc, "OT") == {"1": 1, "5": 2}
    assert told.count("does not answer") == 1
    (refused,) = [line for line in told.splitlines() if "no answer" in line]
    assert refused.endswith("gets no answer: lateral view")
    assert_tells_nothing(told + Path("place.json").read_text(), orthanc)
    (report,) = [one for one in orthanc.instances(Modality="SR") if orthanc.file(one).count(b"7770.1.1.1") > 0]
    read = highdicom.sr.srread(io.BytesIO(orthanc.file(report)))
    (group,) = read.content.get_image_measurement_groups()
    assert (str(read.PatientID), read.SoftwareVersions) == ("MRN-8675309", number)
    assert [pixels.referenced_sop_instance_uid for pixels in group.source_images] == [f"{UID_ROOT}.1.1.1"]


@pytest.mark.usefixtures("project")
def test_once_ends_at_the_end_of_the_feed_and_a_newer_champion_takes_over(
    orthanc: OrthancServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orthanc.send(image(1))
    with pytest.raises(RegistryError, match="there is no champion"):
        call(monkeypatch, pacs.main, orthanc.url, "--once")
    older = make_champion()
    call(monkeypatch, pacs.main, orthanc.url, "--once")
    newer = make_champion(instead_of=older)
    orthanc.send(image(2))
    monkeypatch.setenv(pacs.ADDRESS_VARIABLE, orthanc.url)
    call(monkeypatch, pacs.main, "--once")
    reports = [pydicom.dcmread(io.BytesIO(orthanc.file(one))) for one in orthanc.instances(Modality="SR")]
    said = {(str(one.StudyInstanceUID), one.SoftwareVersions) for one in reports}
    assert said == {(f"{UID_ROOT}.1", older), (f"{UID_ROOT}.2", newer)}
    assert capsys.readouterr().out.splitlines()[-1] == (
        "1 images answered, 0 answered before, 0 without an answer, 1 other objects"
    )
    orthanc.kill()
    with pytest.raises(SourceError) as caught:
        call(monkeypatch, pacs.main, "--once")
    assert str(caught.value) == f"{orthanc.url} does not answer (ConnectionError); start Orthanc there"


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "http://127.0.0.1:port", "cxr:word@host"])
def test_what_is_no_address_is_not_repeated(address: str) -> None:
    with pytest.raises(SourceError) as caught:
        Orthanc(address)
    assert str(caught.value) == ("expected a PACS such as http://127.0.0.1:8042, got something else; check the address")


def test_without_an_address_the_command_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pacs.ADDRESS_VARIABLE, raising=False)
    with pytest.raises(ParamsError, match="or set CXR_PACS_URL"):
        call(monkeypatch, pacs.main)


@pytest.mark.parametrize("moment", ["before 1", "after 1", "after 2"])
def test_a_link_that_is_killed_and_run_again_answers_no_image_twice_and_none_never(
    orthanc: OrthancServer, place: Path, moment: str
) -> None:
    orthanc.send(image(1), image(2))
    assert killed(orthanc, place, moment) == 1
    begun = json.loads(place.read_text())
    assert (begun["since"], begun["tries"], begun["alone_until"] > 0) == (0, 1, True)
    follow(link(orthanc.url, place, overlay=True))
    assert (answers(orthanc), answers(orthanc, "OT")) == ({"1": 1, "2": 1}, {"1": 1, "2": 1})
    assert_tells_nothing(place.read_text(), orthanc)


def test_nothing_is_answered_twice_when_the_place_is_lost(orthanc: OrthancServer, place: Path) -> None:
    orthanc.send(image(1))
    by = classifier(place.parent)
    follow(link(orthanc.url, place, by=by))
    for contents in ("", "{}", '{"server": 1, "what": 2}', None):
        place.unlink() if contents is None else place.write_text(contents)
        tally = follow(link(orthanc.url, place, by=by)).tally
        assert (tally.answered, tally.known, tally.passed) == (0, 1, 1)


def test_a_newer_champion_answers_the_images_that_come_and_the_older_ones_when_told(
    orthanc: OrthancServer, place: Path
) -> None:
    orthanc.send(image(1))
    older, newer = (classifier(place.parent, number=str(seed), seed=seed) for seed in (1, 2))
    follow(link(orthanc.url, place, by=older))
    place.unlink()
    assert follow(link(orthanc.url, place, by=newer)).tally.answered == 0
    orthanc.send(image(2))
    assert follow(link(orthanc.url, place, by=newer)).tally.answered == 1
    for expected in (1, 0):
        place.unlink()
        assert follow(link(orthanc.url, place, by=newer, again=True)).tally.answered == expected
    assert answers(orthanc) == {"1": 2, "2": 1}


@pytest.mark.parametrize("sent_to_the_new_one", [1, 4])
def test_another_database_under_the_same_address_is_followed_from_its_beginning(
    orthanc: OrthancServer, place: Path, caplog: pytest.LogCaptureFixture, sent_to_the_new_one: int
) -> None:
    by = classifier(place.parent)
    orthanc.send(image(1), image(2))
    follow(link(orthanc.url, place, by=by))
    followed = link(orthanc.url, place, by=by)
    orthanc.kill()
    orthanc.storage = "new"
    orthanc.start()
    orthanc.send(*(image(number) for number in range(3, 3 + sent_to_the_new_one)))
    assert follow(followed).tally.answered == sent_to_the_new_one
    assert caplog.text.count("has a new feed") == 1


def test_a_image_that_the_model_cannot_take_is_named_by_its_id_and_holds_up_no_other(
    orthanc: OrthancServer, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    orthanc.send(image(1), image(2), image(3))
    by = Spoilt(**vars(classifier(place.parent)), spoiling=image(2))
    tally = follow(link(orthanc.url, place, by=by)).tally
    assert (tally.answered, tally.refused) == (2, 1)
    (spoiling,) = orthanc.instances(SOPInstanceUID=f"{UID_ROOT}.2.1.1")
    assert f"pacs: image {spoiling} gets no answer: RuntimeError" in caplog.text
    assert_tells_nothing(caplog.text, orthanc)


def test_a_image_whose_file_the_pacs_has_lost_holds_up_no_other(
    orthanc: OrthancServer, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    orthanc.send(image(1))
    (lost,) = orthanc.instances(Modality="DX")
    orthanc.kill()
    for file in (orthanc.folder / "db").glob("*/*/*"):
        file.unlink()
    orthanc.start()  # with nothing in memory
    orthanc.send(image(2))
    tally = follow(link(orthanc.url, place)).tally
    assert (tally.answered, tally.refused) == (1, 1)
    assert f"pacs: image {lost} gets no answer: the PACS has no file of it" in caplog.text


def test_a_image_over_which_the_process_dies_each_time_is_passed_over(orthanc: OrthancServer, place: Path) -> None:
    orthanc.send(image(1), image(2))
    assert killed(orthanc, place, "before 1", times=TRIES) == TRIES
    assert json.loads(place.read_text())["tries"] == TRIES
    tally = follow(link(orthanc.url, place)).tally
    assert (tally.answered, tally.refused) == (1, 1)
    assert answers(orthanc) == {"2": 1}


def test_a_wrong_password_ends_it_with_what_to_set_and_without_the_password(
    orthanc: OrthancServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ACCOUNT_VARIABLES:
        monkeypatch.delenv(name)
    by_address = f"http://{USER}:{orthanc.password}@127.0.0.1:{orthanc.http_port}"
    assert follow(link(by_address, place)).tally.answered == 0
    with pytest.raises(SourceError) as caught:
        follow(link(by_address.replace(orthanc.password, "guessed"), place))
    assert str(caught.value) == (
        f"{orthanc.url} refuses user and password; set CXR_PACS_USER and CXR_PACS_PASSWORD to those of "
        "RegisteredUsers in Orthanc's configuration"
    )
