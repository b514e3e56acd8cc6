"""Runs in folders that do not outlive them, as pods of a cluster: infra/start.sh fills them, DVC joins them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import remote_cache
from flows.stages import plan, run_stage
from tests.support.faults import fault
from tests.support.project import PROJECT

STAGES = ["ingest", "train", "evaluate"]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote_cache.VARIABLE, str(tmp_path / "remote"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def image(tiny: Path, tmp_path: Path) -> Path:
    """The project as infra/Dockerfile copies it: without git."""
    copied = shutil.copytree(tiny, tmp_path / "image", ignore=shutil.ignore_patterns(".git"))
    return Path(copied)


def start_pod(source: Path, folder: Path, *command: str, **given: str) -> str:
    """Start infra/start.sh in an empty folder, as the image does; return what its command prints."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "CXR_SOURCE": str(source), "CXR_IMAGE_COMMIT": "4dd60f3", **given}
    start = [str(PROJECT / "infra" / "start.sh"), *command]
    done = subprocess.run(start, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(folder: Path, *names: str) -> dict[str, bool]:
    """Fetch, then run stages; return stage -> cached."""
    remote_cache.fetch(folder, on_line=lambda _: None, environment={})
    return {name: run_stage(name, root=folder, on_line=lambda _: None).cached for name in names}


@pytest.mark.usefixtures("remote")
@fault("DVC remote", "a pod dies between two stages", "the next one fetches the finished stages", "they are cached")
def test_the_next_pod_continues_where_a_dead_one_stopped(image: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    start_pod(image, first, "true")
    assert list(plan(first).order) == STAGES
    assert run(first, "ingest", "train") == {"ingest": False, "train": False}
    start_pod(image, second, "true")
    assert run(second, *STAGES) == {"ingest": True, "train": True, "evaluate": False}
    start_pod(image, third, "true")
    assert run(third, *STAGES) == dict.fromkeys(STAGES, True)
    made = {path.relative_to(second): path.read_bytes() for path in second.glob("data/**/*") if path.is_file()}
    assert made
    assert made == {path.relative_to(third): path.read_bytes() for path in third.glob("data/**/*") if path.is_file()}


@fault("DVC remote", "the remote does not answer", "the run ends", "one line with the address")
def test_a_remote_that_does_not_answer_is_one_line(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(remote_cache.VARIABLE, str(tmp_path / "file" / "below"))
    start_pod(image, tmp_path / "pod", "true")
    with pytest.raises(remote_cache.RemoteError, match=r"^`dvc push --run-cache ingest` failed: .*CXR_DVC_REMOTE"):
        run_stage("ingest", root=tmp_path / "pod", on_line=lambda _: None)


def test_a_pod_names_the_commit_of_the_image_and_a_checkout_its_own(image: Path, tiny: Path, tmp_path: Path) -> None:
    code = "from pathlib import Path; from cxr.registry.lineage import lineage; print(lineage(Path()))"
    lineage = [sys.executable, "-c", code]
    said = start_pod(image, tmp_path / "pod", *lineage, PYTHONPATH=str(PROJECT))
    assert "'git_commit': '4dd60f3'" in said
    assert "'git_dirty': 'false'" in said
    assert "4dd60f3" not in start_pod(tmp_path / "nowhere", tiny, *lineage, PYTHONPATH=str(PROJECT))


def test_checkpoints_and_scores_outlive_a_pod(image: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    start_pod(image, tmp_path / "first", "bash", "-c", "echo 3 >.checkpoints/epoch", CXR_STATE=str(state))
    said = start_pod(image, tmp_path / "second", "bash", "-c", "cat .checkpoints/epoch; ls data", CXR_STATE=str(state))
    assert said.split() == ["3", "scores"]
