"""A store that release 0.4.0 wrote is read, served, judged against and continued."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from cxr.common.errors import RegistryError
from cxr.inference.classifier import load_classifier
from cxr.registry import tracking_store, versions
from cxr.registry.champion import aliases
from cxr.registry.evaluation_store import evaluation_of, training_images
from cxr.registry.stored_names import current_verdict, current_version_tags, entry_tag
from tasks import history, promote, rollback
from tests.support.logs import own_messages
from tests.support.projects import release_040
from tests.support.projects.registry_project import call, enter_project, register, write_model

OLD_NAMES = ("evidence", "training_films")


@pytest.fixture(scope="module")
def old_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release-040")
    with pytest.MonkeyPatch.context() as patch:
        enter_project(folder, patch, tmp_path_factory)
        release_040.write_store(folder / "scratch")
    return folder / "mlruns"


@pytest.fixture(autouse=True)
def _project(
    old_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    shutil.copy2(old_store / "mlflow.db", tmp_path / "mlruns")  # its artifacts have absolute paths


def test_a_version_loads_predicts_and_has_its_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    version = versions.get_version("champion")
    assert version.number == "2"
    classifier = load_classifier(versions.fetch_bundle(version), number=version.number)
    assert classifier.spec.temperature == 1.5
    side = release_040.IMAGE_SIZE_PX
    (answer,) = classifier.answer(np.zeros((1, side, side), np.uint8))
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    for test_set in ("", "e" * 64):
        found = evaluation_of(version, test_set)
        assert (found.metric("accuracy"), found.problems()) == (1.0, [])
    seen = training_images(version)
    assert seen is not None
    assert list(seen["image_id"]) == ["other", "trained"]
    assert not [name for name in version.tags if name.startswith(OLD_NAMES)]
    assert own_messages(caplog) == []


def test_the_audit_log_is_shown_under_the_present_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    call(monkeypatch, history.main)
    assert [row.split()[1:5] for row in capsys.readouterr().out.splitlines()[1:]] == [
        ["promote", "1", "-", "ann"],
        ["promote", "2", "1", "ann"],
    ]
    assert aliases.problems() == own_messages(caplog) == []


def test_a_challenger_is_judged_against_it_and_a_rollback_goes_back_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(seed=3)
    register()
    call(monkeypatch, promote.main, "--approved-by", "ben")
    assert json.loads(versions.get_version("3").tags["promotion"])["champion"] == "2"
    assert versions.get_version("champion").number == "3"
    call(monkeypatch, rollback.main)
    assert versions.get_version("champion").number == "2"
    assert [(move.before, move.after) for move in aliases.history()] == [("", "1"), ("1", "2"), ("2", "3"), ("3", "2")]
    tags = tracking_store.client().get_registered_model(versions.MODEL).tags
    assert sorted(tags) == ["audit_log.000003", "audit_log.000004", "audit_log_head", "ledger.000001", "ledger.000002"]
    assert aliases.problems() == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_changed_old_entry_is_named_and_comes_back(number: int) -> None:
    client, tag = tracking_store.client(), f"ledger.{number:06d}"
    before = aliases.history()
    line = client.get_registered_model(versions.MODEL).tags[tag]
    client.set_registered_model_tag(versions.MODEL, tag, line.replace("ann", "eve"))
    (problem,) = aliases.problems()
    assert problem.startswith(f"entry {number} was changed")
    aliases.settle()
    assert aliases.history() == before
    assert aliases.problems() == []


def test_a_move_that_release_040_left_half_done_is_finished() -> None:
    previous = aliases.read_log().head
    assert previous is not None
    release_040.write_entry(3, before="2", after="1", previous=previous.sha256)
    begun = aliases.unfinished()
    assert begun is not None
    aliases.settle()
    assert versions.get_version("champion").number == "1"
    assert aliases.history()[-1] == begun
    assert aliases.problems() == []


def test_an_entry_of_a_later_format_stops_every_command_in_place_of_another_champion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = tracking_store.client()
    entry = {**json.loads(release_040.claim_line(2)), "number": 3, "before": "2", "after": "1", "format": 2}
    client.set_registered_model_tag(versions.MODEL, entry_tag(3), json.dumps(entry))
    for command in (history.main, promote.main, rollback.main):
        with pytest.raises(RegistryError, match=r"entry 3 of the audit log has format 2, written by a later release"):
            call(monkeypatch, command)
    assert client.get_registered_model(versions.MODEL).aliases["champion"] in {2, "2"}


def test_where_old_and_present_name_are_set_the_present_one_counts() -> None:
    tags = {"evidence": "old", "evaluation_artifacts": "new", "evidence_sha256.abc": "x", "accuracy": "1"}
    for ordered in (tags, dict(reversed(tags.items()))):
        assert current_version_tags(ordered) == {
            "evaluation_artifacts": "new",
            "evaluation_artifacts_sha256.abc": "x",
            "accuracy": "1",
        }


def test_an_old_verdict_has_the_present_names() -> None:
    old = {"who": "ann", "why": "first", "evidence": {"version": {"evidence_sha256": "x"}, "champion": None}}
    assert current_verdict(old) == {
        "approved_by": "ann",
        "reason": "first",
        "evaluation": {"version": {"evaluation_artifacts_sha256": "x"}, "champion": None},
    }
