"""Versions read from a real store without MLflow's client: the same answers at once, and the unusual left to MLflow."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cxr.common.errors import RegistryError
from cxr.registry import direct_lookup, tracking_store, versions
from cxr.registry.champion import aliases
from cxr.registry.stored_names import HEAD_TAG, entry_tag
from cxr.registry.versions import Version, get_version
from tests.support.project import PROJECT
from tests.support.projects.registry_project import enter_project
from tests.support.services.mlflow_server import serve_mlflow

AWKWARD = {"empty": "", "quoted": 'it\'s "so"; --', "accents": "größe µ", "training_films": "a name of 0.4.0"}


@pytest.fixture(params=["local", "server"])
def store(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """A store with three versions, of which 1 is champion and 2 is challenger."""
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    client = tracking_store.client()
    client.create_registered_model(versions.MODEL)
    client.create_registered_model("another")
    for _ in range(3):
        client.create_model_version(versions.MODEL, "s3://models/one", run_id="0" * 32, tags=AWKWARD)
        client.create_model_version("another", "s3://another", tags={"weights_sha256": "of another"})
    client.set_registered_model_alias("another", "champion", "3")
    client.set_registered_model_alias(versions.MODEL, "challenger", "2")
    move("1", "")
    if request.param == "local":
        yield
        return
    with serve_mlflow(tmp_path / "mlruns") as address:
        monkeypatch.setenv(tracking_store.STORE_VARIABLE, address)
        yield


def move(number: str, instead_of: str) -> None:
    aliases.move_champion(number, instead_of=instead_of, kind="promote", approved_by="ann", reason="better")


def read_directly(which: str) -> Version:
    """Return a version as `get_version` does, or fail where MLflow's client is asked for it."""
    with pytest.MonkeyPatch.context() as without:
        without.delattr(tracking_store, "client")
        return get_version(which)


def by_mlflow(which: str) -> Version:
    """Return a version as `get_version` does, by MLflow alone."""
    with pytest.MonkeyPatch.context() as without:
        without.setattr(direct_lookup, "find", lambda _: None)
        return get_version(which)


@pytest.mark.usefixtures("store")
def test_every_change_is_seen_at_once_and_read_as_mlflow_reads_it() -> None:
    client = tracking_store.client()
    for which in ("champion", "challenger", "1", "2", "3"):
        assert read_directly(which) == by_mlflow(which), which
    assert read_directly("1").tags["training_images"] == "a name of 0.4.0"

    move("2", "1")
    assert read_directly("champion") == by_mlflow("champion")
    assert read_directly("champion").number == "2"
    client.set_model_version_tag(versions.MODEL, "2", "weights_sha256", "another")
    assert read_directly("champion").tags["weights_sha256"] == "another"
    client.set_registered_model_alias(versions.MODEL, "challenger", "3")
    assert read_directly("challenger").number == "3"
    client.delete_model_version(versions.MODEL, "3")
    assert direct_lookup.find("3") is None
    assert direct_lookup.find("challenger") is None
    with pytest.raises(RegistryError, match="there is no version"):
        get_version("3")


@pytest.mark.usefixtures("store")
def test_a_champion_set_by_hand_is_left_to_mlflow_which_warns(caplog: pytest.LogCaptureFixture) -> None:
    client = tracking_store.client()
    client.set_registered_model_alias(versions.MODEL, "champion", "3")
    assert direct_lookup.find("champion") is None
    assert get_version("champion").number == "3"
    assert "moved past the gate" in caplog.text
    aliases.restore_champion(approved_by="ann", reason="test")
    assert read_directly("champion").number == "1"
    caplog.clear()
    client.set_registered_model_alias(versions.MODEL, "champion", "3")  # the same again: a service warns again
    get_version("champion")
    assert "moved past the gate" in caplog.text


def _remove_alias() -> None:
    tracking_store.client().delete_registered_model_alias(versions.MODEL, "champion")


def _change_entry() -> None:
    client = tracking_store.client()
    line = client.get_registered_model(versions.MODEL).tags[entry_tag(1)].replace('"ann"', '"eve"')
    client.set_registered_model_tag(versions.MODEL, entry_tag(1), line)


def _remove_entry() -> None:
    tracking_store.client().delete_registered_model_tag(versions.MODEL, entry_tag(1))


def _remove_head() -> None:
    tracking_store.client().delete_registered_model_tag(versions.MODEL, HEAD_TAG)


@pytest.mark.parametrize("damage", [_remove_alias, _change_entry, _remove_entry, _remove_head])
@pytest.mark.parametrize("store", ["local"], indirect=True)
@pytest.mark.usefixtures("store")
def test_a_doubtful_audit_log_is_left_to_mlflow(damage: Callable[[], None]) -> None:
    assert direct_lookup.find("champion") is not None
    damage()
    assert direct_lookup.find("champion") is None


@pytest.mark.parametrize("store", ["local"], indirect=True)
@pytest.mark.usefixtures("store")
def test_a_store_in_another_layout_or_reached_in_another_way_is_left_to_mlflow() -> None:
    assert [direct_lookup.find(which) for which in ("9", "9" * 30, "best", "latest")] == [None] * 4
    for name in ("MLFLOW_TRACKING_AUTH", "MLFLOW_WORKSPACE"):
        with pytest.MonkeyPatch.context() as setting:
            setting.setenv(name, "other")
            assert direct_lookup.find("1") is None
    for address in ("http://127.0.0.1:1", "postgresql://nowhere/mlflow", "sqlite:///missing.db"):
        with pytest.MonkeyPatch.context() as elsewhere:
            elsewhere.setenv(tracking_store.STORE_VARIABLE, address)
            assert direct_lookup.find("1") is None
    assert not Path("missing.db").exists()
    with closing(sqlite3.connect("mlruns/mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'later'")
    assert direct_lookup.find("1") is None


@pytest.mark.parametrize("store", ["local"], indirect=True)
@pytest.mark.usefixtures("store")
def test_predict_looks_up_its_version_without_heavy_imports() -> None:
    script = (
        "import sys, tasks.predict\nprint(tasks.predict.get_version('champion').number)\n"
        "print(sys.modules.keys() & {'mlflow', 'sqlalchemy', 'pandas', 'pydantic', 'pydicom', 'torch'})"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1", "set()"]
