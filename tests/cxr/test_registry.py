"""Versions and aliases in a real registry."""

import shutil
from pathlib import Path

import pytest

from cxr import registry
from cxr.errors import RegistryError, WeightsError
from cxr.files import sha256_of
from tests.registry_project import artifacts, enter_project, register, write_model


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


def test_what_is_missing_says_how_to_get_it() -> None:
    where = "chest-xray-pneumonia in sqlite:///mlruns/mlflow.db"
    assert registry.champion() is None
    with pytest.raises(RegistryError) as no_champion:
        registry.get_version("champion")
    assert str(no_champion.value) == (
        f"there is no champion of {where} yet; run `make run` for the whole loop, "
        "or `python -m tasks.promote` when a challenger is registered"
    )
    with pytest.raises(RegistryError) as no_challenger:
        registry.get_version("challenger")
    assert str(no_challenger.value) == (
        f"there is no challenger of {where} yet; run `python -m tasks.register` after training and evaluation"
    )
    with pytest.raises(RegistryError) as no_version:
        registry.get_version("7")
    assert str(no_version.value) == (
        f"there is no version or alias '7' of {where}; `python -m tasks.history` lists what was champion"
    )


def test_a_bundle_is_fetched_as_registered_and_kept_for_the_next_time() -> None:
    write_model()
    version = register()
    folder = registry.fetch_bundle(version)
    assert sha256_of(folder / "model.safetensors") == version.tags["weights_sha256"]
    for stored in artifacts():
        stored.unlink()
    assert registry.fetch_bundle(version) == folder


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_bundle_that_was_changed_in_the_store_is_refused(name: str) -> None:
    write_model()
    version = register()
    stored = next(path for path in artifacts() if path.name == name)
    stored.write_bytes(stored.read_bytes() + b" ")
    with pytest.raises(WeightsError) as caught:
        registry.fetch_bundle(version)
    assert str(caught.value) == (
        f"version 1 of chest-xray-pneumonia has been changed since it was registered: {name}; "
        "it was not loaded; restore the store from its backup, or go back with `python -m tasks.rollback`"
    )


def test_a_damaged_copy_in_the_cache_is_fetched_again() -> None:
    write_model()
    version = register()
    copy = registry.fetch_bundle(version) / "model.safetensors"
    copy.write_bytes(b"damaged")
    assert sha256_of(registry.fetch_bundle(version) / "model.safetensors") == version.tags["weights_sha256"]


def test_a_bundle_that_the_store_has_lost_is_one_clear_line() -> None:
    write_model()
    version = register()
    for stored in artifacts():
        stored.unlink()
    with pytest.raises(RegistryError) as caught:
        registry.fetch_bundle(version)
    assert str(caught.value) == (
        "the tracking store sqlite:///mlruns/mlflow.db has lost model.safetensors, model.json, reference.safetensors "
        "of version 1; restore the store from its backup, or go back with `python -m tasks.rollback`"
    )
    shutil.rmtree("mlruns/artifacts")
    with pytest.raises(RegistryError, match=r"failed while fetching version 1: .*; check that it runs"):
        registry.fetch_bundle(version)


def test_a_bundle_that_cannot_be_served_says_what_is_wrong_with_it() -> None:
    write_model()
    version = register()
    assert registry.bundle_fault(version) == ""
    next(path for path in artifacts() if path.name == "model.safetensors").write_bytes(b"damaged")
    assert "has been changed since it was registered: model.safetensors" in registry.bundle_fault(version)
