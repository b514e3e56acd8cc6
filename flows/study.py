"""Run the study: every row of study.yaml that has not been run yet, each with each of its seeds.

    python -m tasks.configure --profile profiles/real.yaml --data ../chest-films    # once: which films
    python -m flows.study --weights resnet50=imagenet --workers 2                   # again after any interruption
    python -m flows.study --list                                                    # what is done, what is not
    python -m tasks.results                                                         # the table, from the tracked runs

A row is a set of parameters on top of params.yaml and of those that its group shares. It runs through DVC in a
worktree of its own in .runs, over the same cache and tracking store. Rows of a group that is `tested` go on to
the test set; of the others only the validation films are ever looked at. A finished row is marked on its
training run, with the digest of its settings, and is not run again until those change; a row that was cut off
goes on from its last epoch.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cxr import tracking
from cxr.command import command_parser, run_command
from cxr.errors import CxrError, ParamsError
from cxr.files import read_json
from cxr.params import read_params
from flows.stages import StageFailedError, child_environment, heal_path_lock, last_words
from flows.supervised import run_supervised
from flows.workspaces import open_workspace, shared_environment
from tasks.configure import read_profile, weights_setting

_GIT = Lock()  # worktrees are made and moved one at a time
Slug = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
Settings = Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})]


class Row(BaseModel):
    """One line of a table: what is set on top of its group's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Slug
    label: str
    set: Settings = {}
    seeds: list[int] | None = None


class Group(BaseModel):
    """One table: rows that share settings; `tested` rows go on to the test set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Slug
    title: str
    text: str
    tested: bool
    seeds: Annotated[list[int], Field(min_length=1)]
    baseline: str | None = None
    seeded: list[str] = ["train.seed"]
    set: Settings = {}
    rows: Annotated[list[Row], Field(min_length=1)]


class Study(BaseModel):
    """The whole of study.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    groups: Annotated[list[Group], Field(min_length=1)]


@dataclass(frozen=True)
class Trial:
    """One row with one seed: what it sets, how far it runs, and the tag that marks it as done."""

    group: str
    row: str
    seed: int
    settings: dict[str, Any]
    stage: str

    @property
    def name(self) -> str:
        """Return the trial's name for people."""
        return f"{self.group}/{self.row}/{self.seed}"

    @property
    def tag(self) -> str:
        """Return the key of the tag on the training's run."""
        return f"study.{self.group}.{self.row}.{self.seed}"

    @property
    def digest(self) -> str:
        """Return a name for these very settings."""
        return hashlib.sha256(json.dumps([self.settings, self.stage], sort_keys=True).encode()).hexdigest()[:16]


def read_study(path: Path) -> Study:
    """Read study.yaml. Raises ParamsError with the place of each mistake."""
    try:
        return Study.model_validate(read_profile(path))
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ParamsError(f"{path}: {places}") from error


def trials(study: Study, *, weights: dict[str, str], chosen: list[str]) -> list[Trial]:
    """Return every trial of the chosen groups or rows (`group` or `group/row`; all when none is chosen).

    Args:
        study: from read_study.
        weights: backbone -> starting weights; a backbone that is not named starts from `none`. A row that sets
            train.weights itself keeps what it says.
        chosen: names, or none for all.

    Raises:
        ParamsError: a chosen name does not exist.
    """
    known = {name for group in study.groups for row in group.rows for name in (group.name, f"{group.name}/{row.name}")}
    if unknown := sorted(set(chosen) - known):
        raise ParamsError(f"the study has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return [trial for group in study.groups for trial in _trials_of(group, weights) if _is_chosen(trial, chosen)]


def _trials_of(group: Group, weights: dict[str, str]) -> list[Trial]:
    """Return the group's trials, first every row with its first seed: a study that is cut off has all rows."""
    stage = "evaluate" if group.tested else "train"
    numbered = [(number, row, seed) for row in group.rows for number, seed in enumerate(row.seeds or group.seeds)]
    return [
        Trial(group.name, row.name, seed, _settings(group, row, seed, weights), stage)
        for _, row, seed in sorted(numbered, key=lambda trial: trial[0])
    ]


def _is_chosen(trial: Trial, chosen: list[str]) -> bool:
    return not chosen or bool({trial.group, f"{trial.group}/{trial.row}"} & set(chosen))


def _settings(group: Group, row: Row, seed: int, weights: dict[str, str]) -> dict[str, Any]:
    settings = {**group.set, **row.set}
    settings |= dict.fromkeys(group.seeded, seed)
    backbone = settings.get("train.backbone", "resnet50")
    return {"train.weights": weights.get(backbone, "none")} | settings


def is_done(trial: Trial) -> bool:
    """Say whether a run of these very settings is marked in the tracking store."""
    return tracking.find_run(trial.tag, trial.digest) is not None


@flow(name="study", validate_parameters=False)
def study_flow(todo: list[Trial], workers: int) -> list[str] | State[Any]:
    """Run the trials, `workers` at a time; what fails does not stop the others and is named at the end."""
    root = Path.cwd()
    workspaces: Queue[str] = Queue()
    for number in range(workers):
        workspaces.put(f"study-{number + 1}")
    submitted = [
        (trial, run_trial.with_options(task_run_name=trial.name).submit(trial, root, workspaces, workers))
        for trial in todo
    ]
    failed = []
    for trial, future in submitted:
        future.wait()
        if not future.state.is_completed():
            failed.append(f"{trial.name}: {future.state.message}")
    return Failed(message="\n".join(failed)) if failed else []


@task(cache_policy=NO_CACHE)
def run_trial(trial: Trial, root: Path, workspaces: "Queue[str]", workers: int) -> State[None]:
    """Run one trial through DVC in a worktree that no other trial is using, and mark it as done."""
    name = workspaces.get()
    try:
        with _GIT:
            workspace = open_workspace(root, run=name, overrides=trial.settings, keep=workers)
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        environment = child_environment({**shared_environment(root), "OMP_NUM_THREADS": threads})
        lines: list[str] = []

        def keep(line: str) -> None:
            lines.append(line)
            get_run_logger().info("%s | %s", trial.name, line)

        heal_path_lock(workspace)
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", trial.stage]
        code = run_supervised(command, folder=workspace, on_line=keep, environment=environment)
        if code != 0:
            return Failed(message=last_words(lines, code))
        training = read_json(workspace / read_params(workspace / "params.yaml").paths.model / "training.json")
        tracking.tag_run(training["run_id"], {trial.tag: trial.digest})
        return Completed(message=f"run {training['run_id'][:8]}")
    except CxrError as error:
        return Failed(message=str(error))
    finally:
        workspaces.put(name)


def _weights(given: list[str]) -> dict[str, str]:
    pairs = {}
    for item in given:
        backbone, equals, source = item.partition("=")
        if not equals:
            raise ParamsError(f"--weights takes backbone=file, such as resnet50=imagenet; got {item!r}")
        pairs[backbone] = weights_setting(source)
    return pairs


def main() -> int:
    """List the study, or run what is missing; the exit code says whether every row ended well."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("rows", nargs="*", metavar="GROUP[/ROW]", help="only these (default: all)")
    parser.add_argument("--study", type=Path, default=Path("study.yaml"), help="(%(default)s)")
    parser.add_argument("--weights", action="append", default=[], metavar="BACKBONE=FILE", help="may be repeated")
    parser.add_argument("--workers", type=int, default=1, help="trials at once, sharing the cores (%(default)s)")
    parser.add_argument("--list", action="store_true", help="say what is done and what is not, run nothing")
    arguments = parser.parse_args()
    every = trials(read_study(arguments.study), weights=_weights(arguments.weights), chosen=arguments.rows)
    done = [trial for trial in every if is_done(trial)]
    if arguments.list:
        for trial in every:
            print(f"{'done' if trial in done else 'to do':<6} {trial.name}")
        return 0
    todo = [trial for trial in every if trial not in done]
    print(f"{len(done)} of {len(every)} trials are done, {len(todo)} to do")
    if not todo:
        return 0
    runner = ThreadPoolTaskRunner(max_workers=arguments.workers)
    ended = study_flow.with_options(task_runner=runner)(todo, arguments.workers, return_state=True)
    if ended.is_failed():
        raise StageFailedError(str(ended.message))
    return 0


if __name__ == "__main__":
    run_command(main)
