"""Predictions by the champion, for people and for programs."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread

from cxr.common.errors import ImageError, ParamsError, RegistryError, SourceError
from cxr.common.notices import notice
from cxr.imaging.decode import SUFFIXES, image_from_bytes
from cxr.models.bundle import read_bundle, write_bundle
from cxr.models.factory import build
from cxr.models.forward import classify
from cxr.registry import aliases, runs
from cxr.registry.registration import register_version
from tasks import predict
from tests.support.dicom_images import PATIENT, dicom_image, picture
from tests.support.registry_project import CLASSES, call, enter_project, spec


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


@pytest.fixture
def images() -> Path:
    """Two readable images, one below the other, a broken one, and files that are none."""
    folder = Path("images")
    (folder / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in ("a.png", "deeper/b.JPG"):
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (60, 50), np.uint8))
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


def test_without_a_champion_the_command_says_what_to_run(monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    with pytest.raises(RegistryError, match=r"run `make run` for the whole loop, or `python -m tasks.promote`"):
        call(monkeypatch, predict.main, str(images))


def test_a_folder_without_images_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    with pytest.raises(SourceError) as caught:
        call(monkeypatch, predict.main, "empty")
    assert str(caught.value) == (
        f"empty has no images: expected files that end in {', '.join(sorted(SUFFIXES))}; name another folder"
    )


@pytest.mark.usefixtures("champion")
def test_json_has_an_object_a_file_and_an_error_for_what_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    with pytest.raises(ImageError) as caught:
        call(monkeypatch, predict.main, "--json", str(images), "missing.png")
    assert str(caught.value) == "2 of 4 files could not be read; the lines above say why"
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in told] == [
        "images/a.png",
        "images/broken.jpeg",
        "images/deeper/b.JPG",
        "missing.png",
    ]
    assert told[1] == {
        "path": "images/broken.jpeg",
        "error": "images/broken.jpeg is empty; copy it again from its source",
        "model_version": "1",
    }
    assert told[3]["error"].startswith("missing.png does not exist")
    for line in (told[0], told[2]):
        assert list(line) == ["path", "predicted_class", "probabilities", "refer", "warning", "model_version"]
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
    told = [json.loads(line)["probabilities"] for line in capsys.readouterr().out.splitlines()]
    model, described = read_bundle(champion)
    pixels = np.stack([image_from_bytes(path.read_bytes(), described.preprocessing, name=path.name) for path in paths])
    np.testing.assert_allclose([list(p.values()) for p in told], classify(model, described, pixels), rtol=1e-4)


@pytest.mark.usefixtures("champion")
def test_the_table_is_for_people_and_ends_with_the_disclaimer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    with pytest.raises(ImageError):
        call(monkeypatch, predict.main, str(images / "a.png"), str(images / "broken.jpeg"), str(images / "deeper"))
    title, heading, first, second, _, end = capsys.readouterr().out.splitlines()
    assert title == "chest-xray-pneumonia, version 1"
    assert heading.split() == ["file", "class", *CLASSES, "refer"]
    assert first.split()[0] == "images/a.png"
    assert first.split()[1] in CLASSES
    assert len(first.split()) == 6
    assert first.split()[-1] == "-"
    assert second.endswith("error: images/broken.jpeg is empty; copy it again from its source")
    assert end == notice(synthetic=True)


@pytest.mark.usefixtures("champion")
def test_a_file_that_cannot_be_opened_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.png").symlink_to("a.png")
    with pytest.raises(ImageError):
        call(monkeypatch, predict.main, "--json", "a.png")
    assert json.loads(capsys.readouterr().out)["error"].startswith("a.png cannot be opened: ")


@pytest.mark.usefixtures("champion")
def test_a_image_from_standard_input_is_answered_as_its_file_is(
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
    assert json.loads(capsys.readouterr().out)["error"] == "standard input is empty; copy it again from its source"


@pytest.mark.usefixtures("champion")
def test_overlays_and_reports_are_named_after_their_images(monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    (images / "broken.jpeg").unlink()
    (images / "deeper" / "image.dcm").write_bytes(dicom_image(picture(), **PATIENT))
    call(monkeypatch, predict.main, str(images), "--overlay", "looked", "--sr", "reports")
    written = sorted(str(path) for folder in ("looked", "reports") for path in Path(folder).rglob("*.*"))
    assert written == [
        "looked/a.png.overlay.png",
        "looked/deeper/b.JPG.overlay.png",
        "looked/deeper/image.dcm.overlay.png",
        "reports/deeper/image.dcm.overlay.dcm",
        "reports/deeper/image.dcm.sr.dcm",
    ]
    assert cv2.imread("looked/a.png.overlay.png").shape == (448, 448, 3)
    report = dcmread("reports/deeper/image.dcm.sr.dcm")
    assert (report.Modality, report.StudyInstanceUID, report.PatientID) == ("SR", "1.2.3", PATIENT["PatientID"])


@pytest.mark.usefixtures("champion")
def test_what_is_written_never_lies_among_the_images_nor_twice_in_one_place(
    monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    with pytest.raises(ParamsError, match="lies in images, where images are read"):
        call(monkeypatch, predict.main, str(images), "--overlay", str(images / "looked"))
    Path("other").mkdir()
    Path("other/a.png").write_bytes((images / "a.png").read_bytes())
    with pytest.raises(ParamsError, match="would write the same files"):
        call(monkeypatch, predict.main, "other", str(images), "--overlay", "looked")
    Path("file").write_text("")
    with pytest.raises(ParamsError, match=r"file/a.png.overlay.png cannot be written"):
        call(monkeypatch, predict.main, "other", "--overlay", "file")
