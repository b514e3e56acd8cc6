"""Versions and aliases in a real registry."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from cxr.common.errors import RegistryError, WeightsError
from cxr.common.files import sha256_of
from cxr.models.bundle import read_spec
from cxr.registry import tracking_store, versions
from cxr.registry.registration import register_version
from tests.support.faults import fault
from tests.support.projects.registry_project import artifacts, enter_project, register, write_model


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


@pytest.mark.parametrize(
    ("which", "advice"), [("champion", "./run promote"), ("challenger", "./run register"), ("7", "./run history")]
)
def test_what_is_missing_says_how_to_get_it(which: str, advice: str) -> None:
    assert versions.champion() is None
    with pytest.raises(RegistryError, match=advice):
        versions.get_version(which)


def test_a_bundle_is_fetched_as_registered_and_kept_for_the_next_time() -> None:
    write_model()
    version = register()
    folder = versions.fetch_bundle(version)
    assert sha256_of(folder / "model.safetensors") == version.tags["weights_sha256"]
    for stored in artifacts():
        stored.unlink()
    assert versions.fetch_bundle(version) == folder


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@fault("model", "a bundle is changed in the store", "it is not loaded", "what differs from its tag")
def test_a_bundle_that_was_changed_in_the_store_is_not_loaded(name: str) -> None:
    write_model()
    version = register()
    stored = next(path for path in artifacts() if path.name == name)
    stored.write_bytes(stored.read_bytes() + b" ")
    with pytest.raises(WeightsError, match=f"changed since it was registered: {name}"):
        versions.fetch_bundle(version)


@fault("model", "a cached copy of a bundle is damaged", "it is fetched again", "nothing")
def test_a_damaged_copy_in_the_cache_is_fetched_again() -> None:
    write_model()
    version = register()
    copy = versions.fetch_bundle(version) / "model.safetensors"
    copy.write_bytes(b"damaged")
    assert sha256_of(versions.fetch_bundle(version) / "model.safetensors") == version.tags["weights_sha256"]


def test_a_bundle_that_the_store_has_lost_is_one_clear_line() -> None:
    write_model()
    version = register()
    for stored in artifacts():
        stored.unlink()
    with pytest.raises(RegistryError, match=r"has lost model\.safetensors"):
        versions.fetch_bundle(version)
    shutil.rmtree("mlruns/artifacts")
    with pytest.raises(RegistryError, match=r"failed while fetching version 1: .*; check that it runs"):
        versions.fetch_bundle(version)


def test_a_full_disk_is_told_as_such_where_a_bundle_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    version = register()

    def copyfile(source: object, target: object, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(RegistryError, match=r"fetching version 1: No space left on device, .*; free some space"):
        versions.fetch_bundle(version)


def test_a_bundle_that_cannot_be_served_says_what_is_wrong_with_it() -> None:
    write_model()
    version = register()
    assert versions.bundle_fault(version) == ""
    next(path for path in artifacts() if path.name == "model.safetensors").write_bytes(b"damaged")
    assert "has been changed since it was registered: model.safetensors" in versions.bundle_fault(version)


def _export(folder: Path, mark: str) -> None:
    for name in ("runtime.xml", "runtime.weights", "runtime.json"):
        (folder / name).write_text(f"{name} {mark}")


def test_an_exported_network_is_added_once_to_a_version_that_has_none(tmp_path: Path) -> None:
    write_model()
    version = register()
    assert not versions.has_runtime(version)
    bundle = Path(shutil.copytree(versions.fetch_bundle(version), tmp_path / "bundle"))
    described = read_spec(bundle)
    # What a command that was killed after the files leaves: no digest covers them, so they are not fetched.
    tracking_store.client().log_model_artifact(version.model_id, str(bundle / "model.json"), "artifacts/bundle")
    _export(bundle, "killed")
    tracking_store.client().log_model_artifact(version.model_id, str(bundle / "runtime.json"), "artifacts/bundle")
    versions.tag_version(version.number, {"runtime_graph_sha256": "0" * 64})
    partly = versions.get_version(version.number)
    assert not (versions.fetch_bundle(partly, tmp_path / "one") / "runtime.json").exists()
    for mark in ("first", "second"):
        _export(bundle, mark)
        added, new = register_version(bundle, described, run_id=version.run_id, lineage={}, evaluation={})
        assert (added.number, new, versions.has_runtime(added)) == (version.number, False, True)
    fetched = versions.fetch_bundle(added, tmp_path / "two")
    assert (fetched / "runtime.xml").read_text() == "runtime.xml first"
    next(path for path in artifacts() if path.name == "runtime.weights").write_text("changed")
    with pytest.raises(WeightsError, match=r"changed since it was registered: runtime\.weights"):
        versions.fetch_bundle(added, tmp_path / "three")
