"""search.yaml, the history of trials across processes that were killed, and the page."""

import csv
import logging
from pathlib import Path
from typing import Any

import pytest

from cxr.common.errors import ParamsError
from cxr.study.search import STARTUP_TRIALS, History, Range, Search, epoch_of, read_search
from cxr.study.search_page import PAGE, TABLE, write_results
from cxr.training.results import Epoch
from flows.trials.trial import DECIDING_SECTIONS
from tasks.train import _Progress
from tests.support.project import PROJECT

SPEC: dict[str, Any] = {
    "name": "small",
    "trials": 4,
    "set": {"train.epochs": 3},
    "parameters": {
        "train.weight_decay": {"low": 1e-4, "high": 1e-1, "log": True},
        "train.warmup_epochs": {"low": 0, "high": 2},
        "train.class_balance": {"choices": ["none", "weights"]},
    },
}


def open_history(folder: Path, **changes: Any) -> History:
    search = Search.model_validate(SPEC | changes)
    storage = folder / "search.db"
    return History(search, params=PROJECT / "params.yaml", deciding=DECIDING_SECTIONS, storage=storage)


def run_one(history: History, *, macro_f1: float) -> dict[str, Any]:
    trial = history.ask()
    assert trial is not None
    history.complete(trial, {"run_id": f"{trial.number:032x}", "epochs_run": 3, "best_validation_macro_f1": macro_f1})
    return dict(trial.params)


def test_a_search_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    history = open_history(whole)
    expected = [run_one(history, macro_f1=0.5 + number / 10) for number in range(4)]
    assert history.ask() is None

    first = run_one(open_history(killed), macro_f1=0.5)
    interrupted = open_history(killed).ask()  # and its process is gone
    assert interrupted is not None
    history = open_history(killed)
    history.run_interrupted_again()
    rest = [run_one(history, macro_f1=0.6 + number / 10) for number in range(3)]
    assert [first, *rest] == expected
    assert rest[0] == interrupted.params
    assert history.ask() is None
    assert [one.macro_f1 for one in history.tried] == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_a_look_at_the_history_leaves_the_running_trial_alone(tmp_path: Path) -> None:
    history = open_history(tmp_path)
    trial = history.ask()
    assert trial is not None
    assert open_history(tmp_path).tried == []
    history.complete(trial, {"run_id": "1", "epochs_run": 3, "best_validation_macro_f1": 0.5})
    assert [one.state for one in open_history(tmp_path).tried] == ["complete"]


def test_another_value_of_any_deciding_parameter_starts_another_history(tmp_path: Path) -> None:
    run_one(open_history(tmp_path), macro_f1=0.5)
    assert len(open_history(tmp_path, trials=9).tried) == 1
    assert open_history(tmp_path, set={"train.epochs": 4}).tried == []


def test_a_training_that_is_worse_than_the_others_is_stopped_and_a_failed_one_counts(tmp_path: Path) -> None:
    history = open_history(tmp_path, trials=STARTUP_TRIALS + 2)
    for number in range(STARTUP_TRIALS):
        trial = history.ask()
        assert trial is not None
        for step in (1, 2, 3):
            trial.report(0.8, step=step)
            assert not trial.should_prune()
        history.complete(trial, {"run_id": str(number), "epochs_run": 3, "best_validation_macro_f1": 0.8})
    bad = history.ask()
    assert bad is not None
    bad.report(0.2, step=1)
    bad.report(0.3, step=2)
    assert bad.should_prune()
    history.prune(bad)
    unlucky = history.ask()
    assert unlucky is not None
    history.fail(unlucky, "out of memory")
    assert history.ask() is None
    *_, pruned, failed = history.tried
    assert (pruned.state, pruned.macro_f1, pruned.epochs) == ("pruned", 0.3, 2)
    assert (failed.state, failed.macro_f1, failed.message) == ("failed", None, "out of memory")
    write_results(history.search, history.tried, tmp_path / "reports")
    with (tmp_path / "reports" / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete"] * STARTUP_TRIALS + ["pruned", "failed"]
    assert float(rows[0]["train.weight_decay"]) == history.tried[0].values["train.weight_decay"]
    page = (tmp_path / "reports" / PAGE).read_text()
    assert "with 5 seeds or more" in page
    assert "name: small_trial0" in page
    assert "out of memory" in page


def test_the_line_of_an_epoch_is_what_train_prints(caplog: pytest.LogCaptureFixture) -> None:
    class Silent:
        def log_epoch(self, *_: object, **__: object) -> None: ...

    numbers = dict.fromkeys(Epoch.__annotations__, 0.25) | {"epoch": 7, "validation_macro_f1": 0.8125}
    with caplog.at_level(logging.INFO, "cxr.train"):
        _Progress(Silent(), images=1, epochs=12).on_epoch(Epoch(**numbers))  # type: ignore[arg-type]
    assert epoch_of(f"INFO {caplog.messages[-1]}") == (7, 0.812)
    assert epoch_of("train: kept epoch 7") is None


def test_the_search_of_this_project_fits_its_parameters(tmp_path: Path) -> None:
    search = read_search(PROJECT / "search.yaml")
    history = History(search, params=PROJECT / "params.yaml", deciding=DECIDING_SECTIONS, storage=tmp_path / "s.db")
    assert history.ask() is not None


def test_a_history_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "search.db").write_text("not a database, and long enough to be read as one" * 100)
    with pytest.raises(ParamsError, match=r"search\.db cannot be used as history of searches: .*; move it away"):
        open_history(tmp_path)


@pytest.mark.parametrize("seed", [-1, 5_000_000])
def test_a_seed_that_the_sampler_cannot_take_is_rejected(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        Search(name="a", trials=1, seed=seed, parameters={"train.epochs": Range(low=1, high=9)})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"split.protocol": {"choices": ["paper", "patient"]}}, r"split\.protocol is no parameter to search"),
        ({"train.seed": {"low": 1, "high": 9}}, r"train\.seed is no parameter to search"),
        ({"train.epoch": {"low": 1, "high": 9}}, r"no parameter train\.epoch"),
        ({"train.weight_decay": {"low": 2, "high": 1}}, "low"),
        ({"train.weight_decay": {"low": 0.0, "high": 1.0, "log": True}}, "log"),
        ({"train.label_smoothing": {"low": 0.0, "high": 9.0}}, r"train\.label_smoothing"),  # 9 is out of range
        ({}, "parameters"),
    ],
)
def test_a_search_that_makes_no_sense_is_named(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ParamsError, ValueError), match=message):
        open_history(tmp_path, parameters=parameters)
