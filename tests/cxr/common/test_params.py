"""Reading and changing params.yaml: errors name the parameter, changes keep the rest of the file."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cxr.common.errors import ParamsError
from cxr.common.params import override, read_params
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
    ],
)
def test_an_invalid_override_names_the_parameter_and_leaves_the_file_unchanged(
    params: Path, name: str, value: Any, named: str
) -> None:
    before = params.read_bytes()
    with pytest.raises(ParamsError, match=re.escape(named)):
        override(params, {name: value})
    assert params.read_bytes() == before


def test_unknown_and_missing_keys_are_named(params: Path) -> None:
    params.write_text(params.read_text().replace("  epochs:", "  epoch:"))
    with pytest.raises(ParamsError) as caught:
        read_params(params)
    assert "train.epochs: Field required" in str(caught.value)
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
    for name, value in values.items():
        section, key = name.split(".")
        assert read_params(params).section(section).model_dump()[key] == value
