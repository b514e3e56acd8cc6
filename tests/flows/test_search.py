"""A search through DVC and Prefect: validation images alone, a bad training stopped, a killed search continued."""

import csv
import subprocess
from pathlib import Path

import pytest

from cxr.registry import runs
from cxr.registry.tracking_store import FOLDER_VARIABLE
from cxr.study.search import STARTUP_TRIALS, Search
from flows.search import REPORTS, open_history, search_flow
from tests.support.projects.study_runs import ONE_STAGE

TRAIN = """
import json, pathlib, time
from cxr.registry import runs
from cxr.common.params import read_params
params = read_params(pathlib.Path("params.yaml"))
good = max(0.0, 0.9 - params.train.weight_decay)
checkpoint = params.paths.checkpoints / str(params.train.weight_decay)
checkpoint.mkdir(parents=True, exist_ok=True)
run = runs.start_run(run_id=None, name="tiny", tags={})
for epoch in (1, 2, 3):
    print(f"epoch  {epoch}/3  loss 0.100  accuracy 0.500  macro-F1 {good:.3f}  1.0 images/s", flush=True)
if params.train.weight_decay > 1:
    time.sleep(600)  # it has to be stopped
checkpoint.rmdir()
params.paths.model.mkdir(parents=True, exist_ok=True)
training = {"run_id": run, "epochs_run": 3, "best_validation_macro_f1": good}
(params.paths.model / "training.json").write_text(json.dumps(training))
"""


@pytest.fixture
def project(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny project, whose training is as good as its weight decay is small."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tiny / "mlruns"))  # MLflow keeps a store by its address open
    ignored = "/.runs/\n/models/\n/mlruns/\n/reports/\n/.checkpoints/\n__pycache__/\n"
    for name, text in {"dvc.yaml": ONE_STAGE, "step.py": TRAIN, ".gitignore": ignored}.items():
        (tiny / name).write_text(text)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["add", "--all"], [*identity, "commit", "-qm", "one stage"]):
        subprocess.run(["git", *command], cwd=tiny, check=True)
    return tiny


SEARCH = Search.model_validate(
    {"name": "decay", "trials": STARTUP_TRIALS + 2, "parameters": {"train.weight_decay": {"low": 0.0, "high": 2.0}}}
)


@pytest.mark.usefixtures("prefect_server")
def test_a_search_continues_what_was_killed_and_stops_what_falls_behind(project: Path) -> None:
    (project / "mlruns").mkdir()
    history = open_history(SEARCH)
    for number in range(STARTUP_TRIALS):  # as earlier processes ran them
        trial = history.ask()
        assert trial is not None
        for epoch in (1, 2, 3):
            trial.report(0.5, step=epoch)
        history.complete(trial, {"run_id": f"{number:032x}", "epochs_run": 3, "best_validation_macro_f1": 0.5})
    history._study.enqueue_trial({"train.weight_decay": 0.25})
    assert history.ask() is not None  # and then its process was killed
    history._study.enqueue_trial({"train.weight_decay": 2.0})

    ended = search_flow(SEARCH, return_state=True)
    assert ended.is_completed(), ended.message
    best, *_, last = open_history(SEARCH).tried
    assert (best.values, best.macro_f1) == ({"train.weight_decay": 0.25}, 0.65)
    assert runs.run_tags(best.run_id)["search.decay"] == str(best.number)
    assert (last.state, last.values, last.macro_f1) == ("pruned", {"train.weight_decay": 2.0}, 0.0)
    assert list((project / ".runs" / "search-1" / ".checkpoints").iterdir()) == []
    with (project / REPORTS / "decay" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete"] * (STARTUP_TRIALS + 1) + ["pruned"]
    assert f"trial {best.number}: validation macro-F1 0.650" in str(ended.message)
    again = search_flow(SEARCH, return_state=True)
    assert (again.message, len(open_history(SEARCH).tried)) == (ended.message, STARTUP_TRIALS + 2)


@pytest.mark.usefixtures("prefect_server")
def test_values_that_do_not_go_together_fail_one_trial_and_uncommitted_code_ends_the_search(project: Path) -> None:
    parameters = {"train.head": {"choices": ["linear", "svm"]}, "train.members": {"choices": [3, 1]}}
    search = Search.model_validate({"name": "heads", "trials": 2, "parameters": parameters})
    (project / "mlruns").mkdir()
    history = open_history(search)
    history._study.enqueue_trial({"train.head": "svm", "train.members": 3})
    history._study.enqueue_trial({"train.head": "linear", "train.members": 1})
    (project / "step.py").write_text(f"{TRAIN}# half done")

    ended = search_flow(search, return_state=True)
    assert (ended.is_failed(), open_history(search).tried) == (True, [])
    assert str(ended.message).endswith("these changes are not committed: step.py; commit them first")
    (project / "step.py").write_text(TRAIN)
    ended = search_flow(search, return_state=True)
    assert ended.is_completed(), ended.message
    tried = {one.values["train.head"]: one for one in open_history(search).tried}
    assert (tried["svm"].state, tried["linear"].state) == ("failed", "complete")
    assert "head svm requires members 1" in tried["svm"].message
