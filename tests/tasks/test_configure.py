"""Values are written into params.yaml; comments are kept."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cxr.common.errors import ParamsError, SourceError, WeightsError
from cxr.common.params import read_params
from cxr.common.params_file import parse_setting
from tasks.configure import configure, data_settings, main, read_profile, weights_setting
from tests.support.project import PROJECT

BOTH = [{"name": "kermany", "layout": "chest_xray"}, {"name": "covid19", "layout": "covid19"}]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    shutil.copytree(PROJECT / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "params.yaml"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["configure", *arguments])
    main()


def sets_below(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name / "train").mkdir(parents=True)
    return folder


def test_a_value_changes_and_comments_are_kept(params: Path) -> None:
    epochs = read_params(params).train.epochs
    assert configure(params, {"train.epochs": 3}) == {"train.epochs": (epochs, 3)}
    assert read_params(params).train.epochs == 3
    assert "# paper | patient | official | cv | block" in params.read_text()


def test_a_file_with_these_values_is_not_written(params: Path) -> None:
    before = params.stat().st_mtime_ns
    values = {"train.epochs": read_params(params).train.epochs, "ingest.sources.0.location": "sample"}
    assert configure(params, values) == {}
    assert params.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "name", ["train.epoch", "trains.epochs", "train.epochs.first", "ingest.sources.9.name", "ingest.sources.x.name"]
)
def test_an_unknown_name_is_rejected_and_nothing_is_written(params: Path, name: str) -> None:
    before = params.read_text()
    with pytest.raises(ParamsError) as caught:
        configure(params, {"train.epochs": 3, name: 1})
    assert name in str(caught.value)
    assert params.read_text() == before


def test_a_gate_on_an_unknown_metric_is_rejected_and_nothing_is_written(params: Path) -> None:
    before = params.read_text()
    with pytest.raises(ParamsError, match="acuracy"):
        configure(params, {"promote.floors": {"acuracy": 0.5}})
    assert params.read_text() == before


def test_profiles_settings_and_data_are_written_together(
    params: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sets_below(params.parent / "images", "chest_xray", "Covid19-dataset")
    weights = params.parent / "weights.pth"
    weights.touch()
    arguments = ["--profile", "profiles/real.yaml", "--profile", "profiles/paper.yaml", "--data", "images"]
    run(monkeypatch, *arguments, "--weights", "weights.pth", "--set", "train.epochs=2")
    written = read_params(params)
    assert written.split.protocol == "paper"
    assert (written.split.validation_share, written.train.backbone) == (0.1, "resnet50")  # not those of the sample
    assert written.ingest.sample_patients_per_class == 50  # the digests of recorded trials hold it
    assert (written.preprocess.image_size_px, written.preprocess.contrast, written.train.members) == (224, "clahe", 1)
    assert written.train.frozen == ["stem", "layer1"]
    assert written.train.epochs == 2  # --set has the last word
    assert written.train.weights == str(weights.resolve())
    assert written.ingest.watch == str(images.resolve())
    assert [(source.name, source.location) for source in written.ingest.sources] == [
        ("kermany", str(images.resolve())),
        ("covid19", str(images.resolve())),
    ]
    assert "split.protocol: patient -> paper" in capsys.readouterr().out
    run(monkeypatch, *arguments, "--weights", "weights.pth", "--set", "train.epochs=2")
    assert capsys.readouterr().out == "params.yaml has these values already\n"


def test_an_error_is_one_line(params: Path) -> None:
    command = [sys.executable, "-m", "tasks.configure", "--params", str(params), "--data", "/no/such/folder"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == SourceError.exit_code
    assert done.stderr.startswith("error: /no/such/folder: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("top", ["", "chest_xray"])  # the folder above the set, or the set's own
def test_an_absent_set_is_left_out(tmp_path: Path, top: str) -> None:
    images = sets_below(tmp_path, "chest_xray") / top
    settings = data_settings(str(images), BOTH)
    assert settings["ingest.sources"] == [
        {"name": "kermany", "layout": "chest_xray", "location": str(images), "sha256": None}
    ]


def test_the_sets_of_a_zip_are_found(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("chest_xray/train/NORMAL/IM-0001-0001.jpeg", b"")
        archive.writestr("./", b"")  # as bsdtar writes it
        archive.writestr("./Covid19-dataset/train/Covid/01.jpeg", b"")
    settings = data_settings(str(tmp_path / "images.zip"), BOTH)
    assert settings["ingest.sources.1.location"] == str(tmp_path / "images.zip")


def test_an_address_is_not_watched() -> None:
    assert data_settings("s3://images/raw", BOTH) == {
        "ingest.watch": "tasks/ingest.py",
        "ingest.sources.0.location": "s3://images/raw",
        "ingest.sources.1.location": "s3://images/raw",
    }


def test_a_folder_with_labels_csv_is_a_labelled_folder(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\n")
    assert data_settings(str(tmp_path), BOTH) == {
        "ingest.watch": str(tmp_path),
        "ingest.sources": [{"name": "hospital", "layout": "labelled", "location": str(tmp_path), "sha256": None}],
    }


def test_data_without_a_known_layout_are_named(tmp_path: Path) -> None:
    sets_below(tmp_path / "other", "cats")
    (tmp_path / "notes.txt").write_text("not a zip")
    rows = {"other": "cats", "other/cats/train": "nothing", "absent": "no such folder", "notes.txt": "neither"}
    for name, token in rows.items():
        with pytest.raises(SourceError) as caught:
            data_settings(str(tmp_path / name), BOTH)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert token in str(caught.value)


def test_a_link_that_leads_to_itself_is_no_folder_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SourceError, match="there is no such folder"):
        data_settings(str(tmp_path / "loop"), [])
    with pytest.raises(WeightsError, match="there is no such file"):
        weights_setting(str(tmp_path / "loop"))


def test_the_home_of_an_unknown_user_is_no_folder() -> None:
    with pytest.raises(SourceError, match="no such folder"):
        data_settings("~no-such-user/images", BOTH)


def test_weights_are_a_known_word_or_a_file_that_exists(tmp_path: Path) -> None:
    assert [weights_setting(word) for word in ("imagenet", "none")] == ["imagenet", "none"]
    with pytest.raises(WeightsError) as caught:
        weights_setting(str(tmp_path / "absent.pth"))
    assert "absent.pth" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "parsed"),
    [
        ("train.epochs=3", ("train.epochs", 3)),
        ("train.learning_rates.head=1e-3", ("train.learning_rates.head", 0.001)),
        ("train.frozen=[stem, layer1]", ("train.frozen", ["stem", "layer1"])),
        ("train.weights=a=b", ("train.weights", "a=b")),  # only the first equals sign parts
        ("ingest.sources.0.sha256=null", ("ingest.sources.0.sha256", None)),
    ],
)
def test_settings_are_read_as_yaml(setting: str, parsed: tuple[str, Any]) -> None:
    assert parse_setting(setting) == parsed


@pytest.mark.parametrize("setting", ["train.epochs", "=3"])
def test_a_setting_without_name_or_value_is_rejected(setting: str) -> None:
    with pytest.raises(ParamsError, match="--set expects name=value"):
        parse_setting(setting)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("train.epochs=2001-99-99", "train.epochs is not valid YAML: month"),
        (f"train.epochs={'[' * 3000}", "train.epochs is nested"),
        ("train.epochs=&a [*a]", "refers to"),
    ],
)
def test_a_value_that_is_not_yaml_is_an_error_that_names_the_parameter(setting: str, problem: str) -> None:
    with pytest.raises(ParamsError, match=problem):
        parse_setting(setting)


def test_a_position_that_a_list_does_not_have_is_an_unknown_parameter(params: Path) -> None:
    for position in ("2", "²"):
        with pytest.raises(ParamsError, match="no parameter"):
            configure(params, {f"ingest.sources.{position}.location": "x"})


def test_a_profile_is_a_mapping_of_names(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    with pytest.raises(ParamsError, match="no such profile"):
        read_profile(profile)
    profile.write_text("- train.epochs")
    with pytest.raises(ParamsError, match="a profile is a mapping"):
        read_profile(profile)
    profile.write_text("a: [")
    with pytest.raises(ParamsError, match="not valid YAML"):
        read_profile(profile)
    profile.write_bytes(b"a: \xff")
    with pytest.raises(ParamsError, match="not UTF-8"):
        read_profile(profile)
    with pytest.raises(ParamsError, match="not a regular file"):
        read_profile(tmp_path)


def test_an_unknown_layout_is_rejected_before_the_file_is_written(params: Path) -> None:
    before = params.read_bytes()
    with pytest.raises(ParamsError, match="mimic"):
        configure(params, {"ingest.sources.0.layout": "mimic"})
    assert params.read_bytes() == before
