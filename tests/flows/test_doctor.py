"""The doctor finds what is really broken, says what to do, and finds nothing where nothing is."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed, Running, Scheduled

from cxr.common.findings import Finding
from cxr.common.params import override
from cxr.registry import tracking_store, versions
from cxr.registry.champion import aliases
from flows.doctor import (
    check_disk,
    check_locks,
    check_prefect,
    check_remote,
    check_s3,
    check_tracking,
    check_versions,
)
from flows.doctor_prefect import check_server
from flows.serve import POOL
from tests.support.projects.registry_project import enter_project, register, write_model
from tests.support.services.servers import free_ports


def only(findings: Iterator[Finding], check: str) -> Finding:
    found = [finding for finding in findings if finding.check == check]
    assert len(found) == 1, found
    return found[0]


def test_a_package_of_another_version_than_the_lock_is_named(tiny: Path) -> None:
    assert only(check_versions(tiny), "packages").level == "ok"
    lock = tiny / "uv.lock"
    have = psutil.__version__
    before, entry, after = lock.read_text().partition('name = "psutil"\nversion = ')
    lock.write_text(before + entry + after.replace(f'"{have}"', '"1.2.3"', 1))
    finding = only(check_versions(tiny), "packages")
    assert (finding.level, finding.message) == ("FAILED", f"psutil {have} instead of 1.2.3")
    assert finding.advice == "remove .venv, then `make setup`"


def test_another_python_is_named(tiny: Path) -> None:
    project = tiny / "pyproject.toml"
    text = project.read_text()
    required = next(line for line in text.splitlines() if line.startswith("requires-python"))
    project.write_text(text.replace(required, 'requires-python = ">=4"'))
    assert only(check_versions(tiny), "Python").level == "FAILED"


def test_a_store_that_is_not_there_yet_is_no_failure_and_a_dead_one_is(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (tracking_store.STORE_VARIABLE, tracking_store.FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    finding = only(check_tracking(tiny), "tracking store")
    assert (finding.level, finding.advice) == ("warning", "make run")
    monkeypatch.setenv(tracking_store.STORE_VARIABLE, f"http://me:secret@127.0.0.1:{free_ports(1)[0]}")
    finding = only(check_tracking(tiny), "tracking store")
    assert finding.level == "FAILED"
    assert "secret" not in finding.message
    assert finding.advice.startswith("start that server")


def test_a_champion_whose_files_were_changed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    assert only(check_tracking(tmp_path), "champion").level == "warning"
    write_model()
    version = register()
    aliases.move_champion(version.number, instead_of="", kind="promote", approved_by="ann", reason="test")
    assert only(check_tracking(tmp_path), "champion").level == "ok"
    stored = next((tmp_path / "mlruns" / "artifacts").rglob("model.safetensors"))
    stored.write_bytes(b"other weights")
    finding = only(check_tracking(tmp_path), "champion")
    assert finding.level == "FAILED"
    assert "model.safetensors" in finding.message
    assert "./run rollback" in finding.advice


def test_a_champion_set_by_hand_and_a_changed_audit_log_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    for seed in (1, 2):
        write_model(seed=seed)
        register()
    aliases.move_champion("1", instead_of="", kind="promote", approved_by="ann", reason="test")
    assert only(check_tracking(tmp_path), "audit log").level == "ok"
    client = tracking_store.client()
    client.set_registered_model_alias(versions.MODEL, "champion", "2")
    finding = only(check_tracking(tmp_path), "audit log")
    assert (finding.level, "version 2" in finding.message) == ("FAILED", True)
    assert "./run rollback" in finding.advice
    client.set_registered_model_alias(versions.MODEL, "champion", "1")
    client.delete_registered_model_tag(versions.MODEL, "audit_log.000001")
    finding = only(check_tracking(tmp_path), "audit log")
    assert (finding.level, "entry 1 is missing" in finding.message) == ("FAILED", True)


def test_a_remote_of_dvc_that_is_gone_is_found(tiny: Path) -> None:
    assert only(check_remote(tiny), "DVC's remote").level == "ok"
    store = tiny.parent / "store" / "images"
    command = [sys.executable, "-m", "dvc", "remote", "add", "--quiet", "--default", "team", str(store)]
    subprocess.run(command, check=True)
    finding = only(check_remote(tiny), "DVC's remote")
    assert finding.level == "FAILED"
    assert "dvc remote modify" in finding.advice
    store.mkdir(parents=True)
    assert only(check_remote(tiny), "DVC's remote").level == "ok"


def test_a_bucket_that_does_not_answer_is_found(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(check_s3(tiny)) == []
    override(tiny / "params.yaml", {"ingest.sources.0.location": "s3://images/kermany"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    finding = only(check_s3(tiny), "S3")
    assert finding.level == "FAILED"
    assert "AWS_ENDPOINT_URL" in finding.advice
    assert "planted-secret" not in finding.message


def test_too_little_disk_for_the_next_rebuild_is_found(tiny: Path) -> None:
    assert only(check_disk(tiny), "disk").level != "FAILED"
    size = 10**18
    (tiny / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  ingest:\n    outs:\n    - {{path: a, size: {size}}}\n")
    finding = only(check_disk(tiny), "disk")
    assert finding.level == "FAILED"
    assert "./run clean" in finding.advice


def test_locks_of_dvc_that_block_for_ever_are_found_and_those_in_use_are_not(tiny: Path) -> None:
    record = tiny / ".dvc" / "tmp" / "rwlock"
    record.parent.mkdir(exist_ok=True)
    assert only(check_locks(tiny), "DVC's locks").message == "none held"
    record.touch()
    finding = only(check_locks(tiny), "DVC's locks")
    assert (finding.level, "left unreadable" in finding.message) == ("FAILED", True)
    assert "rm .dvc/tmp/rwlock" in finding.advice

    def hold(pid: int) -> None:
        record.write_text(json.dumps({"write": {"data/raw": {"pid": pid, "cmd": "dvc repro"}}, "read": {}}))

    hold(os.getpid())  # lives, and is no DVC command
    assert only(check_locks(tiny), "DVC's locks").level == "FAILED"
    command = [sys.executable, "-c", "input()", "dvc", "repro"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as busy:
        hold(busy.pid)
        finding = only(check_locks(tiny), "DVC's locks")
        assert finding.level == "ok"
        assert str(busy.pid) in finding.message
        busy.communicate(b"\n")
    assert only(check_locks(tiny), "DVC's locks").level == "ok"


def test_without_a_server_there_is_a_warning_and_a_dead_one_is_a_failure(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    finding = only(check_prefect(tiny), "Prefect")
    assert (finding.level, finding.advice) == ("warning", "make serve")
    finding = only(check_server(tiny, f"http://127.0.0.1:{free_ports(1)[0]}/api"), "Prefect")
    assert finding.level == "FAILED"


@flow
def idle() -> None:
    """Stand for a flow of ours."""


@pytest.fixture
def client(standing_server: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: standing_server["PREFECT_API_URL"]}), get_client(sync_client=True) as one:
        one.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
        yield one


@pytest.fixture
def deployment(client: SyncPrefectClient, tiny: Path) -> Iterator[UUID]:
    (tiny / "prefect.yaml").write_text(
        "deployments:\n- {name: one, entrypoint: 'f.py:idle', schedules: [{cron: '0 3 * * *'}]}\n"
    )
    made = client.create_deployment(client.create_flow(idle), name="one", work_pool_name=POOL, concurrency_limit=1)
    yield made
    client.delete_deployment(made)


def look(client: SyncPrefectClient, root: Path, check: str) -> Finding:
    return only(check_server(root, str(client.api_url).rstrip("/")), check)


def test_a_server_without_worker_and_deployment_says_both(client: SyncPrefectClient, tiny: Path) -> None:
    (tiny / "prefect.yaml").write_text("deployments:\n- {name: nowhere, entrypoint: 'f.py:idle'}\n")
    finding = look(client, tiny, "worker")
    assert finding.level == "FAILED"
    assert finding.advice.startswith("make serve")
    finding = look(client, tiny, "idle/nowhere")
    assert (finding.level, finding.advice) == ("FAILED", "./run prefect --no-prompt deploy --all")


def test_a_schedule_that_is_missing_or_paused_is_found(client: SyncPrefectClient, deployment: UUID, tiny: Path) -> None:
    assert look(client, tiny, "idle/one").level == "FAILED"
    client.create_deployment_schedules(deployment, [(CronSchedule(cron="0 3 * * *"), True)])
    assert look(client, tiny, "idle/one").message == "scheduled: 0 3 * * *"
    client.pause_deployment(deployment)
    finding = look(client, tiny, "idle/one")
    assert (finding.level, finding.advice) == ("warning", "./run prefect deployment resume idle/one")


def test_a_late_run_is_told_with_who_holds_the_slot(client: SyncPrefectClient, deployment: UUID, tiny: Path) -> None:
    due = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(minutes=30))
    late = client.create_flow_run_from_deployment(deployment, state=due)
    finding = look(client, tiny, "late runs")
    assert finding.level == "FAILED"
    assert f"{late.name} is due since 30 minutes ago, and no worker takes it" in finding.message
    holder = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(holder.id, Running(), force=True)
    finding = look(client, tiny, "late runs")
    assert finding.level == "warning"
    assert f"waits for {holder.name}, which holds the slot" in finding.message
    assert look(client, tiny, "stuck runs").message.startswith(f"{holder.name} is Running for the server")


def test_a_last_run_that_failed_is_red_until_a_later_one_ends_well(
    client: SyncPrefectClient, deployment: UUID, tiny: Path
) -> None:
    assert look(client, tiny, "last run of idle/one").message == "none yet"
    for state in (Failed(message="no champion\nmore"), Cancelled(message="missed")):
        run = client.create_flow_run_from_deployment(deployment)
        client.set_flow_run_state(run.id, Running(), force=True)
        client.set_flow_run_state(run.id, state, force=True)
    finding = look(client, tiny, "last run of idle/one")
    assert finding.level == "FAILED"
    assert finding.message.endswith("minutes ago: no champion")
    assert "prefect flow-run logs" in finding.advice
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, Completed(), force=True)
    assert look(client, tiny, "last run of idle/one").level == "ok"


def test_a_slot_without_a_run_is_found(client: SyncPrefectClient, deployment: UUID, tiny: Path) -> None:
    assert look(client, tiny, "concurrency slots").level == "ok"
    limit = client.read_deployment(deployment).global_concurrency_limit
    assert limit is not None
    client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=1))
    finding = look(client, tiny, "concurrency slots")
    assert (finding.level, finding.message) == ("FAILED", "one: 1 taken by no run at all")
    assert "./run flows.upkeep" in finding.advice
