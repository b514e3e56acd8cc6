"""What becomes of an alias that a person set in MLflow: the real gate, registry and commands."""

from pathlib import Path

import pytest

from cxr.registry import tracking_store, versions
from cxr.registry.champion import aliases
from cxr.registry.champion.requests import open_requests
from cxr.registry.stored_names import MODEL, REQUESTED
from flows.judge import judge
from tests.support.project import copy_package
from tests.support.projects.registry_project import enter_project, register, write_model

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    for package in ("cxr", "flows", "tasks"):
        copy_package(package, tmp_path)


def test_a_champion_set_by_hand_is_judged_and_a_request_for_an_earlier_one_is_a_rollback() -> None:
    write_model()
    register()
    client = tracking_store.client()
    client.set_registered_model_alias(MODEL, "champion", "1")  # by hand, and good enough
    assert judge(return_state=True).name == "Promoted"
    assert [(move.kind, move.after, move.approved_by) for move in aliases.history()] == [("promote", "1", "MLflow")]
    assert aliases.problems() == []

    write_model(seed=2, wrong=5, of_class="viral")
    register()
    client.set_registered_model_alias(MODEL, "champion", "2")
    state = judge(return_state=True)
    assert state.name == "Rejected"
    assert "recall of viral" in str(state.message)
    assert versions.get_version("champion").number == "1"
    assert (aliases.history()[-1].kind, aliases.history()[-1].found) == ("restore", "2")

    aliases.move_champion("2", instead_of="1", kind="promote", approved_by="ann", reason="looked")
    client.set_registered_model_alias(MODEL, REQUESTED, "1")
    state = judge(return_state=True)
    assert (state.name, state.message) == ("Rolled back", "version 1 is champion again; it was version 2")
    assert open_requests() == []
    assert judge(return_state=True).name == "Nothing asked"
