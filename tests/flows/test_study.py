"""The study: its trials, each run once, and failures that are named and do not stop the others."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL

from cxr.common.errors import ParamsError
from cxr.common.params import override
from cxr.registry import runs
from cxr.registry.tracked_runs import read_artifacts
from cxr.registry.tracking_store import FOLDER_VARIABLE
from cxr.study.spec import Study, read_study
from flows.study import study_flow
from flows.trials.trial import EVALUATION_ARTIFACTS, Trial, trials
from tasks.configure import read_profile
from tests.support.faults import fault
from tests.support.processes import has_ended, stopped_by
from tests.support.project import PROJECT
from tests.support.projects.study_runs import ONE_STAGE
from tests.support.waiting import wait_for

PARAMS = PROJECT / "params.yaml"
STOPPED = "exit code 143, run the same command again"

TRAIN = """
import json, os, pathlib, time
from cxr.registry import runs
from cxr.common.params import read_params
params = read_params(pathlib.Path("params.yaml"))
if params.train.epochs == 13:
    raise SystemExit("error: thirteen epochs")
if params.train.epochs == 99:
    pathlib.Path("../../pid").write_text(str(os.getpid()))
    time.sleep(600)
run = runs.start_run(run_id=None, name="tiny", tags={"epochs": str(params.train.epochs)})
params.paths.model.mkdir(parents=True, exist_ok=True)
(params.paths.model / "training.json").write_text(json.dumps({"run_id": run}))
runs.finish_run(run, "FINISHED")
"""

EVALUATE = """
import json, pathlib
from cxr.registry import runs
run = json.loads(pathlib.Path("models/trained/training.json").read_text())["run_id"]
pathlib.Path("reports").mkdir(exist_ok=True)
files = [pathlib.Path("reports", name) for name in ("metrics.json", "predictions.csv")]
for file in files:
    file.write_text("{}")
if pathlib.Path("../../away").exists():
    print("the evaluation is not in the tracking store yet, register will record it: it does not answer")
else:
    runs.log_files(run, files, "evaluation")
"""


def group(**changes: Any) -> dict[str, Any]:
    rows = [{"name": "one", "label": "one epoch", "set": {"train.epochs": 1}}, {"name": "plain", "label": "as it is"}]
    return {"name": "short", "title": "t", "text": "t", "tested": False, "seeds": [1, 2], "rows": rows} | changes


def study(*groups: dict[str, Any]) -> Study:
    return Study.model_validate({"groups": list(groups)})


def names(found: list[Trial]) -> list[str]:
    return [trial.name for trial in found]


def test_all_rows_run_with_the_first_seed_before_the_second() -> None:
    found = trials(study(group()), params=PARAMS, weights={}, chosen=[])
    assert names(found) == ["short/one/1", "short/plain/1", "short/one/2", "short/plain/2"]


def test_row_overrides_its_group_and_gets_the_weights_of_its_backbone() -> None:
    rows = [
        {"name": "a", "label": "a", "set": {"train.backbone": "mobilenet_v2", "train.epochs": 2}},
        {"name": "b", "label": "b", "set": {"train.weights": "none"}},
    ]
    shared = {"train.epochs": 5, "split.protocol": "paper"}
    chosen = study(group(rows=rows, seeds=[7], seeded=["split.seed", "train.seed"], set=shared, tested=True))
    first, second = trials(
        chosen, params=PARAMS, weights={"mobilenet_v2": "/w/m.pth", "resnet50": "/w/r.pth"}, chosen=[]
    )
    assert first.settings == {
        "train.weights": "/w/m.pth",
        "train.epochs": 2,
        "split.protocol": "paper",
        "train.backbone": "mobilenet_v2",
        "split.seed": 7,
        "train.seed": 7,
    }
    assert (second.settings["train.weights"], second.stage) == ("none", "evaluate")


def test_row_without_a_backbone_gets_the_weights_of_the_parameter_file(tmp_path: Path) -> None:
    found, weights = [], {"mobilenet_v2": "/w/m.pth", "resnet50": "/w/r.pth"}
    for backbone in ("resnet50", "mobilenet_v2"):
        params = tmp_path / f"{backbone}.yaml"
        params.write_text(PARAMS.read_text())
        override(params, {"train.backbone": backbone})
        found += trials(study(group()), params=params, weights=weights, chosen=[])[:1]
    assert [trial.settings["train.weights"] for trial in found] == ["/w/r.pth", "/w/m.pth"]


def test_a_study_without_workers_is_rejected() -> None:
    command = [sys.executable, "-m", "flows.study", "--list", "--workers", "0"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("--workers: expected a whole number from 1 to 1024, got '0'\n")


def test_weights_of_an_unknown_backbone_are_rejected() -> None:
    """A misspelt name would train its rows from random weights, for hours."""
    command = [sys.executable, "-m", "flows.study", "--list", "--weights", "resent50=none"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == ParamsError.exit_code
    assert done.stderr.startswith("error: --weights knows no backbone resent50; expected alexnet, ")


def test_groups_and_rows_are_selected_by_name_and_unknown_names_rejected() -> None:
    both = study(group(), group(name="long"))
    assert names(trials(both, params=PARAMS, weights={}, chosen=["long/one"])) == ["long/one/1", "long/one/2"]
    assert len(trials(both, params=PARAMS, weights={}, chosen=["long"])) == 4
    assert names(trials(both, params=PARAMS, weights={}, chosen=["short/plain/2"])) == ["short/plain/2"]
    with pytest.raises(ParamsError, match=r"no lang; .* short, long$"):
        trials(both, params=PARAMS, weights={}, chosen=["lang"])


def test_digest_changes_with_a_setting() -> None:
    first, other = (
        trials(study(group(set={"train.batch_size": size})), params=PARAMS, weights={}, chosen=["short/one"])[0]
        for size in (8, 16)
    )
    assert first.tag == other.tag == "study.short.one.1"
    assert first.digest != other.digest


def test_digest_changes_with_the_parameter_file(tmp_path: Path) -> None:
    other = tmp_path / "params.yaml"
    other.write_text(PARAMS.read_text())
    override(other, {"train.weight_decay": 0.123})
    first, second = (trials(study(group()), params=path, weights={}, chosen=["short"])[0] for path in (PARAMS, other))
    assert first.digest != second.digest


def test_row_with_an_unknown_parameter_is_named() -> None:
    rows = [{"name": "typo", "label": "l", "set": {"train.epoch": 1}}]
    with pytest.raises(ParamsError, match=r"short/typo .* train\.epoch"):
        trials(study(group(rows=rows)), params=PARAMS, weights={}, chosen=[])


def test_study_of_this_project_is_valid_with_the_real_profile(tmp_path: Path) -> None:
    real = tmp_path / "params.yaml"
    real.write_text(PARAMS.read_text())
    override(real, read_profile(PROJECT / "profiles" / "real.yaml"))
    found = trials(read_study(PROJECT / "study.yaml"), params=real, weights={}, chosen=[])
    assert len({trial.tag for trial in found}) == len(found)


@pytest.fixture
def small(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny project with one stage that starts a run."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tiny / "mlruns"))  # MLflow keeps a connection for each relative address
    (tiny / "dvc.yaml").write_text(ONE_STAGE)
    (tiny / "step.py").write_text(TRAIN)
    (tiny / ".gitignore").write_text("/.runs/\n/models/\n/mlruns/\n/pid\n__pycache__/\n")
    commit(tiny)
    return tiny


def commit(root: Path) -> None:
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "other stages"]
    subprocess.run(command, cwd=root, check=True)


@pytest.mark.usefixtures("prefect_server")
def test_trials_run_once_and_failed_ones_are_named(small: Path) -> None:
    rows = [
        {"name": "unlucky", "label": "fails", "set": {"train.epochs": 13}},
        {"name": "two", "label": "two epochs", "set": {"train.epochs": 2}},
        {"name": "twin", "label": "two epochs, by another name", "set": {"train.epochs": 2}},
    ]
    unlucky, two, twin = trials(study(group(rows=rows, seeds=[1])), params=PARAMS, weights={}, chosen=[])
    ended = study_flow([unlucky, two], 1, return_state=True)
    assert ended.is_failed()
    assert ended.message == "short/unlucky/1: thirteen epochs"
    assert (unlucky.is_done(), two.is_done(), twin.is_done()) == (False, True, False)
    run_id = runs.find_run(two.tag, two.digest)
    assert run_id is not None
    assert runs.run_tags(run_id)["epochs"] == "2"
    assert study_flow([twin], 1, return_state=True).is_completed()
    assert runs.find_run(twin.tag, twin.digest) == run_id
    assert subprocess.run(["git", "status", "--porcelain"], cwd=small, capture_output=True, check=True).stdout == b""


@pytest.mark.usefixtures("prefect_server")
@fault("flows.study", "the tracking store is away as a trial is evaluated",
       "the trial is not done until the next run has sent it", "that it did not reach the run")  # fmt: skip
def test_a_trial_is_done_when_its_evaluation_is_in_the_store(small: Path) -> None:
    stage = """
  evaluate:
    cmd: python evaluate.py
    deps: ["${paths.model}"]
    outs: ["${paths.metrics}"]
"""
    (small / "dvc.yaml").write_text(ONE_STAGE + stage)
    (small / "evaluate.py").write_text(EVALUATE)
    (small / ".gitignore").write_text(f"{(small / '.gitignore').read_text()}/reports/\n/away\n")
    commit(small)
    (small / "away").touch()
    (trial,) = trials(study(group(tested=True, seeds=[1])), params=PARAMS, weights={}, chosen=["short/one"])
    ended = study_flow([trial], 1, return_state=True)
    assert (ended.is_failed(), trial.is_done()) == (True, False)
    assert "its evaluation did not reach run" in str(ended.message)
    (small / "away").unlink()
    assert study_flow([trial], 1, return_state=True).is_completed()
    run_id = runs.find_run(trial.tag, trial.digest)
    assert run_id is not None
    assert read_artifacts(run_id, EVALUATION_ARTIFACTS).keys() == set(EVALUATION_ARTIFACTS)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@fault("flows.study", "SIGTERM of the flow", "its trainings end too", STOPPED)
def test_a_stopped_study_ends_at_once_and_its_trainings_with_it(small: Path, number: signal.Signals) -> None:
    rows = [{"name": "long", "label": "never ends", "set": {"train.epochs": 99}}]
    (small / "study.yaml").write_text(json.dumps({"groups": [group(rows=rows, seeds=[1])]}))
    stopped = stopped_by(number, ["-m", "flows.study"], child=small / "pid", api=str(PREFECT_API_URL.value()))
    assert stopped.code == 128 + number
    assert stopped.last_words == b"stopped; run the same command again to continue"
    wait_for(lambda: has_ended(stopped.child))
