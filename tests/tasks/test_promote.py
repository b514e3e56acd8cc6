"""Promotion, history and rollback as commands, from registered versions to the alias."""

import csv
import io
import logging
from pathlib import Path

import pytest

from cxr import registry, tracking_store
from cxr.errors import PromotionRefusedError, RegistryError
from cxr.files import read_json
from tasks import history, promote, rollback
from tests.registry_project import call, enter_project, register, write_model


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


RECEIPT = Path("reports/promotion.json")


def test_without_a_challenger_the_command_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match=r"run `python -m tasks.register` after training and evaluation"):
        call(monkeypatch, promote.main)


def test_a_dry_run_shows_the_checks_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model()
    before = register()
    call(monkeypatch, promote.main, "--dry-run")
    out = capsys.readouterr().out
    assert "  passed  accuracy             1.000; required: at least 0.600\n" in out
    assert out.endswith("dry run: version 1 would become champion; nothing was changed\n")
    assert registry.champion() is None
    assert registry.get_version("1") == before
    assert not RECEIPT.exists()
    assert registry.history() == []


def test_a_pass_moves_the_alias_and_leaves_verdict_receipt_and_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main, "--who", "ann", "--why", "first model")
    assert capsys.readouterr().out.endswith("version 1 is champion\n")
    champion = registry.get_version("champion")
    receipt = read_json(RECEIPT)
    assert (receipt["decision"], receipt["version"], receipt["champion"]) == ("PROMOTE", "1", None)
    assert {"name": "accuracy", "passed": True, "observed": "1.000", "required": "at least 0.600"} in receipt["reasons"]
    assert receipt["evidence"]["version"]["recall"] == {"normal": 1.0, "viral": 1.0, "bacterial": 1.0}
    assert champion.tags["promotion_decision"] == "PROMOTE"
    assert [(move.after, move.who, move.why) for move in registry.history()] == [("1", "ann", "first model")]

    RECEIPT.unlink()
    call(monkeypatch, promote.main)
    assert capsys.readouterr().out == "version 1 is champion already; nothing to do\n"
    assert read_json(RECEIPT) == receipt
    assert len(registry.history()) == 1


def test_a_refusal_keeps_the_champion_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main)
    write_model(seed=2, wrong=1)
    register()
    with pytest.raises(PromotionRefusedError) as caught:
        call(monkeypatch, promote.main)
    assert str(caught.value) == (
        "version 2 was refused, version 1 stays champion: "
        "recall of normal against the champion: 0.900, required at least 0.950 (champion 1.000)"
    )
    assert "FAILED  recall of normal against the champion" in capsys.readouterr().out
    assert registry.get_version("champion").number == "1"
    assert registry.get_version("2").tags["promotion_decision"] == "REJECT"
    assert read_json(RECEIPT)["decision"] == "REJECT"


def test_lost_evidence_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    version = register()
    tracking_store.client().delete_run(version.run_id)
    with pytest.raises(PromotionRefusedError) as caught:
        call(monkeypatch, promote.main)
    assert str(caught.value).startswith(
        "version 1 was refused, there is still no champion: evidence: metrics.json is missing or not JSON; "
        "predictions.csv is missing or not a table of predictions, required "
    )


def test_another_test_set_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main)
    write_model(seed=2, films=33)
    register()
    with pytest.raises(PromotionRefusedError, match=r"test set: \w{12}, required the champion's, \w{12}$"):
        call(monkeypatch, promote.main)


def test_a_synthetic_champion_gives_way_to_real_films(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main)
    write_model(seed=2, films=33, wrong=3, synthetic=False)
    register()
    call(monkeypatch, promote.main)
    assert registry.get_version("champion").number == "2"


def test_a_challenger_that_is_not_this_folders_model_is_pointed_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_model()
    register()
    receipt = Path("reports/registration.json").read_bytes()
    write_model(seed=2)
    register()
    Path("reports/registration.json").write_bytes(receipt)
    caplog.set_level(logging.INFO)
    call(monkeypatch, promote.main, "--dry-run")
    assert any(
        message.startswith("version 2 is another model than the one in this folder") for message in caplog.messages
    )


def test_rollback_goes_back_and_the_gate_does_not_undo_it_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        write_model(seed=seed)
        register()
        call(monkeypatch, promote.main, "--who", "ann")
    call(monkeypatch, rollback.main, "--who", "ben", "--why", "misses effusions")
    assert capsys.readouterr().out.endswith("version 1 is champion again; it was version 2\n")
    assert registry.get_version("champion").number == "1"
    with pytest.raises(PromotionRefusedError, match=r"by ben \(misses effusions\), .* named by --version 2$"):
        call(monkeypatch, promote.main)
    call(monkeypatch, promote.main, "--version", "2", "--who", "ann", "--why", "reread")
    capsys.readouterr()
    call(monkeypatch, history.main, "--csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["kind"], row["before"], row["after"], row["who"]) for row in rows] == [
        ("promote", "", "1", "ann"),
        ("promote", "1", "2", "ann"),
        ("rollback", "2", "1", "ben"),
        ("promote", "1", "2", "ann"),
    ]


def test_rollback_without_a_champion_before_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main)
    with pytest.raises(RegistryError) as caught:
        call(monkeypatch, rollback.main)
    assert str(caught.value) == (
        "there is no champion to go back to; `python -m tasks.history` shows what was champion"
    )
    assert registry.get_version("champion").number == "1"


def test_history_is_a_table_and_notices_an_alias_moved_past_the_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    call(monkeypatch, history.main)
    assert capsys.readouterr().out == "no version was champion yet; `python -m tasks.promote` asks the gate\n"
    for seed in (1, 2):
        write_model(seed=seed)
        register()
    call(monkeypatch, promote.main, "--version", "1", "--who", "ann", "--why", "first")
    capsys.readouterr()
    call(monkeypatch, history.main)
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["time", "(UTC)", "move", "version", "before", "who", "why"]
    assert row.split()[1:] == ["promote", "1", "-", "ann", "first"]
    tracking_store.client().set_registered_model_alias(registry.MODEL, "champion", "2")
    call(monkeypatch, history.main)
    assert any("the alias champion is on version 2, the record says 1" in message for message in caplog.messages)
