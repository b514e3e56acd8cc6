"""The rules that keep the project easy to see: one name in four places, one direction, paths and defaults once.

Where this fails after an edit of imports, the message is the list that dvc.yaml should hold.
"""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from cxr.common import params
from cxr.evaluation.headline import HEADLINE_FILE
from tests.support.project import PROJECT

STAGES = ["ingest", "validate", "split", "preprocess", "train", "evaluate", "register"]
PACKAGES = ("flows", "tasks", "cxr")

RESULTS_IN_COMMON = "cxr.common.classes"
"""Of `cxr.common` (command line, parameters, errors, files) this alone can change what a step writes."""

RECORDS = "cxr.registry"
"""What records a run elsewhere; only `register`, which is about that, runs again for an edit of it."""

MOST_MODULES = 24
"""In a folder with more of them a stranger finds nothing."""


@cache
def dvc_yaml() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())
    return loaded


@cache
def imports() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def is_aside(module: str, stage: str) -> bool:
    """Say whether an edit of `module` cannot change what `stage` writes."""
    if module in PACKAGES:
        return True
    if module.startswith(RECORDS):
        return stage != "register"
    return module.startswith("cxr.common") and module != RESULTS_IN_COMMON


def code_of(stage: str) -> set[str]:
    """Return the files that a stage's result depends on, from the imports, lazy ones included."""
    found: set[str] = set()
    new = {f"tasks.{stage}"}
    while new:
        found |= new
        imported = {target for module in new for target in imports().find_modules_directly_imported_by(module)}
        new = {module for module in imported - found if not is_aside(module, stage)}
    return {f"{module.replace('.', '/')}.py" for module in found}


def code_named_by(stage: str) -> set[str]:
    """Return the folders and files of code in dvc.yaml's list."""
    return {name for name in dvc_yaml()["stages"][stage]["deps"] if name.startswith(("tasks/", "cxr/"))}


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
    named, used = code_named_by(stage), code_of(stage)
    covering = {file: {file, *map(str, Path(file).parents)} & named for file in used}
    assert sorted(file for file, names in covering.items() if not names) == [], "imported and not in dvc.yaml"
    assert sorted(named - set().union(*covering.values())) == [], "in dvc.yaml and not imported"


def test_an_import_that_dvc_yaml_does_not_name_is_noticed(tmp_path: Path) -> None:
    for name in ("cxr", "tasks", "flows", "tests", "dvc.yaml", "params.yaml", "pyproject.toml"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, tmp_path / name)
    with (tmp_path / "cxr" / "training" / "loop.py").open("a") as planted:
        planted.write("\n\ndef _planted() -> None:\n    import cxr.dicom.pixels\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/test_architecture.py",
        "-k",
        "code_it_imports",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    failed = re.findall(r"FAILED .*\[(\w+)\]", done.stdout)
    assert failed == ["train"], done.stdout


def test_an_edit_of_the_dicom_reader_does_not_train_again() -> None:
    assert not [file for file in code_of("train") if file.startswith("cxr/dicom/")]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_holds_more_modules_than_a_stranger_can_oversee(package: str) -> None:
    modules = [path for path in (PROJECT / package).rglob("*.py") if path.name != "__init__.py"]
    counts = Counter(str(path.parent.relative_to(PROJECT)) for path in modules)
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("stage", STAGES)
def test_paths_stand_in_params_yaml_alone(stage: str) -> None:
    declared = dvc_yaml()["stages"][stage]
    data = [path for path in declared["deps"] if not path.startswith(("tasks/", "cxr/"))]
    for path in data + declared["outs"]:
        assert re.match(r"\$\{(paths\.\w+|ingest\.watch)\}", path), f"{stage}: {path} is not taken from params.yaml"


def test_every_stage_says_in_one_line_what_it_does() -> None:
    assert all("\n" not in stage["desc"] for stage in dvc_yaml()["stages"].values())


def test_metrics_and_plots_are_declared() -> None:
    assert "${paths.metrics}" in dvc_yaml()["stages"]["evaluate"]["outs"]
    assert dvc_yaml()["metrics"] == [f"${{paths.evaluation}}/{HEADLINE_FILE}"]
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
def test_help_loads_nothing_heavy(module: str) -> None:
    heavy = "{'torch', 'pandas', 'numpy', 'cv2', 'mlflow', 'great_expectations', 'pydantic', 'sklearn', 'matplotlib'}"
    script = (
        "import atexit, runpy, sys; sys.argv = ['command', '--help']\n"
        f"atexit.register(lambda: print('loaded:', *sorted({heavy} & sys.modules.keys())))\n"
        f"runpy.run_module('tasks.{module}', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:", f"tasks/{module}.py imports these before --help is answered"
