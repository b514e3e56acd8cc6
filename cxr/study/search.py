"""search.yaml: which parameters a search varies, and the history of its trials, kept by Optuna in mlruns/search.db.

A search sees validation images alone: a trial ends with the stage `train`. Its values come from a tree-structured
Parzen estimator (Bergstra et al. 2011) over the trials so far, seeded anew for each trial, so an interrupted search
continues with the same values. A training that is worse than the median of the others after the same number of epochs
is stopped.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy.exc import SQLAlchemyError

from cxr.common.errors import ParamsError
from cxr.common.params import with_overrides
from cxr.study.spec import Settings, Slug, read_as

SEARCHED_SECTIONS = ("preprocess", "train")
"""Others decide which images are validation images; trials could not be compared."""
METRIC = "best_validation_macro_f1"
"""Of training.json: macro-F1 on the validation images after the best epoch."""
STARTUP_TRIALS = 5
"""Drawn at random, and never stopped early."""
_EPOCH = re.compile(r"\bepoch +(\d+)/\d+ .* macro-F1 (\d\.\d+)")
_ERROR, _RUN, _EPOCHS = "error", "run_id", "epochs"


class Range(BaseModel):
    """Numbers from `low` to `high`; whole ones where both are; `log`: as many of each order of magnitude."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    low: int | float
    high: int | float
    log: bool = False

    def distribution(self) -> BaseDistribution:
        """Return it as Optuna's."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def ends(self) -> tuple[Any, Any]:
        """Return the lowest and the highest value."""
        return self.low, self.high


class Choices(BaseModel):
    """One of several values."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    choices: Annotated[list[bool | int | float | str], Field(min_length=2)]

    def distribution(self) -> BaseDistribution:
        """Return it as Optuna's."""
        return CategoricalDistribution(self.choices)

    def ends(self) -> tuple[Any, Any]:
        """Return the first and the last choice."""
        return self.choices[0], self.choices[-1]


class Search(BaseModel):
    """The content of search.yaml; `set` overrides params.yaml in every trial."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Slug
    trials: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, le=1_000_000)] = 0  # `ask` makes a seed of each trial from it, below 2**32
    set: Settings = {}
    parameters: Annotated[dict[str, Range | Choices], Field(min_length=1)]

    @field_validator("parameters")
    @classmethod
    def _can_be_compared(cls, parameters: dict[str, Range | Choices]) -> dict[str, Range | Choices]:
        for name, values in parameters.items():
            if name.partition(".")[0] not in SEARCHED_SECTIONS or name == "train.seed":
                raise ValueError(
                    f"{name} is no parameter to search; expected one of preprocess or train, other than train.seed"
                )
            values.distribution()  # raises ValueError where it is empty
        return parameters

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a trial with these values overrides."""
        return {**self.set, **values}


def read_search(path: Path) -> Search:
    """Read search.yaml.

    Raises:
        ParamsError: it is missing, not YAML, or invalid; the message names the position of each mistake.
    """
    return read_as(Search, path)


def epoch_of(line: str) -> tuple[int, float] | None:
    """Return epoch and validation macro-F1 of a line that `train` prints at the end of an epoch, None for others."""
    found = _EPOCH.search(line)
    return (int(found[1]), float(found[2])) if found else None


@dataclass(frozen=True)
class Tried:
    """A trial that has ended.

    state         complete, pruned or failed
    macro_f1      on the validation images: of the best epoch, or of the last one before it was stopped; None if failed
    epochs        that were trained
    message       why it failed
    """

    number: int
    state: str
    macro_f1: float | None
    epochs: int
    values: Mapping[str, Any]
    run_id: str
    message: str


class History:
    """The trials of a search with unchanged settings; one process at a time runs trials of it, others may read it."""

    def __init__(self, search: Search, *, params: Path, deciding: tuple[str, ...], storage: Path) -> None:
        """Open or start the history; a changed search, or other parameters, start a new one.

        Args:
            search: from read_search.
            params: the parameter file that every trial overrides.
            deciding: its sections that decide the result of a trial.
            storage: SQLite file.

        Raises:
            ParamsError: `set` or a searched parameter does not fit `params`, or `storage` is something else.
        """
        self.search = search
        self._distributions = {name: values.distribution() for name, values in search.parameters.items()}
        for end in (0, 1):  # a value that does not fit is found before the first training
            values = {name: one.ends()[end] for name, one in search.parameters.items()}
            merged = with_overrides(params, search.settings(values))
        parts = [search.model_dump_json(exclude={"trials"}), *(merged.section(s).model_dump_json() for s in deciding)]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        self._study = _open_study(storage, f"{search.name}-{digest}")

    def run_interrupted_again(self) -> None:
        """Let trials of a killed process come next, with the same values; only where no other process runs trials."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)
            self._study.enqueue_trial(trial.params)

    @property
    def tried(self) -> list[Tried]:
        """The trials that have ended, the best first; interrupted ones are run again and not among them."""
        ended = [_tried(trial) for trial in self._study.get_trials(deepcopy=False) if _has_ended(trial)]
        order = {"complete": 0, "pruned": 1, "failed": 2}
        return sorted(ended, key=lambda one: (order[one.state], -(one.macro_f1 or 0.0), one.number))

    def ask(self) -> Trial | None:
        """Return the next trial, None when all have ended."""
        ended = len(self.tried)
        if ended >= self.search.trials:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                seed=self.search.seed * 1000 + ended, n_startup_trials=STARTUP_TRIALS, multivariate=True
            )
        return self._study.ask(self._distributions)

    def complete(self, trial: Trial, training: Mapping[str, Any]) -> None:
        """Record a finished training, given its training.json."""
        trial.set_user_attr(_RUN, training["run_id"])
        trial.set_user_attr(_EPOCHS, training["epochs_run"])
        self._study.tell(trial, training[METRIC])

    def prune(self, trial: Trial) -> None:
        """Record that a training was stopped."""
        self._study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: Trial, message: str) -> None:
        """Record that a training failed."""
        trial.set_user_attr(_ERROR, message)
        self._study.tell(trial, state=TrialState.FAIL)


def _open_study(storage: Path, name: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(
            storage=f"sqlite:///{storage}",
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1),
        )
    except (OptunaError, SQLAlchemyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ParamsError(
            f"{storage} cannot be used as history of searches: {reason}; move it away, and a new one is made"
        ) from error


def _has_ended(trial: FrozenTrial) -> bool:
    return trial.state in {TrialState.COMPLETE, TrialState.PRUNED} or _ERROR in trial.user_attrs


def _tried(trial: FrozenTrial) -> Tried:
    seen = trial.intermediate_values
    last = seen[max(seen)] if seen else None
    return Tried(
        number=trial.number,
        state={TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed"),
        macro_f1=trial.value if trial.state == TrialState.COMPLETE else last,
        epochs=trial.user_attrs.get(_EPOCHS, len(seen)),
        values=trial.params,
        run_id=trial.user_attrs.get(_RUN, ""),
        message=trial.user_attrs.get(_ERROR, ""),
    )
