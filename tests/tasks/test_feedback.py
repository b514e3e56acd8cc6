"""What readers said becomes a folder that ingest and the external test take."""

import hashlib
from pathlib import Path

import pytest
from playwright.sync_api import expect

from cxr.common.errors import ParamsError, PromotionRejectedError, SourceError
from cxr.common.params import override
from cxr.dataset.external_set import read_external_set
from cxr.dataset.layouts.labelled_folder import LabelledFolder
from cxr.inference.classifier import Classifier, load_classifier
from cxr.inference.feedback import Feedback, add_feedback, read_feedback
from cxr.registry import versions
from cxr.registry.versions import fetch_bundle
from tasks import external, promote
from tasks.feedback import feedback
from tests.support.images.dicom_images import dicom_image, picture
from tests.support.pages.browsers import drop, launch_browser
from tests.support.projects.registry_project import call, register
from tests.support.projects.tiny_model import enter_tiny_project, write_image, write_network
from tests.support.services.webapp_server import serve_here


def labelled(table: Path, data: bytes, label: str) -> str:
    """Add feedback on an image; return its digest."""
    sha256 = hashlib.sha256(data).hexdigest()
    add_feedback(table, Feedback("2026-03-01T11:30:00+00:00", sha256, "12", "viral", label))
    return sha256


def test_labelled_images_are_found_by_digest_and_both_readers_take_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, table, output = tmp_path / "images" / "Jane Sorrowful", tmp_path / "feedback.csv", tmp_path / "readers"
    images.mkdir(parents=True)
    contents = {"a.PNG": b"first", "b.dcm": dicom_image(picture()), "c.png": b"nobody looked at it"}
    for name, data in contents.items():
        (images / name).write_bytes(data)
    labelled(table, b"elsewhere", "normal")
    first = labelled(table, contents["a.PNG"], "normal")
    second = labelled(table, contents["b.dcm"], "viral")
    labelled(table, contents["a.PNG"], "bacterial")
    assert feedback(table, tmp_path / "images", output) == 2
    said = capsys.readouterr().out
    assert said.startswith("2 of 3 labelled images found")
    assert "agreed with 1 answers and corrected 1" in said
    expected = {f"{first[:32]}.png": "bacterial", f"{second[:32]}.dcm": "viral"}
    assert sorted(path.name for path in output.iterdir()) == sorted([*expected, "labels.csv"])
    paths = list(expected)
    external = read_external_set("readers", paths, table=output / "labels.csv", part=None)
    assert {image.path: image.label for image in external.images} == expected
    monkeypatch.setenv("CXR_PATIENT_KEY", "k" * 32)
    opened = LabelledFolder().open(output)
    assert {str(path): row.label for path, row in opened.rows.items()} == expected
    assert not list(tmp_path.glob(".*partial"))


def test_nothing_to_export_is_one_line(tmp_path: Path) -> None:
    table = tmp_path / "feedback.csv"
    with pytest.raises(ParamsError, match="has no row"):
        feedback(table, tmp_path, tmp_path / "readers")
    labelled(table, b"elsewhere", "normal")
    with pytest.raises(SourceError, match="has none of the 1 images"):
        feedback(table, tmp_path, tmp_path / "readers")
    with pytest.raises(SourceError, match="is not a folder"):
        feedback(table, tmp_path / "nowhere", tmp_path / "readers")
    assert not (tmp_path / "readers").exists()


def loaded(alias: str) -> Classifier:
    """Return the classifier of a version."""
    version = versions.get_version(alias)
    return load_classifier(fetch_bundle(version), number=version.number)


def in_the_page(classifier: Classifier, labels: dict[Path, str]) -> list[Feedback]:
    """Have a reader say what each image is, by one key, in the page that `classifier` serves; return the table."""
    with serve_here(classifier) as served, launch_browser() as browser, browser.new_context() as context:
        page = context.new_page()
        page.goto(served.address)
        drop(page, {path.name: path.read_bytes() for path in labels})
        expect(page.locator("#count")).to_have_text(f"{len(labels)} of {len(labels)}", timeout=60_000)
        for path, label in labels.items():
            page.locator(".row", has_text=path.name).click()
            page.keyboard.press(label[0])
            expect(page.locator("#finding")).to_contain_text(f"Stored: {label}")
        return read_feedback(served.webapp.service.feedback.table)


def test_what_readers_say_in_the_page_decides_whether_a_challenger_is_promoted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    enter_tiny_project(tmp_path, monkeypatch, tmp_path_factory, champion=True)
    write_network(seed=3)
    register()
    images = [Path("images", f"image-{number:02d}.png") for number in range(12)]
    for number, path in enumerate(images):
        write_image(path, seed=700 + number)
    challenger = loaded(versions.CHALLENGER)
    answers = [challenger.answer(challenger.read(path.read_bytes(), name="")[None])[0] for path in images]
    labels = {path: answer.predicted_class for path, answer in zip(images, answers, strict=True)}
    labels[images[0]] = next(label for label in answers[0].probabilities if label != labels[images[0]])
    for row in in_the_page(loaded(versions.CHAMPION), labels):  # readers see the champion's answers
        add_feedback(Path("feedback.csv"), row)
    assert feedback(Path("feedback.csv"), Path("images"), Path("readers")) == 12
    override(Path("params.yaml"), {"evaluate.bootstrap_resamples": 100, "monitor.resamples": 500})
    call(monkeypatch, external.main, "--data", "readers", "--version", versions.CHALLENGER)
    override(Path("params.yaml"), {"promote.external_floors": {"accuracy": 0.9}})
    capsys.readouterr()
    call(monkeypatch, promote.main, "--dry-run")
    said = capsys.readouterr().out
    assert said.startswith("PROMOTE: version 2")
    assert "external test readers: 12 images" in said
    (line,) = [line for line in said.splitlines() if "accuracy on readers" in line]
    assert " ".join(line.split()) == "passed accuracy on readers 0.917; required: at least 0.900"
    override(Path("params.yaml"), {"promote.external_floors": {"accuracy": 0.95}})
    with pytest.raises(PromotionRejectedError, match=r"accuracy on readers: 0\.917, required at least 0\.950"):
        call(monkeypatch, promote.main, "--dry-run")
