"""infra/setup.sh on a project of three tiny packages: which of them each choice installs, and what happens offline."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grimp
import pytest
from packaging.requirements import Requirement

from tests.support.project import PROJECT

PYPROJECT = """
[project]
name = "tiny"
version = "1"
requires-python = ">=3.11"
dependencies = ["torch", "torchvision"]

[dependency-groups]
dev = ["tool"]
cluster = ["ray"]
predict = ["answerer"]

[tool.uv]
package = false

[[tool.uv.index]]
url = "pypi"
default = true
"""


def wheel(index: Path, name: str, version: str, *requires: str) -> None:
    """Write a wheel of one empty module into a package index."""
    folder = index / name.replace("_", "-")
    folder.mkdir(parents=True)
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={digest(text)},{len(text)}\n" for path, text in files.items())
    file = f"{name}-{version}-py3-none-any.whl"
    (folder / "index.html").write_text(f'<a href="{quote(file)}">{file}</a>')
    with zipfile.ZipFile(folder / file, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with its lock, and an index of the CPU builds in `cpu`."""
    (tmp_path / "infra").mkdir()
    shutil.copy(PROJECT / "infra" / "setup.sh", tmp_path / "infra")
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    wheel(tmp_path / "pypi", "torch", "2.0", "nvidia_cublas")
    wheel(tmp_path / "pypi", "torchvision", "1.0", "torch")
    for name in ("nvidia_cublas", "tool", "ray", "answerer"):
        wheel(tmp_path / "pypi", name, "1.0")
    wheel(tmp_path / "cpu", "torch", "2.0+cpu")
    wheel(tmp_path / "cpu", "torchvision", "1.0+cpu")
    subprocess.run(["uv", "lock", "--quiet"], cwd=tmp_path, env=environment(tmp_path), check=True)
    return tmp_path


@cache
def folder_of_uv() -> str:
    """Return the folder of the uv that this checkout uses."""
    command = ["bash", "infra/setup.sh", "--print-uv"]
    found = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    return str((PROJECT / found).parent)


def environment(root: Path, **given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "VIRTUAL_ENV", "CXR_"))}
    path = os.pathsep.join((folder_of_uv(), str(Path(sys.executable).parent), kept["PATH"]))
    return {**kept, "PATH": path, "CXR_TORCH_INDEX": (root / "cpu").as_uri(), **given}


def setup(root: Path, *, code: int = 0, **given: str) -> tuple[set[str], str]:
    """Run setup.sh; return what is installed, as name-version, and what the script said."""
    command = ["bash", "infra/setup.sh"]
    done = subprocess.run(
        command, cwd=root, env=environment(root, **given), capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    found = (root / ".venv").glob("lib/python*/site-packages/*.dist-info")
    return {path.name.removesuffix(".dist-info") for path in found}, done.stderr


CPU = {"torch-2.0+cpu", "torchvision-1.0+cpu"}
CUDA = {"torch-2.0", "torchvision-1.0", "nvidia_cublas-1.0"}


@pytest.mark.parametrize("forbidden", ["", "1"])
def test_packages_are_compiled_where_no_command_may_keep_compiled_code(project: Path, forbidden: str) -> None:
    setup(project, PYTHONDONTWRITEBYTECODE=forbidden)
    compiled = {path.name.split(".")[0] for path in (project / ".venv").glob("lib/python*/site-packages/**/*.pyc")}
    assert ("torch" in compiled) == bool(forbidden)


def test_each_choice_installs_its_packages_and_stays_until_another_is_made(project: Path) -> None:
    assert setup(project, CXR_SETUP_TORCH="cpu")[0] == CPU
    assert setup(project, CXR_SETUP_FOR="develop")[0] == CPU | {"tool-1.0"}
    assert setup(project) == (CPU | {"tool-1.0"}, "")
    assert setup(project, CXR_SETUP_TORCH="cuda")[0] == CUDA | {"tool-1.0"}
    assert setup(project, CXR_SETUP_FOR="cluster", CXR_SETUP_TORCH="cpu")[0] == CPU | {"ray-1.0"}
    assert setup(project, CXR_SETUP_FOR="predict")[0] == {"answerer-1.0"}
    assert setup(project)[1] == ""


def test_without_the_index_of_cpu_builds_the_lock_is_installed_unless_it_was_asked_for(project: Path) -> None:
    nowhere = (project / "nowhere").as_uri()
    assert "could not be installed from" in setup(project, code=1, CXR_SETUP_TORCH="cpu", CXR_TORCH_INDEX=nowhere)[1]
    assert setup(project, CXR_TORCH_INDEX=nowhere)[0] == CUDA
    assert setup(project, CXR_TORCH_INDEX=nowhere)[1] == ""


def test_an_environment_of_release_050_is_not_built_again(project: Path) -> None:
    setup(project, CXR_SETUP_FOR="develop", CXR_SETUP_TORCH="cuda")
    stamp = project / ".venv" / ".built-from"
    stamp.write_text(stamp.read_text().split()[0] + "\n")
    assert setup(project) == (CUDA | {"tool-1.0"}, "")


def test_an_unknown_choice_is_named(project: Path) -> None:
    message = "error: CXR_SETUP_FOR is use, develop, cluster or predict, not fun\n"
    assert setup(project, code=1, CXR_SETUP_FOR="fun") == (set(), message)


def test_what_only_answers_imports_nothing_beyond_its_group_but_torch() -> None:
    graph = grimp.build_graph("cxr", "tasks", include_external_packages=True, exclude_type_checking_imports=True)
    needed = {
        module
        for task in ("tasks.predict", "tasks.app", "tasks.pacs")
        for module in graph.find_upstream_modules(task)
        if module.split(".")[0] not in {"cxr", "tasks", *sys.stdlib_module_names}
    }
    provided = {normalised(Requirement(one).name) for one in pyproject()["dependency-groups"]["predict"]} | WITH_THEM
    missing = {
        module for module in needed if not provided & {normalised(name) for name in packages_distributions()[module]}
    }
    assert missing == {"torch", "torchvision", "timm", "sklearn", "pyarrow"}, "heat maps, training, evaluation, tables"


WITH_THEM = {"botocore", "starlette", "typing-extensions"}  # of boto3, fastapi and pydantic


def test_the_group_that_only_answers_has_the_limits_of_the_whole() -> None:
    whole, group = (
        {normalised(Requirement(one).name): Requirement(one).specifier for one in named}
        for named in (pyproject()["project"]["dependencies"], pyproject()["dependency-groups"]["predict"])
    )
    assert group.pop("mlflow-skinny") == whole["mlflow"]
    del group["alembic"]  # mlflow brings it
    assert {name: whole[name] for name in group} == group


def pyproject() -> dict[str, Any]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
