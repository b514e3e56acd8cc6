"""What people ask for by an alias in MLflow, and the answer on the version's page."""

from pathlib import Path

import pytest

from cxr.common.errors import PromotionRejectedError, RegistryError
from cxr.registry import tracking_store
from cxr.registry.champion import aliases
from cxr.registry.champion.requests import Request, answer, open_requests
from cxr.registry.stored_names import CHAMPION, MODEL, REQUESTED
from tasks import promote, rollback
from tests.support.projects.registry_project import call, enter_project, register, write_model


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    write_model()
    register()


def page_of(version: str) -> tuple[str, str]:
    """Return what a version's page says: its description, and the tag with the reason."""
    found = tracking_store.client().get_model_version(MODEL, version)
    return str(found.description), str(found.tags.get("promotion_reason", ""))


def test_each_verdict_is_on_the_versions_page_and_closes_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    client = tracking_store.client()
    assert open_requests() == []
    client.update_model_version(MODEL, "1", "Ann's own words.")
    client.set_registered_model_alias(MODEL, REQUESTED, "1")
    assert open_requests() == [Request(REQUESTED, "1")]
    call(monkeypatch, promote.main, "--version=1", "--approved-by=MLflow", "--reason=requested")
    assert open_requests() == []
    description, reason = page_of("1")
    assert reason.endswith("PROMOTE. Champion now, MLflow: requested")
    assert description == f"Ann's own words.\n\n## Promotion gate\n\n{reason}"

    write_model(seed=2, wrong=5, of_class="viral")
    register()
    client.set_registered_model_alias(MODEL, CHAMPION, "2")  # past the gate
    assert open_requests() == [Request(CHAMPION, "2")]
    with pytest.raises(PromotionRejectedError):
        call(monkeypatch, promote.main, "--version=2")
    description, reason = page_of("2")
    assert "REJECT. version 2 was rejected, version 1 stays champion: recall of viral" in reason
    assert "champion is now version 1" in reason
    assert description.endswith(reason)
    assert open_requests() == []

    client.delete_registered_model_alias(MODEL, CHAMPION)
    assert open_requests() == [Request(CHAMPION, "")]
    call(monkeypatch, rollback.main, "--restore-only", "--reason=test")
    description, reason = page_of("1")
    assert "the alias was removed; test: version 1 is champion again" in reason
    assert description.count("## Promotion gate") == 1  # the present answer replaces the one before


@pytest.mark.parametrize("length", [10, 4960, 4985, 9000])
def test_a_page_never_gets_longer_than_mlflow_allows(length: int) -> None:
    """PostgreSQL refuses a longer description, and the answer comes after the move."""
    tracking_store.client().update_model_version(MODEL, "1", "Ann's own words. " * 250)
    answer("1", "x" * length)
    description, reason = page_of("1")
    assert len(description) <= 5000
    assert reason.endswith("x" * min(length, 4900))


def test_a_rollback_names_any_earlier_champion_and_no_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (2, 3, 4):
        write_model(seed=seed)
        register()
    for before, after in (("", "1"), ("1", "2"), ("2", "3")):
        aliases.move_champion(after, instead_of=before, kind="promote", approved_by="ann", reason="better")
    with pytest.raises(RegistryError, match="version 4 is no earlier champion"):
        call(monkeypatch, rollback.main, "--version=4")
    call(monkeypatch, rollback.main, "--version=1", "--approved-by=ann", "--reason=artefacts")
    assert page_of("1")[1].endswith("version 1 is champion again; it was version 3. Rollback, ann: artefacts")
    assert aliases.standing().alias == "1"
