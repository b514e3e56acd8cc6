"""What `clean` lists and removes, on a real store and a real DVC cache; champions and their data stay."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from cxr.common.errors import CxrError, DataError, RegistryError, SourceError
from cxr.common.locks import file_lock, step_lock, worktree_lock
from cxr.common.params import override
from cxr.registry import retention, tracking_store, versions
from cxr.registry.champion import aliases
from cxr.registry.stored_names import entry_tag
from tasks import clean
from tasks.retention.dvc_cache import cache_items, named_objects
from tasks.retention.items import Item, checkpoints, exchanged_scores, folder_size, folders, scores, worktrees
from tasks.retention.plan import branch_tips, plan
from tests.support.faults import fault
from tests.support.projects.registry_project import artifacts, call, enter_project, register, write_model
from tests.support.services.servers import s3_settings, serve_s3

STAGE = """
stages:
  make:
    cmd: mkdir -p made && cp seed.txt made/one && printf same > made/two
    deps: [seed.txt]
    outs: [made]
"""
LATER_S = 400 * 24 * 3600.0


def dvc(*arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "DVC_NO_ANALYTICS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_data(seed: str) -> None:
    """Run the stage, whose output is `seed`."""
    Path("seed.txt").write_text(seed)
    dvc("repro", "--quiet")


def make_version(seed: int, *, champion: bool = False) -> None:
    """Register a version made from data of its own."""
    make_data(f"data of {seed}")
    write_model(seed=seed)
    number, before = register().number, aliases.standing().recorded
    if champion:
        aliases.move_champion(number, instead_of=before, kind="promote", approved_by="ann", reason="test")
    (Path("data/scores") / f"version-{number}").mkdir(parents=True)
    (Path("data/scores") / f"version-{number}" / "part.parquet").write_bytes(b"scores")


@pytest.fixture(scope="module", autouse=True)
def _project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Five versions: 1 was champion, 2 is; 3 was never; 4 is one of the newest two; 5 is challenger."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        enter_project(folder, patch, tmp_path_factory)
        (folder / "dvc.yaml").write_text(STAGE)
        (folder / "dvc.lock").unlink()
        dvc("init", "--no-scm", "--quiet")
        for seed in (1, 2, 3, 4, 5):
            make_version(seed, champion=seed <= 2)
        for name in ("mlruns/cache/version-3-abc", ".runs/old", ".checkpoints/interrupted"):
            (folder / name).mkdir(parents=True)
            (folder / name / "file").write_bytes(b"x" * 1000)
        override(folder / "params.yaml", {"clean.keep_versions": 2, "clean.keep_worktrees": 0})
        yield


def run_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, later_s: float = LATER_S
) -> list[str]:
    """Call the command as if `later_s` had passed; return its lines."""
    capsys.readouterr()
    with monkeypatch.context() as moved:
        now = time.time() + later_s
        moved.setattr(time, "time", lambda: now)
        call(moved, clean.main, *arguments)
    return capsys.readouterr().out.splitlines()


def going(lines: list[str]) -> list[str]:
    return [re.sub(r" +", " ", line.partition("MB")[2]).strip() for line in lines if line.startswith("goes")]


def restorable(seed: int) -> bool:
    """Say whether the data of a version come back by its recorded dvc.lock."""
    version = next(one for one in retention.stored_versions() if one.number == str(seed))
    shutil.copy2(retention.fetch_data_locks([version], Path("fetched"))[str(seed)], "dvc.lock")
    Path("seed.txt").write_text(f"data of {seed}")
    shutil.rmtree("made", ignore_errors=True)
    command = [sys.executable, "-m", "dvc", "checkout", "--quiet"]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0 and Path("made/one").read_text() == f"data of {seed}"


@pytest.mark.parametrize("days", [20, -1, -400])
@fault("clean", "the clock is behind all that was made", "nothing goes", "kept: younger than 30 days")
def test_nothing_young_goes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], days: int) -> None:
    assert going(run_clean(monkeypatch, capsys, "--dry-run", later_s=days * 24 * 3600)) == []


@fault(
    "clean", "a training begins to use checkpoints that may go", "all checkpoints stay", "kept: in use by a run"
)  # fmt: skip
def test_checkpoints_stay_while_a_training_runs_also_where_it_began_after_the_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with step_lock(Path(".checkpoints"), "train"):
        assert "checkpoints of interrupted" not in going(run_clean(monkeypatch, capsys, "--dry-run"))
    looked = list(checkpoints(Path(".checkpoints"), lambda _: ""))
    assert {item.name: item.kept_as for item in looked} == {"interrupted": "", "train.lock": "state of a command"}
    with step_lock(Path(".checkpoints"), "train"), pytest.raises(DataError, match="in use by a run"):
        looked[0].remove()
    assert Path(".checkpoints/interrupted/file").is_file()


def test_without_the_data_lock_of_a_version_that_stays_the_cache_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for versions that release 0.5.0 registered."""
    lock = versions.get_version("1").tags[retention.DATA_LOCK_TAG]
    tracking_store.client().delete_model_version_tag(versions.MODEL, "1", retention.DATA_LOCK_TAG)
    lines = run_clean(monkeypatch, capsys, "--dry-run")
    versions.tag_version("1", {retention.DATA_LOCK_TAG: lock})
    assert not any(line.endswith("DVC objects") for line in going(lines))
    assert any("kept: data of version 1 unknown" in line for line in lines)


def test_a_version_that_became_needed_meanwhile_stays() -> None:
    tracking_store.client().set_registered_model_alias(versions.MODEL, "keep", "3")
    with pytest.raises(RegistryError, match="version 3 is now needed as keep"):
        retention.remove_version("3")
    tracking_store.client().delete_registered_model_alias(versions.MODEL, "keep")
    assert versions.bundle_fault(versions.get_version("3")) == ""


@fault("clean", "a version that may go becomes needed while others are removed", "the version, its scores and the data "
       "it was made from stay", "exit code 1, version N is now needed")  # fmt: skip
def test_the_data_of_a_version_that_became_needed_meanwhile_stay_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = tracking_store.client()

    def planned_in_vain(*arguments: Any, **named: Any) -> list[Item]:
        found = plan(*arguments, **named)
        client.set_registered_model_alias(versions.MODEL, "keep", "3")
        return found

    kept = Path("dvc.lock").read_bytes(), Path("seed.txt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(clean, "plan", planned_in_vain)
        with pytest.raises(CxrError, match="1 could not be removed, first version 3: version 3 is now needed as keep"):
            run_clean(patch, capsys)
    assert Path("data/scores/version-3/part.parquet").is_file()
    assert restorable(3)
    client.delete_registered_model_alias(versions.MODEL, "keep")
    Path("dvc.lock").write_bytes(kept[0])
    Path("seed.txt").write_bytes(kept[1])
    for name in ("mlruns/cache/version-3-abc", ".runs/old", ".checkpoints/interrupted"):  # for the tests below
        make_files(Path(name), "file")


@pytest.mark.parametrize("deleted", [True, False])
@fault("clean", "a version was registered by hand, or somebody has deleted its model in MLflow",
       "it goes by the same rules; files of a run stay with the run", "a line of `--dry-run`")  # fmt: skip
def test_a_version_without_a_model_of_its_own_goes_as_well(deleted: bool) -> None:
    client = tracking_store.client()
    source, model_id = "s3://models/one", ""
    if deleted:
        model_id = client.create_logged_model("0").model_id
        client.finalize_logged_model(model_id, "READY")
        source = f"models:/{model_id}"
    with tracking_store.named_to_mlflow():
        number = client.create_model_version(versions.MODEL, source, model_id=model_id or None).version
    if deleted:
        client.delete_logged_model(model_id)
    assert str(number) in {version.number for version in retention.stored_versions()}
    retention.remove_version(str(number))
    assert versions.look_up(str(number)) is None


def test_a_changed_audit_log_stops_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = tracking_store.client()
    entry = client.get_registered_model(versions.MODEL).tags[entry_tag(1)]
    client.delete_registered_model_tag(versions.MODEL, entry_tag(1))
    with pytest.raises(RegistryError, match="does not say which versions must stay"):
        run_clean(monkeypatch, capsys)
    client.set_registered_model_tag(versions.MODEL, entry_tag(1), entry)


@fault("clean", "a run begins to use a worktree that may go", "the worktree stays", "kept: in use by a run")
def test_a_worktree_that_a_run_uses_stays_also_where_the_run_began_after_the_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = worktree_lock(Path(), "old")
    with file_lock(lock):
        lines = run_clean(monkeypatch, capsys, "--dry-run")
        assert not any("worktree old" in line for line in going(lines))
        assert any(line.startswith("kept: in use by a run") and line.endswith("worktree old") for line in lines)
    (item,) = worktrees(Path(), lambda _: "")
    with file_lock(lock), pytest.raises(DataError, match="in use by a run"):
        item.remove()
    assert Path(".runs/old/file").is_file()


@pytest.fixture
def exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket with parts of versions 1 (was champion), 3 and 9 (no longer registered), and with what is no part."""
    before = Path("params.yaml").read_text()
    with serve_s3(tmp_path, "team") as endpoint:
        for name, value in s3_settings(endpoint).items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=endpoint)
        for key in (*PARTS, *OTHERS):
            client.put_object(Bucket="team", Key=key, Body=b"scores")
        override(Path("params.yaml"), {"score.exchange": "s3://team/shared"})
        yield client
    Path("params.yaml").write_text(before)


PARTS = [f"shared/version-{number}/{name}.parquet" for number in (1, 3, 9) for name in ("a", "b")]
OTHERS = ["shared/notes.txt", "shared/version-3/deeper/a.parquet", "shared-too/version-3/a.parquet"]


def keys(client: Any) -> set[str]:
    return {item["Key"] for item in client.list_objects_v2(Bucket="team")["Contents"]}


@fault("clean", "parts of a killed scoring are left in the exchange's bucket",
       "they go and stay by the rules of the folder of scores", "`--dry-run` lists them")  # fmt: skip
def test_parts_in_the_exchange_go_by_the_rules_of_the_folder(
    exchange: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not any("exchanged" in line for line in going(run_clean(monkeypatch, capsys, "--dry-run", later_s=0)))
    lines = run_clean(monkeypatch, capsys, "--dry-run")
    assert [line for line in going(lines) if "exchanged" in line] == [
        "exchanged scores of version-3",
        "exchanged scores of version-9",
    ]
    assert any(line.startswith("kept: champion before") and "exchanged scores of version-1" in line for line in lines)
    assert keys(exchange) == {*PARTS, *OTHERS}
    of_three = next(
        item for item in exchanged(lambda name, _: "" if name == "version-3" else "kept") if not item.kept_as
    )
    of_three.remove()
    of_three.remove()
    assert keys(exchange) == {*OTHERS, *(key for key in PARTS if "version-3" not in key)}


@fault("clean", "a scoring of a version whose parts may go begins, here or on another machine",
       "its parts stay, in the folder and in the bucket", "kept: in use by a run")  # fmt: skip
def test_parts_that_a_scoring_needs_stay_also_where_it_began_after_the_look(exchange: Any) -> None:
    folder, before = Path("data/scores"), keys(exchange)
    lock = folder / ".version-3-2of8.lock"
    looked = [*scores(folder, lambda _: ""), *exchanged(lambda *_: "")]
    of_three = [item for item in looked if item.name == "version-3"]
    assert [(item.kind, item.kept_as) for item in of_three] == [("scores of", ""), ("exchanged scores of", "")]
    with file_lock(lock):
        assert {item.kept_as for item in exchanged(lambda *_: "") if item.name == "version-3"} == {"in use by a run"}
        for item in of_three:
            with pytest.raises(DataError, match="in use by a run"):
                item.remove()
    lock.unlink()
    exchange.put_object(Bucket="team", Key="shared/version-3/c.parquet", Body=b"scores")  # another machine
    with pytest.raises(DataError, match="in use by a run"):
        of_three[1].remove()
    assert keys(exchange) == {*before, "shared/version-3/c.parquet"}
    assert (folder / "version-3" / "part.parquet").is_file()


def exchanged(kept_as: Callable[[str, float], str]) -> list[Item]:
    return list(exchanged_scores("s3://team/shared", Path("data/scores"), kept_as))


def test_an_exchange_that_cannot_be_reached_stops_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("params.yaml").read_text()
    for name, value in s3_settings("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    override(Path("params.yaml"), {"score.exchange": "s3://team/shared"})
    with pytest.raises(SourceError, match=r"^s3://team/shared: "):
        run_clean(monkeypatch, capsys)
    Path("params.yaml").write_text(before)
    assert versions.bundle_fault(versions.get_version("3")) == ""


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"outs: []")


def removing(gone: Path) -> Callable[[Path], str]:
    """Return a rule by which nothing is kept, and which removes `gone` at the first look, as a run at work may."""

    def kept_as(path: Path) -> str:
        if gone.is_dir():
            shutil.rmtree(gone)
        gone.unlink(missing_ok=True)
        path.stat()  # for its age
        return ""

    return kept_as


@fault("clean", "a run at work removes files and folders while they are listed", "they are left out", "nothing")
def test_what_vanishes_while_it_is_listed_is_left_out(tmp_path: Path) -> None:
    make_files(tmp_path, "folders/a/one", "folders/b/one", "cache/files/md5/ab/1", "cache/files/md5/ab/2")
    listed = folders("worktree", tmp_path / "folders", removing(tmp_path / "folders" / "b"))
    assert [item.name for item in listed] == ["a"]
    listed = cache_items(tmp_path / "cache", {"ab2"}, removing(tmp_path / "cache" / "files" / "md5" / "ab" / "2"))
    assert [item.name for item in listed] == ["ab1"]


def test_what_vanishes_while_a_folder_is_measured_has_no_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "one", "two", "deeper/three")
    lstat = Path.lstat

    def removes_the_others(path: Path) -> os.stat_result:
        for other in tmp_path.iterdir() if path.parent == tmp_path else []:
            if other.is_dir():
                shutil.rmtree(other)
            elif other != path:
                other.unlink()
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", removes_the_others)
    assert folder_size(tmp_path) == len("outs: []")


def test_a_lock_file_that_vanishes_before_it_is_read_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dvc\.lock cannot be read, so nothing of DVC's cache is removed"):
        named_objects([tmp_path / "dvc.lock"])


DUBIOUS = "fatal: detected dubious ownership in repository at '/project'"


@pytest.mark.parametrize(
    ("script", "cause"), [(f'#!/bin/sh\necho "{DUBIOUS}" >&2; exit 128\n', DUBIOUS), ("", "git is not installed")]
)
@fault("clean", "git does not list the branches: the project's folder is another user's, or git is not installed",
       "nothing goes", "exit code 5, git cannot list the branches, and git's reason")  # fmt: skip
def test_where_git_does_not_list_the_branches_nothing_goes(
    script: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert branch_tips(tmp_path) == [], "it is no checkout"
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "git").write_text(script)
        (tmp_path / "git").chmod(0o755)
    assert branch_tips(tmp_path) == []
    made_here = not Path(".git").exists()
    Path(".git").mkdir(exist_ok=True)
    with pytest.raises(
        DataError, match=rf"^git cannot list the branches \({re.escape(cause)}\), so nothing is removed"
    ):
        run_clean(monkeypatch, capsys)
    if made_here:
        Path(".git").rmdir()
    assert versions.bundle_fault(versions.get_version("3")) == ""


@fault(
    "clean",
    "the clock jumps forward by 400 days",
    "no champion and none of its data is removed, nor the newest versions",
    "`--dry-run` lists what would go",
)
@fault(
    "clean",
    "the command is killed on the way",
    "no champion and none of its data is removed",
    "the next run removes the rest",
)
def test_it_removes_what_it_lists_and_no_champion_or_its_data_even_when_it_was_killed_on_the_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(artifacts())
    listed = run_clean(monkeypatch, capsys, "--dry-run")
    assert set(artifacts()) == before, "a dry run changes nothing"
    others = ["fetched copy of version-3-abc", "scores of version-3", "worktree old", "checkpoints of interrupted"]
    assert going(listed) == ["version 3", *others, "2 DVC objects"]
    assert [line for line in listed if "champion before" in line and " version 1" in line]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking_store.client().__class__, "delete_model_version", killed)
        with pytest.raises(KeyboardInterrupt):
            run_clean(monkeypatch, capsys)
    assert versions.bundle_fault(versions.get_version("3")), "its files are gone, its entry is not"
    assert going(run_clean(monkeypatch, capsys)) == going(listed)
    assert going(run_clean(monkeypatch, capsys, "--dry-run")) == []
    assert versions.look_up("3") is None
    for number in ("1", "2", "4", "5"):
        assert versions.bundle_fault(versions.get_version(number)) == ""
        assert restorable(int(number))
    assert aliases.earlier_champion().number == "1"
    assert sorted(path.name for path in Path("data/scores").iterdir()) == [f"version-{n}" for n in (1, 2, 4, 5)]


def test_data_of_the_tip_of_a_branch_stay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=ann", "-c", "user.email=ann@example.org"]
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    run_clean(monkeypatch, capsys)  # what goes in any case
    make_data("data of nobody")
    lock = Path("dvc.lock").read_bytes()
    make_data("data of 5")
    assert going(run_clean(monkeypatch, capsys, "--dry-run")) == ["2 DVC objects"]
    present = Path("dvc.lock").read_bytes()
    git("init", "--quiet", "--initial-branch=trial")
    Path("dvc.lock").write_bytes(lock)
    git("add", "dvc.lock")
    git("commit", "--quiet", "--message=a trial")
    Path("dvc.lock").write_bytes(present)
    assert going(run_clean(monkeypatch, capsys, "--dry-run")) == []
