"""A project of three trivial stages with the real flow and parameter file, and one Prefect server for the session."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.project import PROJECT, copy_package
from tests.support.services.prefect_servers import serve_prefect

DVC_YAML = """
stages:
  evaluate: # out of order on purpose
    cmd: python step.py evaluate ${paths.model} ${paths.metrics}
    deps: ["${paths.model}"]
    params: [evaluate]
    outs: ["${paths.metrics}"]
  ingest:
    cmd: python step.py ingest images.txt ${paths.raw}
    deps: [images.txt]
    params: [ingest]
    outs: ["${paths.raw}"]
  train:
    cmd: python step.py train ${paths.raw} ${paths.model}
    deps: ["${paths.raw}"]
    params: [train]
    outs: ["${paths.model}"]
"""

STEP = """
import json, os, pathlib, sys, time
stage, source, target = sys.argv[1:]
print(f"{stage} reads {source}")
if os.path.exists(f"fail-{stage}"):
    sys.exit("error: " + open(f"fail-{stage}").read())
target = pathlib.Path(target)
target.parent.mkdir(parents=True, exist_ok=True)
if os.path.exists(f"hang-{stage}"):
    (target.parent / "pid").write_text(str(os.getpid()))
    time.sleep(600)
target.write_text(json.dumps({"accuracy": 0.75, "ci95": {"accuracy": [0.5, 0.9]}, "stage": stage}))
"""

IGNORED = """
/.env
/.prefect/
/.venv/
/.runs/
/data/
/mlruns/
/models/
/reports/
/fetched/
__pycache__/
/refuse
/hold
/fail-*
/hang-*
"""

PROMOTE = """
import os, sys
print("accuracy 0.75 is at or above the floor" if not os.path.exists("refuse") else "accuracy 0.75 is below 0.8")
sys.exit(10 if os.path.exists("refuse") else 11 if os.path.exists("hold") else 0)
"""


@pytest.fixture(scope="session")
def tiny_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed git and DVC project, made once."""
    root = tmp_path_factory.mktemp("template")
    for package in ("cxr", "flows", "infra", "tasks"):
        copy_package(package, root)
    for name in ("params.yaml", "prefect.yaml", "pyproject.toml", "run", "uv.lock"):
        shutil.copy(PROJECT / name, root)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "step.py").write_text(STEP)
    (root / "images.txt").write_text("images")
    (root / "tasks" / "promote.py").write_text(PROMOTE)
    (root / "tasks" / "reevaluate.py").write_text("")  # there is no champion
    (root / ".gitignore").write_text(IGNORED)
    commit_everything(root)
    return root


@pytest.fixture
def tiny(tiny_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny project, which is also the working directory."""
    root = tmp_path / "tiny"
    shutil.copytree(tiny_template, root)
    monkeypatch.chdir(root)
    return root


def commit_everything(root: Path) -> None:
    """Make `root` a git and DVC repository with all its files committed."""
    commands = [
        ["git", "init", "--quiet"],
        [sys.executable, "-m", "dvc", "init", "--quiet"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "start"],
    ]
    for command in commands:
        subprocess.run(command, cwd=root, check=True)


@pytest.fixture(scope="session")
def standing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server with its scheduler and without a worker, for the session; yields its environment."""
    with serve_prefect(tmp_path_factory.mktemp("standing")) as environment:
        yield environment


@pytest.fixture(scope="session")
def prefect_server(standing_server: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same server for the flows and clients of this process; yields its environment."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: standing_server["PREFECT_API_URL"]}):
        yield standing_server
