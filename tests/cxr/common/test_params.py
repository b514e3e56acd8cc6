"""Reading and changing params.yaml: errors name the parameter, changes keep the rest of the file."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from cxr.common.errors import ParamsError
from cxr.common.params import Params, override, read_params
from tests.support.faults import fault
from tests.support.project import PROJECT


@pytest.fixture
def params(tmp_path: Path) -> Path:
    copy = tmp_path / "params.yaml"
    copy.write_text((PROJECT / "params.yaml").read_text())
    return copy


def test_an_override_changes_only_its_line(params: Path) -> None:
    before = params.read_text().splitlines()
    override(params, {"train.epochs": 3, "ingest.sources.1.location": "/images"})
    changed = [(old, new) for old, new in zip(before, params.read_text().splitlines(), strict=True) if old != new]
    assert len(changed) == 2
    assert read_params(params).train.epochs == 3
    assert read_params(params).ingest.sources[1].location == "/images"


def test_a_list_can_be_set_and_emptied_again_and_again(params: Path) -> None:
    """As in a study: its rows override what a profile has set."""
    late = {"name": "late", "label": "viral", "source": "kermany", "series": "virus", "first": 9, "last": None}
    for sources, populations in [(["kermany"], [{**late, "weight": 0.5}]), ([], [])] * 2:
        override(params, {"split.train_sources": sources, "train.populations": populations})
        read = read_params(params)
        assert list(read.split.train_sources) == sources
        assert [one.name for one in read.train.populations] == [one["name"] for one in populations]


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("train.epoch", 1, "train.epoch;"),
        ("train.epochs.x", 1, "train.epochs.x;"),
        ("ingest.sources.x.name", "a", "ingest.sources.x.name;"),
        ("ingest.sources.9.name", "a", "ingest.sources.9.name;"),
        ("train.epochs", "many", "train.epochs:"),
        ("train.epochs", 0, "train.epochs:"),
        ("split.fold", 7, "fold 7"),
        ("validate.side_px", [8000, 64], "validate.side_px: Value error, the first of two limits"),
        ("train.learning_rates", {"head": 1e-3}, "layer1, stem is missing"),
        ("train.zoom", [1.2, 0.9], "train.zoom: Value error, the first of two limits"),
    ],
)
def test_an_invalid_override_names_the_parameter_and_leaves_the_file_unchanged(
    params: Path, name: str, value: Any, named: str
) -> None:
    before = params.read_bytes()
    with pytest.raises(ParamsError, match=re.escape(named)):
        override(params, {name: value})
    assert params.read_bytes() == before


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("latin-1", "is not UTF-8 text"),
        ("utf-16", "is not UTF-8 text"),
        ("nested", "nested more than 12 levels deep"),
        ("large", "more than 1 MB"),
        ("alias", "refers to *x"),
        ("pipe", "is not a regular file"),
        ("empty", "the file: Input should be a valid dictionary"),
        ("list", "the file: Input should be a valid dictionary"),
        ("digits", "is not valid YAML"),
        ("boolean", "a value does not fit its tag"),
        ("set", "a value does not fit its tag"),
    ],
)
@fault(
    "params.yaml",
    "Latin-1, UTF-16, nested without end, large, a reference, a pipe, empty, a list, endless digits",
    "refused at once",
    "exit code 2 and what is wrong",
)
def test_a_file_that_is_no_parameter_file_is_refused(params: Path, fault: str, named: str) -> None:
    text = params.read_text()
    contents = {
        "latin-1": f"# Ä\n{text}".encode("latin-1"),
        "utf-16": text.encode("utf-16"),
        "nested": b"a: " + b"[" * 200_000,
        "large": b"a" * (1 << 21),
        "alias": b"a: &x [1]\nb: *x\n",
        "empty": b"",
        "list": b"[]",
        "boolean": b"a: !!bool abc",
        "set": b"a: !!set abc",
        "digits": re.sub(r"  epochs: \d+", f"  epochs: {'9' * 5000}", text).encode(),
    }
    if fault == "pipe":
        params.unlink()
        os.mkfifo(params)
    else:
        params.write_bytes(contents[fault])
    with pytest.raises(ParamsError, match=re.escape(named)):
        read_params(params)


@fault(
    "params.yaml",
    "a number is negative, infinite, not a number, or far out of range",
    "refused",
    "exit code 2, the parameter and its bound",
)
def test_every_number_has_a_bound(params: Path) -> None:
    """An infinite or endless number and one far out of range are refused for each parameter that holds a number."""
    read = read_params(params).model_dump(by_alias=True)
    numbers = [
        (f"{section}.{name}", value)
        for section, values in read.items()
        for name, value in values.items()
        if type(value) in (int, float)
    ]
    assert len(numbers) > 80
    for name, value in numbers:
        for wrong in (-1, 2**63, 10**30) if type(value) is int else (-1.0, 1e300, float("inf"), float("nan")):
            section, key = name.split(".")
            with pytest.raises(ValidationError, match=re.escape(name)):
                Params.model_validate(read | {section: read[section] | {key: wrong}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("score.location", "ingest.watch", "train.weights") for value in ("", " ")),
        *(("paths.raw", value) for value in ("", " ", ".")),
    ],
)
@fault("params.yaml", "an address, path or name is empty", "refused", "exit code 2 and the parameter")
def test_an_empty_name_is_refused(params: Path, name: str, value: str) -> None:
    with pytest.raises(ParamsError, match=name):
        override(params, {name: value})


@pytest.mark.parametrize("value", ["data/..", "../other", "..", "/", "here", "here/.", "above"])
def test_an_output_that_is_the_project_or_around_it_is_refused(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "above").symlink_to(tmp_path.parent)
    with pytest.raises(ParamsError, match=r"paths\.split: .*(without `\.\.`|other than the project itself)"):
        override(params, {"paths.split": value.replace("here", str(tmp_path))})


@pytest.mark.parametrize("value", ["data", "./data/split", "absolute"])
def test_a_path_that_holds_another_is_refused(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"paths: .*(images|split) \(.*\) holds \w+ \(data/"):
        override(params, {"paths.images": value.replace("absolute", str(tmp_path / "data"))})


def test_unknown_and_missing_keys_are_named(params: Path) -> None:
    params.write_text(params.read_text().replace("  epochs:", "  epoch:"))
    with pytest.raises(ParamsError) as caught:
        read_params(params)
    assert "train.epochs is missing: if it is new in this release, copy it from the repository's" in str(caught.value)
    assert "train.epoch: Extra inputs are not permitted, got" in str(caught.value)


def test_a_missing_file_and_invalid_yaml_have_different_messages(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="is missing"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("train: {")
    with pytest.raises(ParamsError, match="is not valid YAML"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("profile", sorted((PROJECT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_is_valid_and_read_back_unchanged(params: Path, profile: Path) -> None:
    values = YAML(typ="safe").load(profile)
    override(params, values)
    read = read_params(params)
    for name, value in values.items():
        section, key = name.split(".")
        assert read.section(section).model_dump()[key] == value
