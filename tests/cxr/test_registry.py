"""Versions, aliases and the record of champions in a real registry."""

import logging
import shutil
from pathlib import Path

import pytest

from cxr import registry, tracking_store
from cxr.errors import RegistryError, WeightsError
from cxr.files import sha256_of
from tests.registry_project import artifacts, enter_project, register, write_model


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


def _two_versions() -> None:
    for seed in (1, 2):
        write_model(seed=seed)
        register()


def test_what_is_missing_says_how_to_get_it() -> None:
    where = "chest-xray-pneumonia in sqlite:///mlruns/mlflow.db"
    assert registry.champion() is None
    assert registry.history() == []
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
    with pytest.raises(RegistryError, match="there is no champion to go back to"):
        registry.previous_champion()


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
        "the tracking store sqlite:///mlruns/mlflow.db has lost model.safetensors, model.json of version 1; "
        "restore the store from its backup, or go back with `python -m tasks.rollback`"
    )
    shutil.rmtree("mlruns/artifacts")
    with pytest.raises(RegistryError, match=r"failed while fetching version 1: .*; check that it runs"):
        registry.fetch_bundle(version)


def test_every_move_is_on_record_and_rollbacks_go_back_one_by_one() -> None:
    _two_versions()
    registry.move_champion("1", kind="promote", who="ann", why="first")
    registry.move_champion("2", kind="promote", who="ben", why="better")
    assert registry.previous_champion().number == "1"
    registry.move_champion("1", kind="rollback", who="cem", why="misses effusions")
    moves = registry.history()
    assert [(m.number, m.kind, m.before, m.after, m.who, m.why) for m in moves] == [
        (1, "promote", "", "1", "ann", "first"),
        (2, "promote", "1", "2", "ben", "better"),
        (3, "rollback", "2", "1", "cem", "misses effusions"),
    ]
    assert all(move.time.endswith("+00:00") for move in moves)
    with pytest.raises(RegistryError, match="there is no champion to go back to"):
        registry.previous_champion()


def test_a_move_that_was_cut_off_after_its_record_is_finished_without_a_second_entry() -> None:
    _two_versions()
    registry.move_champion("1", kind="promote", who="ann", why="first")
    registry.move_champion("2", kind="promote", who="ann", why="better")
    tracking_store.client().set_registered_model_alias(registry.MODEL, "champion", "1")  # as a kill leaves it
    registry.move_champion("2", kind="promote", who="ann", why="better")
    assert len(registry.history()) == 2
    assert registry.get_version("champion").number == "2"


def test_an_entry_changed_by_hand_shows(caplog: pytest.LogCaptureFixture) -> None:
    _two_versions()
    registry.move_champion("1", kind="promote", who="ann", why="first")
    registry.move_champion("2", kind="promote", who="ann", why="better")
    client = tracking_store.client()
    first = client.get_registered_model(registry.MODEL).tags["ledger.000001"]
    client.set_registered_model_tag(registry.MODEL, "ledger.000001", first.replace("ann", "eve"))
    caplog.set_level(logging.WARNING)
    registry.history()
    assert "the record of champions was changed by hand at entry 2" in caplog.messages
    client.set_registered_model_tag(registry.MODEL, "ledger.000001", "nonsense")
    with pytest.raises(RegistryError, match=r"cannot be read .*; mend or remove the damaged tag ledger"):
        registry.history()


def test_a_version_without_evidence_in_the_store_has_none(tmp_path: Path) -> None:
    write_model()
    version = register()
    assert registry.fetch_evidence(version, tmp_path) is not None
    for stored in artifacts():
        stored.unlink()
    assert registry.fetch_evidence(version, tmp_path) is None
    tracking_store.client().delete_run(version.run_id)
    assert registry.fetch_evidence(version, tmp_path) is None
