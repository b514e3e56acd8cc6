"""Promotion, history and rollback as commands, from registered versions to the alias."""

import contextlib
import csv
import io
import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from cxr.common.errors import DataError, ParamsError, PromotionHeldError, PromotionRejectedError, RegistryError
from cxr.common.files import read_json, sha256_of, write_json
from cxr.registry import tracking_store, versions
from cxr.registry.audit_log import Move
from cxr.registry.champion import aliases
from cxr.registry.evaluation_store import store_evaluation, store_external
from cxr.registry.test_set_looks import record_look
from tasks import history, promote, rollback
from tests.support.faults import fault
from tests.support.projects.registry_project import artifacts, call, enter_project, register, write_model


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


RECEIPT = Path("reports/promotion.json")


def commit_everything(root: Path) -> None:
    """Put the project under git, as real images must come from a commit."""
    (root / ".gitignore").write_text("/mlruns/\n/models/\n/reports/\n/data/\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "start"]):
        subprocess.run(["git", *command], cwd=root, check=True)


def test_without_a_challenger_the_command_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match=r"run `./run register` after training and evaluation"):
        call(monkeypatch, promote.main)


def whole_store() -> tuple[list[str], dict[str, str]]:
    """Return every row of the store's database and the digest of every file beside it."""
    folder = Path(os.environ[tracking_store.FOLDER_VARIABLE])
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        rows = list(database.iterdump())
    files = {str(path): sha256_of(path) for path in folder.rglob("*") if path.is_file() and path.name != "mlflow.db"}
    return rows, files


def test_a_dry_run_shows_the_checks_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_model()
    register()
    before = whole_store()
    call(monkeypatch, promote.main, "--dry-run")
    out = capsys.readouterr().out
    assert out.startswith("PROMOTE: version 1, floors only, no champion yet\n")
    assert re.search(r"^  passed  accuracy +1\.000; required: at least \d", out, re.MULTILINE)
    assert "dry run: version 1 would become champion; nothing was changed" in caplog.messages
    call(monkeypatch, promote.main, "--dry-run", "--json")
    assert json.loads(capsys.readouterr().out)["decision"] == "PROMOTE"
    assert whole_store() == before
    assert not RECEIPT.exists()


def test_the_gate_shows_external_tests_and_the_models_measured_on_the_test_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model()
    version = register()
    result = {
        "classes": ["normal", "pneumonia"],
        "accuracy": 0.9,
        "n_test": 40,
        "set": {"name": "clinic-a", "n_images": 50},
        "without_training_duplicates": {"classes": ["normal", "pneumonia"], "accuracy": 0.75, "n_test": 30},
    }
    write_json(Path("external.json"), result)
    store_external(version, [Path("external.json")], set_sha256="ab" * 32)
    test_set = read_json(Path("data/split/split.json"))["test_set_sha256"]
    for weights in ("1" * 64, "2" * 64, "1" * 64):
        record_look(test_set, weights)
    call(monkeypatch, promote.main, "--dry-run")
    out = capsys.readouterr().out
    assert "  external test clinic-a: 30 images, normal/pneumonia: accuracy 0.750" in out
    assert "  models measured on this test set so far: 2" in out
    (stored,) = [path for path in artifacts() if path.name == "external.json"]
    stored.write_text("{}")
    call(monkeypatch, promote.main, "--dry-run")
    assert "external test abababababab: lost, or changed since it was stored" in capsys.readouterr().out


def test_a_pass_moves_the_alias_and_writes_verdict_receipt_and_audit_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main, "--approved-by", "ann", "--reason", "first model")
    assert capsys.readouterr().out.endswith("version 1 is champion\n")
    champion = versions.get_version("champion")
    receipt = read_json(RECEIPT)
    assert (receipt["decision"], receipt["version"], receipt["champion"]) == ("PROMOTE", "1", None)
    assert {check["name"]: check["outcome"] for check in receipt["reasons"]}["accuracy"] == "passed"
    assert receipt["approved_by_a_person"] is False
    assert receipt["evaluation"]["version"]["recall"] == {"normal": 1.0, "viral": 1.0, "bacterial": 1.0}
    assert champion.tags["promotion_decision"] == "PROMOTE"
    assert [(move.after, move.approved_by, move.reason) for move in aliases.history()] == [("1", "ann", "first model")]

    RECEIPT.unlink()
    call(monkeypatch, promote.main)
    assert capsys.readouterr().out == "version 1 is champion already; nothing to do\n"
    assert read_json(RECEIPT) == receipt
    assert len(aliases.history()) == 1


def test_a_worse_viral_recall_is_rejected_and_nobody_may_overrule_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main)
    write_model(seed=2, wrong=5, of_class="viral")
    register()
    for more in ([], ["--approve-held", "--approved-by", "ann", "--reason", "I like it"]):
        with pytest.raises(PromotionRejectedError) as caught:
            call(monkeypatch, promote.main, *more)
        assert "version 1 stays champion" in str(caught.value)
        assert "recall of viral against the champion: 0.500" in str(caught.value)
    assert "FAILED  recall of viral against the champion" in capsys.readouterr().out
    assert versions.get_version("champion").number == "1"
    assert versions.get_version("2").tags["promotion_decision"] == "REJECT"
    assert read_json(RECEIPT)["decision"] == "REJECT"


@fault(
    "promote",
    "the evaluation artifacts of a version are lost",
    "held, the champion stays",
    "exit code 11 and what is missing",
)
def test_lost_evaluation_artifacts_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    version = register()
    tracking_store.client().delete_run(version.run_id)
    with pytest.raises(PromotionHeldError, match=r"evaluation artifacts: metrics\.json is missing"):
        call(monkeypatch, promote.main)
    assert versions.get_version("1").tags["promotion_decision"] == "HOLD"


@fault("promote", "the store has lost the model's files", "held, the champion stays", "exit code 11")
def test_a_model_that_the_store_has_lost_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    register()
    next(path for path in artifacts() if path.name == "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(PromotionHeldError, match=r"stored model: version 1 of .* changed"):
        call(monkeypatch, promote.main)


def test_another_test_set_holds_until_the_champion_is_measured_on_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main)
    write_model(seed=2, images=33)
    challenger = register()
    with pytest.raises(PromotionHeldError, match=r"test set: \w{12}, .*run reevaluate"):
        call(monkeypatch, promote.main)
    champion, test_set = versions.get_version("champion"), challenger.tags["test_set_sha256"]
    folder = tmp_path / "again"
    folder.mkdir()
    shutil.copy2("reports/metrics.json", folder)
    shutil.copy2("reports/evaluation/predictions.csv", folder)
    tags = store_evaluation(champion.run_id, sorted(folder.iterdir()), test_set_sha256=test_set)
    versions.tag_version(champion.number, tags)
    call(monkeypatch, promote.main)
    assert versions.get_version("champion").number == "2"


def test_a_person_may_overrule_a_hold_and_the_audit_log_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main, "--approve-held", "--approved-by", "ann", "--reason", "first")
    write_model(seed=2, images=33)
    register()
    with pytest.raises(ParamsError, match="--reason"):
        call(monkeypatch, promote.main, "--approve-held", "--approved-by", "ben")
    call(monkeypatch, promote.main, "--approve-held", "--approved-by", "ben", "--reason", "read all 33 images")
    assert versions.get_version("champion").number == "2"
    first, second = aliases.history()
    assert first.overruled == ""
    assert (second.approved_by, second.reason) == ("ben", "read all 33 images")
    assert second.overruled.startswith("test set: ")
    receipt = read_json(RECEIPT)
    assert (receipt["decision"], receipt["approved_by_a_person"]) == ("HOLD", True)
    capsys.readouterr()
    call(monkeypatch, history.main)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "read all 33 images [overruled by ben: test set: " in last


def test_a_move_that_was_cut_off_is_finished_before_the_gate_is_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model()
    register()
    client, claimed = (
        tracking_store.client(),
        Move(1, "2026-01-01T00:00:00+00:00", "promote", "", "1", "ann", "cut", ""),
    )
    client.create_experiment("chest-xray-pneumonia audit log 000001", tags={"entry": claimed.to_line()})
    begun = "entry 1 of the audit log, version 1 as champion, was cut off"
    call(monkeypatch, promote.main, "--dry-run")
    assert any(message.startswith(begun) for message in caplog.messages)
    call(monkeypatch, history.main)
    assert any(message.startswith("entry 1, version 1 as champion, was cut off") for message in caplog.messages)
    assert versions.champion() is None
    capsys.readouterr()
    call(monkeypatch, promote.main)
    assert capsys.readouterr().out == "version 1 is champion already; nothing to do\n"
    assert aliases.history() == [claimed]


def test_a_synthetic_champion_is_replaced_by_a_model_of_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main)
    commit_everything(Path())
    write_model(seed=2, images=33, wrong=3, synthetic=False)
    register()
    call(monkeypatch, promote.main)
    assert versions.get_version("champion").number == "2"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1"}'])
@fault("promote", "registration.json of this folder is damaged", "nothing is changed",
       "exit code 5, the file and the stage to run again")  # fmt: skip
def test_a_damaged_receipt_is_one_line(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    register()
    Path("reports/registration.json").write_text(content)
    with pytest.raises(DataError, match=r"registration\.json is damaged: .* run `./run dvc repro -f -s register`$"):
        call(monkeypatch, promote.main)
    assert versions.champion() is None


@pytest.mark.parametrize("content", ["{", "7", "[]", '{"evaluation": 7}'])
@fault("promote", "somebody changed the gate's verdict on the champion's page", "the version stays champion",
       "exit code 9, the tag to delete")  # fmt: skip
def test_a_damaged_verdict_of_the_champion_is_one_line(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main, "--approved-by", "ann", "--reason", "first model")
    RECEIPT.unlink()
    versions.tag_version("1", {"promotion": content})
    with pytest.raises(RegistryError, match="the tag `promotion` of version 1 is no verdict of the gate"):
        call(monkeypatch, promote.main)
    assert not RECEIPT.exists()
    assert versions.champion() is not None


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


def test_the_gate_does_not_undo_a_rollback_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        write_model(seed=seed)
        register()
        call(monkeypatch, promote.main, "--approved-by", "ann")
    call(monkeypatch, rollback.main, "--approved-by", "ben", "--reason", "misses effusions")
    assert capsys.readouterr().out.endswith("version 1 is champion again; it was version 2\n")
    assert versions.get_version("champion").number == "1"
    for named in ([], ["--version", "2"]):
        with pytest.raises(PromotionHeldError, match=r"audit log: rolled back on .* by ben \(misses effusions\)"):
            call(monkeypatch, promote.main, *named)
    call(monkeypatch, promote.main, "--approve-held", "--approved-by", "ann", "--reason", "reread")
    capsys.readouterr()
    call(monkeypatch, history.main, "--csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["kind"], row["before"], row["after"], row["approved_by"]) for row in rows] == [
        ("promote", "", "1", "ann"),
        ("promote", "1", "2", "ann"),
        ("rollback", "2", "1", "ben"),
        ("promote", "1", "2", "ann"),
    ]


def test_rollback_without_a_champion_before_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    register()
    call(monkeypatch, promote.main)
    with pytest.raises(RegistryError, match="no champion to go back to"):
        call(monkeypatch, rollback.main)
    assert versions.get_version("champion").number == "1"


def test_history_is_a_table_and_notices_an_alias_moved_past_the_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    call(monkeypatch, history.main)
    assert capsys.readouterr().out == "no version was champion yet; `./run promote` asks the gate\n"
    for seed in (1, 2):
        write_model(seed=seed)
        register()
    call(monkeypatch, promote.main, "--version", "1", "--approved-by", "ann", "--reason", "first")
    capsys.readouterr()
    call(monkeypatch, history.main)
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["time", "(UTC)", "move", "version", "before", "approved", "by", "reason"]
    assert row.split()[1:] == ["promote", "1", "-", "ann", "first"]
    tracking_store.client().set_registered_model_alias(versions.MODEL, "champion", "2")
    call(monkeypatch, history.main)
    assert any("the audit log says version 1" in message for message in caplog.messages)


def set_by_hand(number: str) -> None:
    tracking_store.client().set_registered_model_alias(versions.MODEL, "champion", number)


@pytest.fixture
def rejected_by_hand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Version 1 is the recorded champion; version 2, which the gate rejected, was set as champion by hand."""
    write_model()
    register()
    call(monkeypatch, promote.main)
    write_model(seed=2, wrong=5, of_class="viral")
    register()
    with pytest.raises(PromotionRejectedError):
        call(monkeypatch, promote.main)
    set_by_hand("2")
    capsys.readouterr()


@pytest.mark.usefixtures("rejected_by_hand")
def test_promotion_judges_a_champion_set_by_hand_and_puts_the_recorded_one_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PromotionRejectedError, match="version 1 stays champion"):
        call(monkeypatch, promote.main, "--dry-run", "--json")
    assert json.loads(capsys.readouterr().out)["set_by_hand"] == "2"
    assert versions.get_version("champion").number == "2"  # a dry run changes nothing
    with pytest.raises(PromotionRejectedError):
        call(monkeypatch, promote.main, "--approved-by", "ben")
    assert versions.get_version("champion").number == "1"
    last = aliases.history()[-1]
    assert (last.kind, last.before, last.after, last.found, last.approved_by) == ("restore", "1", "1", "2", "ben")
    assert "version 2" in last.reason


@pytest.mark.usefixtures("rejected_by_hand")
def test_rollback_puts_the_recorded_champion_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second finds nothing to restore
        call(monkeypatch, rollback.main, "--restore-only", "--approved-by", "ben")
    assert "version 1 is champion again" in capsys.readouterr().out
    assert versions.get_version("champion").number == "1"
    assert [move.kind for move in aliases.history()] == ["promote", "restore"]


@pytest.mark.usefixtures("rejected_by_hand")
def test_a_champion_set_by_hand_is_never_rolled_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(seed=3)
    register()
    call(monkeypatch, promote.main)
    assert (aliases.history()[-1].before, aliases.history()[-1].found) == ("1", "2")
    call(monkeypatch, rollback.main)
    assert versions.get_version("champion").number == "1"


@pytest.mark.usefixtures("rejected_by_hand")
def test_promoting_the_recorded_champion_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, promote.main, "--version", "1")
    assert versions.get_version("champion").number == "1"
    assert aliases.history()[-1].kind == "restore"


def test_a_first_champion_set_by_hand_is_confirmed_by_the_gate_or_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(wrong=8, of_class="viral")
    register()
    set_by_hand("1")
    with pytest.raises(PromotionRejectedError):
        call(monkeypatch, promote.main)
    assert versions.champion() is None
    write_model(seed=2)
    register()
    set_by_hand("2")
    call(monkeypatch, promote.main)
    assert versions.get_version("champion").number == "2"
    assert [(move.kind, move.after, move.found) for move in aliases.history()] == [
        ("restore", "", "1"),
        ("promote", "2", "2"),
    ]
