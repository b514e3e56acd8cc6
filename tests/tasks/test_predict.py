"""Predictions by the champion, for people and for programs."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread

from cxr.common.errors import ImageError, ParamsError, RegistryError, SourceError
from cxr.common.files import sha256_of
from cxr.common.notices import notice
from cxr.dataset.synthetic_image import KERMANY_LOOK
from cxr.imaging.decode import SUFFIXES, image_from_bytes
from cxr.models.bundle import read_bundle, write_bundle
from cxr.models.factory import build
from cxr.models.forward import classify
from cxr.registry import runs
from cxr.registry.champion import aliases
from cxr.registry.registration import register_version
from tasks import predict
from tests.support.images.dicom_images import PATIENT, dicom_image, picture
from tests.support.images.reference_images import synthetic_images
from tests.support.project import PROJECT
from tests.support.projects.registry_project import CLASSES, call, enter_project, spec
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


@pytest.fixture
def images() -> Path:
    """Two readable images, one in a subfolder, a broken one, and other files."""
    folder = Path("images")
    (folder / "deeper").mkdir(parents=True)
    drawn = synthetic_images(KERMANY_LOOK, 1, seed=1)
    for name, image in zip(("a.png", "deeper/b.JPG"), drawn, strict=True):
        cv2.imwrite(str(folder / name), cv2.resize(image, (50, 60)))
    (folder / "broken.jpeg").write_bytes(b"")
    (folder / "notes.txt").write_text("notes")
    (folder / "._a.png").write_bytes(b"resource fork")
    return folder


@pytest.fixture
def champion() -> Path:
    """Register a real network with random weights and make it champion; return its bundle."""
    written = write_bundle(Path("made"), build("resnet50", 3).state_dict(), spec(image_size_px=32))
    run_id = runs.start_run(run_id=None, name="n", tags={})
    version, _ = register_version(Path("made"), written, run_id=run_id, lineage={}, evaluation={})
    aliases.move_champion(version.number, instead_of="", kind="promote", approved_by="ann", reason="test")
    return Path("made")


def test_without_a_champion_the_error_names_the_command_to_run(monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    with pytest.raises(RegistryError, match="run promote"):
        call(monkeypatch, predict.main, str(images))


def test_a_folder_without_images_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    with pytest.raises(SourceError) as caught:
        call(monkeypatch, predict.main, "empty")
    assert all(suffix in str(caught.value) for suffix in SUFFIXES)


@pytest.mark.usefixtures("champion")
def test_json_has_an_object_a_file_and_an_error_for_what_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    with pytest.raises(ImageError) as caught:
        call(monkeypatch, predict.main, "--json", str(images), "missing.png")
    assert str(caught.value).startswith("2 of 4 files")
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in results] == [
        "images/a.png",
        "images/broken.jpeg",
        "images/deeper/b.JPG",
        "missing.png",
    ]
    facts = ["model_version", "engine", "refer_below", "sha256", "sop_instance_uid"]
    assert list(results[1]) == ["path", "error", *facts]
    assert results[3]["sha256"] is None
    assert results[1]["error"].startswith("images/broken.jpeg is empty")
    assert results[3]["error"].startswith("missing.png does not exist")
    for line in (results[0], results[2]):
        assert list(line) == ["path", "predicted_class", "probabilities", "refer", "warning", *facts]
        assert line["sha256"] == sha256_of(Path(line["path"]))
        assert (line["engine"], line["refer_below"], line["sop_instance_uid"]) == ("torch", None, None)
        assert line["refer"] is None  # this model was saved without a threshold
        assert list(line["probabilities"]) == list(CLASSES)
        assert sum(line["probabilities"].values()) == pytest.approx(1)
        assert line["probabilities"][line["predicted_class"]] == max(line["probabilities"].values())


def test_the_answers_are_those_of_the_registered_bundle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path, champion: Path
) -> None:
    monkeypatch.setattr("cxr.inference.pipeline.BATCH_SIZE", 1)  # more than one batch
    paths = [images / "a.png", images / "deeper" / "b.JPG"]
    call(monkeypatch, predict.main, "--json", "--model", "1", *map(str, paths))
    results = [json.loads(line)["probabilities"] for line in capsys.readouterr().out.splitlines()]
    model, described = read_bundle(champion)
    pixels = np.stack([image_from_bytes(path.read_bytes(), described.preprocessing, name=path.name) for path in paths])
    np.testing.assert_allclose([list(p.values()) for p in results], classify(model, described, pixels), rtol=1e-4)


@pytest.mark.usefixtures("champion")
def test_the_table_is_for_people_and_ends_with_the_disclaimer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    with pytest.raises(ImageError):
        call(monkeypatch, predict.main, str(images / "a.png"), str(images / "broken.jpeg"), str(images / "deeper"))
    title, heading, first, second, _, count, end = capsys.readouterr().out.splitlines()
    assert title == "chest-xray-pneumonia, version 1"
    assert heading.split() == ["file", "class", *CLASSES, "refer"]
    assert first.split()[0] == "images/a.png"
    assert first.split()[1] in CLASSES
    assert len(first.split()) == 6
    assert first.split()[-1] == "-"
    assert "error: images/broken.jpeg is empty" in second
    assert count == "2 images answered, 1 could not be read"
    assert end == notice(synthetic=True)


@pytest.mark.usefixtures("champion")
def test_the_error_says_that_a_file_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.png").symlink_to("a.png")
    with pytest.raises(ImageError):
        call(monkeypatch, predict.main, "--json", "a.png")
    assert json.loads(capsys.readouterr().out)["error"].startswith("a.png cannot be opened: ")


@pytest.mark.usefixtures("champion")
def test_an_image_from_standard_input_gets_the_answer_of_its_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    call(monkeypatch, predict.main, "--json", str(images / "a.png"))
    of_file = json.loads(capsys.readouterr().out)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((images / "a.png").read_bytes())))
    call(monkeypatch, predict.main, "--json", "-")
    assert json.loads(capsys.readouterr().out) == of_file | {"path": "-"}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ImageError):
        call(monkeypatch, predict.main, "--json", "-")
    assert json.loads(capsys.readouterr().out)["error"].startswith("standard input is empty")


@pytest.mark.usefixtures("champion")
def test_overlays_and_reports_are_named_after_their_images_and_what_has_no_study_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    (images / "broken.jpeg").unlink()
    (images / "deeper" / "image.dcm").write_bytes(dicom_image(picture(), **PATIENT))
    with pytest.raises(ImageError, match="2 of 3 files"):
        call(monkeypatch, predict.main, str(images), "--overlay", "looked", "--sr", "reports")
    printed = capsys.readouterr().out
    assert "error: images/a.png is no DICOM image, so it has no study for a report (--sr)" in printed
    assert "3 images answered" in printed
    written = sorted(str(path) for folder in ("looked", "reports") for path in Path(folder).rglob("*.*"))
    assert written == [
        "looked/a.png.overlay.png",
        "looked/deeper/b.JPG.overlay.png",
        "looked/deeper/image.dcm.overlay.png",
        "reports/deeper/image.dcm.heat.dcm",
        "reports/deeper/image.dcm.overlay.dcm",
        "reports/deeper/image.dcm.sr.dcm",
    ]
    height, width = cv2.imread("looked/a.png.overlay.png").shape[:2]
    assert (height > 1024, width) == (True, 853)  # the image of 60 x 50 itself, enlarged, and the caption below
    report = dcmread("reports/deeper/image.dcm.sr.dcm")
    assert (report.Modality, report.StudyInstanceUID, report.PatientID) == ("SR", "1.2.3", PATIENT["PatientID"])


@pytest.mark.usefixtures("champion")
def test_outputs_never_land_among_the_images_or_overwrite_each_other(
    monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    with pytest.raises(ParamsError, match="lies in images"):
        call(monkeypatch, predict.main, str(images), "--overlay", str(images / "looked"))
    Path("other").mkdir()
    Path("other/a.png").write_bytes((images / "a.png").read_bytes())
    with pytest.raises(ParamsError, match="would write the same files"):
        call(monkeypatch, predict.main, "other", str(images), "--overlay", "looked")
    Path("file").write_text("")
    with pytest.raises(ParamsError, match=r"file/a.png.overlay.png cannot be written"):
        call(monkeypatch, predict.main, "other", "--overlay", "file")


@pytest.mark.usefixtures("champion")
def test_a_name_that_is_too_long_for_its_overlay_is_an_error_of_that_image_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    (images / "broken.jpeg").unlink()
    (images / "a.png").rename(images / f"{'a' * 240}.png")
    with pytest.raises(ImageError, match="1 of 2 files"):
        call(monkeypatch, predict.main, str(images), "--overlay", "looked")
    assert "its name is too long" in capsys.readouterr().out
    assert [path.name for path in Path("looked").rglob("*.png")] == ["b.JPG.overlay.png"]


@pytest.mark.usefixtures("champion")
def test_an_interrupt_ends_the_command_while_it_waits_for_standard_input() -> None:
    command = [sys.executable, "-m", "tasks.predict", "-"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ours, theirs = os.pipe()
    os.write(theirs, b"part of an image")
    with subprocess.Popen(command, env=environment, stdin=ours, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: fcntl.ioctl(ours, termios.FIONREAD, bytes(4)) == bytes(4))  # it has read that, and waits
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == 143
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)


@pytest.mark.usefixtures("champion")
def test_json_names_the_uid_of_a_dicom_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("IM1").write_bytes(dicom_image(picture(), SOPInstanceUID="1.2.3.4"))
    call(monkeypatch, predict.main, "--json", "IM1")
    assert json.loads(capsys.readouterr().out)["sop_instance_uid"] == "1.2.3.4"


@pytest.mark.usefixtures("champion")
def test_when_the_reader_of_the_output_leaves_the_command_ends_without_a_traceback(images: Path) -> None:
    command = [sys.executable, "-m", "tasks.predict", "--json", *[str(images / "a.png")] * 80]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["path"] == "images/a.png"
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() == 141


def test_a_terminal_hears_at_once_that_the_model_is_loading(images: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "tasks.predict", str(images / "a.png")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        first = os.read(ours, 1000)
        assert process.poll() is None, "it is said before the seconds of loading, not after them"
        assert process.wait() == 9
    assert first.rstrip(b"\r") == b"loading the model ..."  # a terminal may hand the line on in two parts
    assert os.read(ours, 1000).lstrip(b"\r").startswith(b"error: there is no champion")
    os.close(ours)
    os.close(theirs)
