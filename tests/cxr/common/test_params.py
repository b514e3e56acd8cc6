"""A wrong parameter is named; a right one is set without disturbing the file."""

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


def test_override_changes_its_line_alone(params: Path) -> None:
    before = params.read_text().splitlines()
    override(params, {"train.epochs": 3, "ingest.sources.1.location": "/images"})
    changed = [(old, new) for old, new in zip(before, params.read_text().splitlines(), strict=True) if old != new]
    assert len(changed) == 2
    assert read_params(params).train.epochs == 3
    assert read_params(params).ingest.sources[1].location == "/images"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train.epoch", 1, "there is no parameter train.epoch; params.yaml lists them all"),
        ("train.epochs.x", 1, "there is no parameter train.epochs.x; params.yaml lists them all"),
        ("ingest.sources.x.name", "a", "there is no parameter ingest.sources.x.name; params.yaml lists them all"),
        ("ingest.sources.9.name", "a", "there is no parameter ingest.sources.9.name; params.yaml lists them all"),
        ("train.epochs", "many", "train.epochs: Input should be a valid integer, got 'many'"),
        ("train.epochs", 0, "train.epochs: Input should be greater than or equal to 1, got 0"),
        ("split.fold", 7, "split: Value error, fold 7 does not exist: there are 5, counted from 0"),
    ],
)
def test_override_that_does_not_fit_is_refused_and_the_file_stays(
    params: Path, name: str, value: Any, message: str
) -> None:
    before = params.read_bytes()
    with pytest.raises(ParamsError) as caught:
        override(params, {name: value})
    assert str(caught.value).startswith(message)
    assert params.read_bytes() == before


def test_unknown_and_missing_keys_are_named(params: Path) -> None:
    params.write_text(params.read_text().replace("  epochs:", "  epoch:"))
    with pytest.raises(ParamsError) as caught:
        read_params(params)
    assert "train.epochs: Field required" in str(caught.value)
    assert "train.epoch: Extra inputs are not permitted, got" in str(caught.value)


def test_missing_file_and_broken_yaml_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="is missing; run from the project's root"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("train: {")
    with pytest.raises(ParamsError, match="is not valid YAML"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("profile", sorted((PROJECT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_fits_and_is_what_is_read_back(params: Path, profile: Path) -> None:
    values = YAML(typ="safe").load(profile)
    override(params, values)
    for name, value in values.items():
        section, key = name.split(".")
        assert getattr(read_params(params).section(section), key) == value
