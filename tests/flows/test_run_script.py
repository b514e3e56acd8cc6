"""./run in a shell that knows nothing of this project: right Python, right stores, nothing left behind."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from dotenv import dotenv_values

from tests.support.project import PROJECT, copy_package
from tests.support.projects.clones import in_plain_shell, lend_environment

REPORT_PYTHON = """
stages:
  train:
    cmd: python -c "import ruamel.yaml, sys; print('python', sys.prefix)" && python -c "open('model', 'w')"
    params: [train.epochs]
    outs: [model]
"""


@pytest.fixture
def project(tiny: Path) -> Path:
    lend_environment(tiny)
    return tiny


def settings(project: Path, *names: str, **environment: str) -> dict[str, str]:
    """Return the values that a command of ./run finds in its environment."""
    done = in_plain_shell(project, "./run", "env", **environment)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return {name: found[name] for name in names}


def test_the_help_names_every_task_with_its_summary_and_needs_no_python(tmp_path: Path) -> None:
    for name in ("tasks", "flows"):
        copy_package(name, tmp_path)
    shutil.copy(PROJECT / "run", tmp_path)
    done = in_plain_shell(tmp_path, "./run", "--help")
    assert done.returncode == 0, done.stderr
    listed = {words[0]: words[1] for line in done.stdout.splitlines() if len(words := line.strip().split("  ", 1)) == 2}
    for task in (PROJECT / "tasks").glob("[a-z]*.py"):
        summary = task.read_text().splitlines()[0].strip('"')
        assert listed[task.stem].strip() == summary
    assert "flows.rebuild" in listed
    assert not (tmp_path / ".venv").exists()


def test_a_task_runs_with_its_arguments_and_an_unknown_name_is_one_line(project: Path) -> None:
    done = in_plain_shell(project, "./run", "history", "--help")
    assert done.stdout.startswith("usage: ./run history"), done.stderr
    done = in_plain_shell(project, "./run", "hystory")
    assert (done.returncode, done.stderr) == (2, "error: there is no command hystory; ./run --help lists all\n")


def test_commands_get_the_stores_of_this_folder_unless_something_else_is_named(project: Path) -> None:
    here = settings(project, "MLFLOW_TRACKING_URI", "CXR_MLRUNS", "PREFECT_HOME", "DO_NOT_TRACK")
    assert here == {
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlruns/mlflow.db",
        "CXR_MLRUNS": f"{project}/mlruns",
        "PREFECT_HOME": f"{project}/.prefect",
        "DO_NOT_TRACK": "true",
    }
    text = (project / ".env").read_text()
    (project / ".env").write_text(text.replace(here["MLFLOW_TRACKING_URI"], "http://mlflow.team"))
    assert settings(project, "MLFLOW_TRACKING_URI") == {"MLFLOW_TRACKING_URI": "http://mlflow.team"}
    named = settings(project, "MLFLOW_TRACKING_URI", MLFLOW_TRACKING_URI="http://other")
    assert named == {"MLFLOW_TRACKING_URI": "http://other"}


def test_lines_of_env_are_read_as_prefect_reads_them(project: Path) -> None:
    settings(project, "PREFECT_HOME")  # which writes .env
    lines = [
        "CXR_ONE=YWFhYWE=",  # base64, as of a key
        "CXR_TWO=a=b==",
        'CXR_DOUBLE="with a space"',
        "CXR_SINGLE='with a space'",
        "export CXR_EXPORTED=a",
        "  CXR_SPACES = a  ",
        "  # CXR_COMMENT=a",
        "CXR_WINDOWS=a\r",
        "CXR_APOSTROPHE=it's",
        "CXR_LAST=without an end",
    ]
    with (project / ".env").open("a", newline="") as file:
        file.write("\n".join(lines))
    theirs = {name: value for name, value in dotenv_values(project / ".env").items() if name.startswith("CXR_")}
    assert len(theirs) == len(lines)  # CXR_MLRUNS is one more, the comment none
    assert settings(project, *theirs) == theirs


@pytest.mark.parametrize("folder", ["/mnt/a b", "/mnt/it's", '/mnt/"x"', "/mnt/$HOME", "/mnt/`id`", "/mnt/a,(b)\\"])
def test_make_hands_on_the_name_of_a_folder_as_it_is(folder: str) -> None:
    # Within `make test` make would also print the name of the folder it enters and leaves.
    command = ["make", "--no-print-directory", "-n", "run", f"DATA={folder.replace('$', '$$')}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout) == ["./run", "infra/run.sh", folder, "", "", ""]


def test_a_folder_that_was_moved_gets_its_own_stores(project: Path) -> None:
    settings(project, "PREFECT_HOME")
    moved = project.rename(project.with_name("moved"))
    assert settings(moved, "PREFECT_HOME") == {"PREFECT_HOME": f"{moved}/.prefect"}


def test_the_environment_can_be_sourced_and_finds_the_projects_python(project: Path) -> None:
    (project / ".env").unlink(missing_ok=True)
    done = in_plain_shell(project, "bash", "-c", "source infra/environment.sh && command -v python dvc")
    assert done.stdout.split() == [f"{project}/.venv/bin/python", f"{project}/.venv/bin/dvc"]


def test_dvc_runs_stages_and_experiments_with_the_projects_python(project: Path) -> None:
    (project / "dvc.yaml").write_text(REPORT_PYTHON)
    commit = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "one stage"]
    subprocess.run(commit, cwd=project, check=True)
    identity = {f"GIT_{who}_{what}": "t@e.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in (
        ["repro"],
        ["exp", "run", "-S", "train.epochs=3"],
        ["exp", "run", "--temp", "-S", "train.epochs=4"],
    ):
        done = in_plain_shell(project, "./run", "dvc", *command, **identity)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"python {project}/.venv" in done.stdout


def test_mlflow_reads_the_store_of_this_folder_and_drops_no_other(project: Path) -> None:
    done = in_plain_shell(project, "./run", "mlflow", "experiments", "search")
    assert done.returncode == 0, done.stderr
    assert (project / "mlruns" / "mlflow.db").is_file()
    assert not (project / "mlflow.db").exists()
