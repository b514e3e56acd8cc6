"""Every secret may be in a file that NAME_FILE names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cxr.common.errors import ParamsError
from cxr.common.secret_files import SECRETS, read_secret_files
from tests.support.faults import fault
from tests.support.project import PROJECT


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_read_from_its_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("of-a-file\n")
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "secret"))
    read_secret_files()
    read_secret_files()  # each command's start may call it more than once
    assert os.environ.pop(name) == "of-a-file"
    assert f"{name}_FILE" not in os.environ


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "must hold the secret alone"),
        (b"\n", "must hold the secret alone"),
        (b"one\ntwo\n", "must hold the secret alone"),
        (b"\xff\xfe", "must hold the secret alone"),
        (b"x" * 70_000, "must hold the secret alone"),
    ],
)
@fault(
    "every command", "the file of a secret is missing, empty or holds more", "nothing starts", "exit code 2, the file"
)
def test_a_wrong_file_is_one_line_without_its_content(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    environment = {**os.environ, "CXR_PATIENT_KEY_FILE": str(file)}
    command = [sys.executable, "-m", "tasks.history"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ParamsError.exit_code
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: CXR_PATIENT_KEY_FILE: {file}")
    assert message in line
    assert "two" not in line


def test_a_secret_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("one")
    monkeypatch.setenv("CXR_APP_TOKEN_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("CXR_APP_TOKEN", "another")
    with pytest.raises(ParamsError, match="both CXR_APP_TOKEN and CXR_APP_TOKEN_FILE are set"):
        read_secret_files()


def test_a_program_that_knows_no_secret_files_gets_the_value(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("admin:word")
    environment = {**os.environ, "PREFECT_API_AUTH_STRING_FILE": str(tmp_path / "secret")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    script, print_it = str(PROJECT / "infra" / "with-secret-files.sh"), "echo $PREFECT_API_AUTH_STRING $1 $PWD"
    command = [script, "bash", "-c", print_it, "bash", "an argument"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"admin:word an argument {tmp_path}\n"
    (tmp_path / "secret").unlink()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_no_secret_of_the_code_or_of_compose_is_left_out() -> None:
    """A variable whose name says that it is a secret, and that the product reads, is on the list."""
    secret = re.compile(r"\b((?:CXR|MLFLOW|PREFECT|AWS|KAGGLE|PG)_?[A-Z_]*(?:PASSWORD|TOKEN|KEY|SECRET|AUTH_STRING))\b")
    files = [*(PROJECT / "infra").glob("*.sh"), PROJECT / "infra" / "compose.yaml"]
    files += [file for folder in ("cxr", "tasks", "flows") for file in (PROJECT / folder).rglob("*.py")]
    named = {name for file in files for name in secret.findall(file.read_text(encoding="utf-8"))}
    # Compose's own names for what a service gets under another name.
    only_compose = {"MLFLOW_SIGNING_KEY", "MLFLOW_ADMIN_PASSWORD", "PREFECT_AUTH_STRING"}
    assert named - set(SECRETS) - only_compose == set()


def test_the_documents_list_them_all() -> None:
    page = (PROJECT / "docs" / "secrets.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([A-Z0-9_]+)`", page)) >= set(SECRETS)
