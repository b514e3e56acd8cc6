"""What is recorded about where a model comes from."""

import subprocess
from pathlib import Path

import pytest

from cxr.common.files import sha256_of
from cxr.registry.lineage import lineage


def _git(root: Path, *arguments: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(root), *author, *arguments], check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "cxr").mkdir()
    (tmp_path / "cxr" / "a.py").write_text("x = 1\n")
    (tmp_path / "params.yaml").write_text("a: 1\n")
    return tmp_path


def test_outside_git_the_commit_is_none_and_the_code_still_has_a_digest(root: Path) -> None:
    found = lineage(root)
    assert (found["git_commit"], found["git_dirty"]) == ("none", "none")
    assert len(found["code_sha256"]) == 64


def test_without_git_on_the_machine_the_commit_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert lineage(root)["git_commit"] == "none"


def test_files_are_named_by_digest_and_missing_ones_by_none(root: Path) -> None:
    found = lineage(root)
    assert found["params_sha256"] == sha256_of(root / "params.yaml")
    assert found["dvc_lock_sha256"] == found["uv_lock_sha256"] == "none"


USERS_OWN = ("params.yaml", "labels-corrected.csv", "profiles/hospital.yaml", "study.yaml", "docs/results.md")
"""What tutorials have a user edit or write: it decides nothing that params.yaml and dvc.lock do not hold."""


@pytest.mark.parametrize("code", ["cxr/a.py", "dvc.yaml"])
def test_changed_code_makes_the_tree_dirty_and_no_file_that_users_edit(root: Path, code: str) -> None:
    for name in (*USERS_OWN, code):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("a: 1\n")
    _git(root, "init", "-q")
    _git(root, "add", ".")
    _git(root, "commit", "-qm", "first")
    for name in USERS_OWN:
        (root / name).write_text("a: 2\n")
    clean = lineage(root)
    (root / code).write_text("a: 2\n")
    changed = lineage(root)
    assert len(clean["git_commit"]) == 40
    assert (clean["git_dirty"], changed["git_dirty"]) == ("false", "true")
    assert clean["git_commit"] == changed["git_commit"]
    assert (clean["code_sha256"] != changed["code_sha256"]) == code.endswith(".py")


def test_a_project_without_code_has_no_code_digest(tmp_path: Path) -> None:
    assert lineage(tmp_path)["code_sha256"] == "none"
