"""The rules that keep the project easy to see: one name in four places, one direction, paths and defaults once.

Where this fails after an edit of imports, the message is the list that dvc.yaml should hold.
"""

import importlib
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from cxr import params

PROJECT = Path(__file__).parents[1]
STAGES = ["ingest", "validate", "split", "preprocess", "train", "evaluate", "register"]
PACKAGES = ("flows", "tasks", "cxr")

PLUMBING = {
    "cxr.command",  # command line and exit codes
    "cxr.errors",  # names of errors
    "cxr.params",  # what a value means to DVC is the value, which it watches itself
}
"""Modules that cannot change what a step writes; a stage need not run again for them."""

SIDE_EFFECTS = {"cxr.tracking", "cxr.tracking_store", "cxr.lineage"}
"""Modules that record what happened elsewhere; only `register`, which is about that, depends on them."""


@cache
def dvc_yaml() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())
    return loaded


@cache
def imports() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def code_of(stage: str) -> set[str]:
    """Return the files that a stage's result depends on, from the imports, lazy ones included."""
    aside = PLUMBING | set(PACKAGES) | (SIDE_EFFECTS if stage != "register" else set())
    found: set[str] = set()
    new = {f"tasks.{stage}"}
    while new:
        found |= new
        new = {target for module in new for target in imports().find_modules_directly_imported_by(module)}
        new -= found | aside
    files = {f"{module.replace('.', '/')}.py" for module in found}
    return files | templates_named_in(files)


def templates_named_in(files: set[str]) -> set[str]:
    """Return the templates whose names occur in these files or in templates that do."""
    text = "".join((PROJECT / file).read_text() for file in sorted(files))
    named = {f"cxr/{path.name}" for path in (PROJECT / "cxr").glob("*.j2") if path.name in text} - files
    return named | templates_named_in(named | files) if named else set()


def test_the_seven_stages_stand_in_dvc_yaml_in_order() -> None:
    assert list(dvc_yaml()["stages"]) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_one_name_in_four_places(stage: str) -> None:
    assert dvc_yaml()["stages"][stage]["cmd"] == f"python -m tasks.{stage}"
    step = getattr(importlib.import_module(f"tasks.{stage}"), stage)
    assert list(inspect.signature(step).parameters) == ["params", "paths"]
    assert dvc_yaml()["stages"][stage]["params"] == [stage]
    section = params.read_params(PROJECT / "params.yaml").section(stage)
    assert type(section).__name__ == f"{stage.capitalize()}Params"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_imports(stage: str) -> None:
    named = {dependency for dependency in dvc_yaml()["stages"][stage]["deps"] if dependency.endswith((".py", ".j2"))}
    assert sorted(named) == sorted(code_of(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_paths_stand_in_params_yaml_alone(stage: str) -> None:
    declared = dvc_yaml()["stages"][stage]
    data = [path for path in declared["deps"] if not path.startswith(("tasks/", "cxr/"))]
    for path in data + declared["outs"] + declared.get("metrics", []):
        assert re.match(r"\$\{(paths\.\w+|ingest\.watch)\}", path), f"{stage}: {path} is not taken from params.yaml"


def test_every_stage_says_in_one_line_what_it_does() -> None:
    assert all("\n" not in stage["desc"] for stage in dvc_yaml()["stages"].values())


def test_metrics_and_plots_are_declared() -> None:
    assert dvc_yaml()["stages"]["evaluate"]["metrics"] == ["${paths.metrics}"]
    assert all(isinstance(plot, dict) for plot in dvc_yaml()["plots"])


def test_dvc_resolves_every_stage() -> None:
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == STAGES


def test_the_lock_file_is_not_ignored_by_git() -> None:
    assert subprocess.run(["git", "check-ignore", "-q", "dvc.lock"], cwd=PROJECT, check=False).returncode == 1


def test_defaults_stand_in_params_yaml_alone() -> None:
    sections = [value for value in vars(params).values() if inspect.isclass(value) and issubclass(value, BaseModel)]
    with_default = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.is_required()
    ]
    assert with_default == []


def test_sections_are_strict_frozen_and_take_nothing_extra() -> None:
    for section in params.Section.__subclasses__():
        config = section.model_config
        assert (config["strict"], config["frozen"], config["extra"]) == (True, True, "forbid"), section


def test_a_step_never_opens_params_yaml_itself() -> None:
    for stage in STAGES:
        assert "read_params" not in (PROJECT / "tasks" / f"{stage}.py").read_text(), stage


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", sorted(path.stem for path in (PROJECT / "tasks").glob("[a-z]*.py")))
def test_importing_a_task_loads_nothing_heavy(module: str) -> None:
    heavy = "{'torch', 'pandas', 'numpy', 'cv2', 'mlflow', 'great_expectations', 'pydantic', 'sklearn', 'matplotlib'}"
    script = f"import sys, tasks.{module}; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], f"tasks/{module}.py imports these before they are needed"


def test_mlflow_is_imported_at_its_edges_alone() -> None:
    allowed = {"cxr/tracking.py", "cxr/tracking_store.py", "cxr/champions.py", "cxr/registry.py", "cxr/serving.py"}
    importing = {
        str(path.relative_to(PROJECT))
        for package in PACKAGES
        for path in (PROJECT / package).glob("*.py")
        if re.search(r"^\s*(import|from) mlflow\b", path.read_text(), re.MULTILINE)
    }
    assert importing <= allowed
