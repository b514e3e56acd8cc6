"""A run with other parameters leaves the main checkout as it is."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cxr.common.errors import ParamsError
from cxr.common.locks import file_lock, worktree_lock
from cxr.common.params import override, read_params
from flows.stages import run_stage
from flows.workspaces import WorkspaceError, open_workspace
from tests.support.faults import fault


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def test_overrides_stand_in_the_workspace_and_the_tree_stays_clean(tiny: Path) -> None:
    workspace = open_workspace(tiny, run="brave-otter", overrides={"train.epochs": 3}, keep=5)
    assert workspace == tiny / ".runs" / "brave-otter"
    assert read_params(workspace / "params.yaml").train.epochs == 3
    assert read_params(workspace / "params.yaml").paths.downloads == (tiny / "data" / "downloads").resolve()
    assert git(tiny, "status", "--porcelain") == ""


def test_a_stage_that_ran_in_the_main_checkout_comes_from_the_shared_cache(tiny: Path) -> None:
    run_stage("ingest", root=tiny, on_line=print)
    (tiny / "dvc.lock").unlink()
    workspace = open_workspace(tiny, run="brave-otter", overrides={"train.epochs": 3}, keep=5)
    assert run_stage("ingest", root=workspace, on_line=print).cached
    assert not run_stage("train", root=workspace, on_line=print).cached


def test_parameters_are_taken_as_they_stand_and_uncommitted_code_is_refused(tiny: Path) -> None:
    override(tiny / "params.yaml", {"train.batch_size": 7})
    workspace = open_workspace(tiny, run="one", overrides={"train.epochs": 3}, keep=5)
    assert read_params(workspace / "params.yaml").train.batch_size == 7
    (tiny / "step.py").write_text("print('half done')")
    with pytest.raises(WorkspaceError, match=r"these changes are not committed: step.py; commit them first$"):
        open_workspace(tiny, run="two", overrides={"train.epochs": 3}, keep=5)


def test_images_and_weights_in_a_folder_that_git_ignores_are_found(tiny: Path) -> None:
    images, weights = tiny / "data" / "mine", tiny / "models" / "start.pth"
    (tiny / "sample").mkdir()  # a word of the parameters, not this folder
    for path in (images / "1.png", weights):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    override(tiny / "params.yaml", {"ingest.watch": "data/mine", "ingest.sources.0.location": "data/mine"})
    workspace = open_workspace(tiny, run="one", overrides={"train.weights": "models/start.pth"}, keep=5)
    params = read_params(workspace / "params.yaml")
    assert [source.location for source in params.ingest.sources] == [str(images), "sample"]
    assert (params.ingest.watch, params.train.weights) == (str(images), str(weights))


def test_a_wrong_override_leaves_no_workspace(tiny: Path) -> None:
    with pytest.raises(ParamsError, match=r"there is no parameter train\.epoch;"):
        open_workspace(tiny, run="one", overrides={"train.epoch": 3}, keep=5)
    assert not (tiny / ".runs" / "one").exists()
    assert len(git(tiny, "worktree", "list").splitlines()) == 1


def test_newer_workspaces_push_out_the_oldest(tiny: Path) -> None:
    for run in ("one", "two", "three"):
        open_workspace(tiny, run=run, overrides={"train.epochs": 3}, keep=2)
    assert sorted(path.name for path in (tiny / ".runs").iterdir()) == ["three", "two"]


def test_a_workspace_in_use_is_never_pushed_out(tiny: Path) -> None:
    with file_lock(worktree_lock(tiny, "one")):
        for run in ("one", "two", "three"):
            open_workspace(tiny, run=run, overrides={"train.epochs": 3}, keep=1)
    assert sorted(path.name for path in (tiny / ".runs").iterdir()) == ["one", "three"]


def test_a_run_that_starts_again_goes_on_in_its_workspace(tiny: Path) -> None:
    workspace = open_workspace(tiny, run="one", overrides={"train.epochs": 3}, keep=2)
    (workspace / ".checkpoints").mkdir()
    assert open_workspace(tiny, run="one", overrides={"train.epochs": 3}, keep=2) == workspace
    assert (workspace / ".checkpoints").exists()


@pytest.mark.parametrize("run", ["one", "three"])
@fault("flows.rebuild, flows.study", "the removal of an old worktree was killed", "the next run removes the rest",
       "nothing")  # fmt: skip
def test_what_a_killed_removal_left_is_in_nobodys_way(tiny: Path, run: str) -> None:
    """Of a run of the same name, and of one that pushes it out; what is no folder stays."""
    for each in ("one", "two"):
        open_workspace(tiny, run=each, overrides={"train.epochs": 3}, keep=2)
    (tiny / ".runs" / "one" / ".git").unlink()
    (tiny / ".runs" / "notes.txt").write_text("mine")
    os.utime(tiny / ".runs" / "notes.txt", (0, 0))
    workspace = open_workspace(tiny, run=run, overrides={"train.epochs": 3}, keep=2)
    assert read_params(workspace / "params.yaml").train.epochs == 3
    assert sorted(path.name for path in (tiny / ".runs").iterdir()) == sorted({"notes.txt", "two", run})
    assert len(git(tiny, "worktree", "list").splitlines()) == 3


@pytest.mark.parametrize("run", ["one", "three"])
@fault("flows.rebuild, flows.study", "the checkout was moved after runs in worktrees",
       "their worktrees move along, with the checkpoints in them", "nothing")  # fmt: skip
def test_worktrees_of_a_checkout_that_was_moved_go_on_or_are_pushed_out(tiny: Path, run: str) -> None:
    for each in ("one", "two"):
        (open_workspace(tiny, run=each, overrides={"train.epochs": 3}, keep=2) / ".checkpoints").mkdir()
    moved = tiny.rename(tiny.with_name("moved"))
    workspace = open_workspace(moved, run=run, overrides={"train.epochs": 3}, keep=2)
    assert (workspace / ".checkpoints").exists() == (run == "one")
    assert read_params(workspace / "params.yaml").paths.downloads == (moved / "data" / "downloads").resolve()
    assert sorted(path.name for path in (moved / ".runs").iterdir()) == sorted({"two", run})
    assert len(git(moved, "worktree", "list").splitlines()) == 3


def test_a_copied_checkout_leaves_the_worktrees_of_the_first_alone(tiny: Path) -> None:
    open_workspace(tiny, run="one", overrides={"train.epochs": 3}, keep=2)
    copied = Path(shutil.copytree(tiny, tiny.with_name("copied")))
    git(
        copied,
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "commit",
        "--allow-empty",
        "-qm",
        "the copy's own",
    )
    workspace = open_workspace(copied, run="one", overrides={"train.epochs": 3}, keep=2)
    assert git(workspace, "rev-parse", "HEAD") == git(copied, "rev-parse", "HEAD")
    assert git(tiny / ".runs" / "one", "rev-parse", "HEAD") == git(tiny, "rev-parse", "HEAD")


def test_outside_git_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="not a git repository"):
        open_workspace(tmp_path, run="one", overrides={"train.epochs": 3}, keep=2)
