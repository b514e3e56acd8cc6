"""Testing the champion on an unseen set: every layout, labels of two kinds, copies of training images, bad input."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr.common.errors import ImageError, ParamsError, SourceError
from cxr.common.files import read_json, sha256_of
from cxr.common.params import override
from cxr.dataset.image_array import write_index
from cxr.dataset.manifest import read_split
from cxr.imaging.decode import image_from_bytes
from cxr.inference import external_answers
from cxr.registry import versions
from cxr.registry.evaluation_store import external_results, keep_training_images
from tasks import external
from tests.support.faults import fault
from tests.support.images.dicom_images import dicom_image, picture
from tests.support.pages.accessibility import faults_of_report
from tests.support.pages.browsers import launch_browser
from tests.support.projects.registry_project import CLASSES, call, register, spec
from tests.support.projects.stage_files import write_split_files
from tests.support.projects.tiny_model import SIZE_PX, enter_tiny_project, write_image

KERMANY_NAMES = ("NORMAL/IM-{n:04d}-0001.png", "PNEUMONIA/person{n}_virus_1.png", "PNEUMONIA/person{n}_bacteria_1.png")


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_tiny_project(tmp_path, monkeypatch, tmp_path_factory, champion=True)
    override(Path("params.yaml"), {"evaluate.bootstrap_resamples": 100, "monitor.resamples": 500})


def kermany(part: str, n: int = 36, *, first_seed: int = 100) -> Path:
    """Write a part of chest_xray with `n` images, a third of each class; return the folder of the set."""
    for i in range(n):
        write_image(Path("chest_xray", part, KERMANY_NAMES[i % 3].format(n=i)), seed=first_seed + i)
    return Path("chest_xray")


def plain(n: int = 24) -> Path:
    """Write `n` images of two clinics without class folders."""
    for i in range(n):
        write_image(Path("plain", f"clinic-{i % 2}", f"{i}.png"), seed=500 + i)
    return Path("plain")


def table(rows: list[dict[str, str]], name: str = "labels.csv") -> Path:
    """Write rows as CSV."""
    with Path(name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return Path(name)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict:
    """Run the command and return its JSON."""
    call(monkeypatch, external.main, *map(str, arguments), "--json", "result.json")
    result: dict = read_json(Path("result.json"))
    return result


def test_the_official_test_part_is_measured_and_stored_beside_the_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(monkeypatch, "--data", kermany("test"))
    assert result["classes"] == list(CLASSES)
    assert result["n_test"] == 36
    assert result["set"] | {"sha256": ""} == {
        "name": "chest_xray",
        "part": None,
        "sha256": "",
        "labelled_by": "folders",
        "n_images": 36,
        "n_answered": 36,
        "n_labelled": 36,
        "n_unlabelled": 0,
        "labels": dict.fromkeys(sorted(CLASSES), 12),
        "patients_known": True,
        "n_patients": 36,
        "copies": 0,
        "conflicting_copies": 0,
    }
    predictions = pd.read_csv("reports/external/chest_xray/predictions.csv")
    right = predictions["label"] == predictions["predicted_class"]
    assert result["accuracy"] == pytest.approx(right.mean())
    low, high = result["ci95"]["accuracy"]
    assert low <= result["accuracy"] <= high
    assert result["pneumonia"]["n_normal"] == 12
    called = predictions["predicted_class"] != "normal"
    ill = predictions["label"] != "normal"
    assert result["pneumonia"]["as_called"]["sensitivity"]["value"] == pytest.approx(called[ill].mean())
    assert result["referral"]["found"]["confidence"] == 0.625  # as registered
    assert result["calibration"]["lines"]["pneumonia"]["slope"] is not None
    assert not result["drift"]["unavailable_because"]
    assert result["looks"] == 1
    printed = capsys.readouterr().out
    assert f"accuracy                   {result['accuracy']:.3f}" in printed
    assert "report: reports/external/chest_xray/report.html" in printed
    page = Path("reports/external/chest_xray/report.html").read_text()
    assert "The most confident errors" in page
    assert "IM-" in page or "person" in page
    assert "<dt>Role</dt><dd>champion</dd>" in page
    assert f"it classifies {result['accuracy'] * 100:.0f} correctly" in page
    with launch_browser() as browser:
        assert faults_of_report(browser, page) == []
    stored = external_results(versions.get_version("champion"))
    assert list(stored.values()) == [result]
    assert [path.name for path in Path("reports/external").glob(".*")] == [".chest_xray.lock"]  # no partial folder


def test_a_set_that_tells_only_pneumonia_from_normal_is_scored_on_that(monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(30):
        write_image(Path("adults", ("NORMAL", "PNEUMONIA")[i % 2], f"{i}.png"), seed=i)
    result = run(monkeypatch, "--data", "adults")
    assert result["classes"] == ["normal", "pneumonia"]
    assert result["n_test"] == 30
    assert result["confusion_matrix"] == result["pneumonia"]["confusion_matrix"]
    assert result["macro_auroc"] == result["pneumonia"]["macro_auroc"]
    assert not result["set"]["patients_known"]
    page = Path("reports/external/adults/report.html").read_text()
    assert "patients are not known" in page
    errors = re.findall(r"actually (\w+), called (\w+) with", page)
    assert errors
    assert set(errors) <= {("normal", "pneumonia"), ("pneumonia", "normal")}, "as scored: the sum over all kinds"


def test_a_kind_that_the_model_does_not_know_counts_as_pneumonia(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of the normal images alone would call a model perfect that finds nobody."""
    for i in range(30):
        write_image(Path("covid-set", ("NORMAL", "Covid")[i % 2], f"{i}.png"), seed=i)
    result = run(monkeypatch, "--data", "covid-set")
    assert (result["classes"], result["n_test"]) == (["normal", "pneumonia"], 30)
    assert result["accuracy"] == result["pneumonia"]["accuracy"]
    assert result["labels_left_out"] == {}


def test_a_table_gives_labels_patients_and_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = plain()
    labels = ("Normal", "viral", "pneumonia", "covid")
    rows = [
        {
            "file": f"clinic-{i % 2}/{i}.png",
            "label": labels[i % 4],
            "patient_id": f"P{i // 2}",
            "view": "AP" if i < 8 else "PA",
            "devices": ("none", "")[i % 3 == 0],
        }
        for i in range(23)
    ]
    result = run(monkeypatch, "--data", folder, "--labels", table(rows))
    assert result["set"]["n_patients"] == 13  # twelve of the table, and the image without a line
    assert (result["set"]["n_labelled"], result["set"]["n_unlabelled"]) == (23, 1)
    assert result["n_test"] == 12
    assert result["labels_left_out"] == {"covid": 5, "pneumonia": 6}
    assert result["pneumonia"]["n_test"] == 23
    assert {kind: list(groups) for kind, groups in result["slices"].items()} == {
        "devices": ["not said", "none"],
        "folder": ["clinic-0", "clinic-1"],
        "view": ["AP", "PA"],
    }
    written = "".join(file.read_text() for file in Path("reports/external/plain").iterdir())
    assert "P11" not in written, "no patient number is written"


def test_dicom_images_give_patient_and_vendor_and_leave_no_patient_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("ward").mkdir()
    for i in range(6):
        tags = {"PatientID": f"HOSP-{i // 2}", "Manufacturer": ("Agfa", "Philips")[i % 2]}
        Path("ward", f"{i}.dcm").write_bytes(dicom_image(picture(100 + i, 90), **tags))
    rows = [{"path": f"{i}.dcm", "label": ("normal", "viral")[i % 2]} for i in range(6)]
    table(rows, "ward/labels.csv")
    result = run(monkeypatch, "--data", "ward")
    assert (result["set"]["labelled_by"], result["set"]["n_patients"]) == ("table", 3)
    assert list(result["slices"]["vendor"]) == ["Agfa", "Philips"]
    written = b"".join(file.read_bytes() for file in Path("reports/external/ward").iterdir())
    assert b"HOSP" not in written


def test_without_labels_the_answers_are_described_and_not_scored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(monkeypatch, "--data", plain())
    assert (result["classes"], result["accuracy"], result["pneumonia"]) == ([], None, None)
    assert sum(result["predicted"]["shares"].values()) == pytest.approx(1)
    assert result["drift"]["limits"]
    assert result["looks"] is None
    assert "no labels" in capsys.readouterr().out


def test_copies_of_training_images_are_found_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kermany("test")
    names = sorted(folder.rglob("*.png"))
    preprocessing = spec(image_size_px=SIZE_PX).preprocessing
    exact = f"kermany-{sha256_of(names[0])[:16]}"
    ids = [exact, "kermany-recompressed"]
    splits = pd.DataFrame({"image_id": ids, "split": "train", "fold": -1, "label": "normal", "patient_id": ["p", "q"]})
    version = versions.get_version("1")
    versions.tag_version("1", keep_training_images(version.run_id, splits))
    before = run(monkeypatch, "--data", folder)["training_duplicates"]
    assert (before["exact"], before["near"]) == (1, 0)
    assert "without thumbnails" in before["limits"]
    present = read_split(Path("data/split"))
    write_split_files(Path("data/split"), pd.concat([splits, present.part("test")]))
    Path("data/images").mkdir()
    pixels = [image_from_bytes(names[n].read_bytes(), preprocessing, name="x") for n in (0, 7)]
    np.save("data/images/images.npy", np.stack(pixels))
    write_index(Path("data/images"), ids, preprocessing)
    register()
    found = run(monkeypatch, "--data", folder)
    assert {name: found["training_duplicates"][name] for name in ("n", "exact", "near", "limits")} == {
        "n": 2,
        "exact": 1,
        "near": 1,
        "limits": "",
    }
    assert found["n_test"] == 36
    assert found["without_training_duplicates"]["n_test"] == 34
    copies = pd.read_csv("reports/external/chest_xray/training_duplicates.csv")
    assert copies["path"].tolist() == sorted(str(names[n].relative_to(folder)) for n in (0, 7))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"file": "clinic-0/0.png", "label": "flu"}],
            "line 2: label must be one of normal, viral, bacterial, covid, pn",
        ),
        ([{"file": "clinic-0/gone.png", "label": "viral"}], r"line 2: clinic-0/gone\.png is no image of plain"),
        (
            [{"file": "clinic-0/0.png", "label": "viral"}, {"file": "clinic-0/0.png", "label": "normal"}],
            r"clinic-0/0\.png has the labels viral and normal \(lines 2 and 3\)",
        ),
        (
            [{"image": "clinic-0/0.png", "label": "viral"}],
            r"expected a header with the columns file \(or path\) and label",
        ),
    ],
)
def test_a_wrong_table_is_one_error_and_nothing_is_written(
    rows: list[dict[str, str]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match=message):
        run(monkeypatch, "--data", plain(2), "--labels", table(rows))
    assert not Path("reports/external").exists()


def test_wrong_folders_are_one_error_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"nowhere: no such folder or file"):
        run(monkeypatch, "--data", "nowhere")
    Path("empty").mkdir()
    with pytest.raises(SourceError, match="empty has no images"):
        run(monkeypatch, "--data", "empty")
    with pytest.raises(ParamsError, match="empty exists and is no earlier result"):
        run(monkeypatch, "--data", plain(2), "--output", "empty")
    kermany("train", 3)
    folder = kermany("test", 6, first_seed=900)
    with pytest.raises(SourceError, match=r"has the parts test \(6 images\), train \(3 images\): name one with --part"):
        run(monkeypatch, "--data", folder)
    shutil.copytree(folder, folder / "chest_xray")  # as in Kaggle's archive
    assert run(monkeypatch, "--data", folder, "--part", "test")["n_test"] == 6
    shutil.rmtree(folder / "chest_xray")
    write_image(folder / "test" / "loose.png", seed=1)
    with pytest.raises(SourceError, match=r"1 of 10 images, such as test/loose\.png, lie in no class folder"):
        run(monkeypatch, "--data", folder, "--part", "all")
    write_image(folder / "test" / "NORMAL" / "person3_virus_1.png", seed=2)
    with pytest.raises(SourceError, match=r"person3_virus_1\.png has two labels"):
        run(monkeypatch, "--data", folder, "--part", "test")


def test_unreadable_images_are_counted_named_and_make_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kermany("test", 12)
    broken = folder / "test" / "NORMAL" / "IM-0999-0001.png"
    broken.write_bytes(next(folder.rglob("IM*.png")).read_bytes()[:60])
    with pytest.raises(ImageError, match=r"1 of 13 images could not be read; .*not_answered\.csv says why"):
        run(monkeypatch, "--data", folder)
    result = read_json(Path("result.json"))
    assert (result["not_answered"]["n"], result["n_test"]) == (1, 12)
    assert pd.read_csv("reports/external/chest_xray/not_answered.csv")["path"].tolist() == [
        "test/NORMAL/IM-0999-0001.png"
    ]
    for image in folder.rglob("*.png"):
        image.write_bytes(b"")
    with pytest.raises(ImageError, match="not one of the 13 images of chest_xray could be read"):
        run(monkeypatch, "--data", folder, "--name", "other")
    assert not Path("reports/external/other").exists()


@fault("external", "an interrupt while the set is answered", "finished images are kept", "the next run goes on")
def test_a_killed_run_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kermany("test", 48)
    monkeypatch.setattr(external_answers, "IMAGES_PER_PART", 16)
    answered: list[int] = []

    def killed(images: int) -> None:
        answered.append(images)
        if sum(answered) >= 32:
            raise KeyboardInterrupt

    class Bar:
        def __init__(self, **_: object) -> None:
            self.update = killed

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            return None

    with monkeypatch.context() as patch:
        patch.setattr(external, "tqdm", Bar)
        with pytest.raises(KeyboardInterrupt):
            run(patch, "--data", folder)
    assert not Path("reports/external/chest_xray").exists()
    again: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(external, "tqdm", Bar)
        patch.setattr(Bar, "__init__", lambda self, **_: setattr(self, "update", again.append))
        interrupted = run(patch, "--data", folder)
    assert again[0] == 32, "what was answered before is not answered again"
    assert interrupted | {"set": {}} == run(monkeypatch, "--data", folder) | {"set": {}}
