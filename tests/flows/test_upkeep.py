"""What Prefect leaves undone when a worker or a machine dies, on a real server with its scheduler."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from unittest.mock import Mock
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate, WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Running

from flows import upkeep
from flows.upkeep import AUTOMATION, Slots, missed_runs, on_this_machine, put_in_order, runs_in, slots_of_deployments
from tests.support.faults import fault
from tests.support.waiting import wait_for

POOL = "upkeep"


@flow
def idle() -> None:
    """Stand for a flow of ours."""


@pytest.fixture
def client(standing_server: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: standing_server["PREFECT_API_URL"]}), get_client(sync_client=True) as one:
        yield one


@pytest.fixture
def deployment(client: SyncPrefectClient) -> Iterator[UUID]:
    made = client.create_deployment(
        client.create_flow(idle), name="one", work_pool_name=pool(client), concurrency_limit=1, paused=False
    )
    yield made
    client.delete_deployment(made)


def pool(client: SyncPrefectClient) -> str:
    client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
    return POOL


def run_without_a_process(client: SyncPrefectClient, deployment: UUID) -> FlowRun:
    made = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(made.id, Running(), force=True)
    return client.read_flow_run(made.id)


def slots_of(client: SyncPrefectClient, deployment: UUID) -> Slots:
    return next(slots for slots in slots_of_deployments(client) if slots.deployment_id == deployment)


@fault("make serve", "a worker died", "its runs become Crashed", "the reason on the run's page")
def test_a_run_whose_worker_died_ends_as_crashed_and_says_so(client: SyncPrefectClient, deployment: UUID) -> None:
    run = run_without_a_process(client, deployment)
    assert [line.split(":")[0] for line in put_in_order(POOL)] == [run.name]
    ended = client.read_flow_run(run.id)
    assert ended.state_type == StateType.CRASHED
    assert ended.state is not None
    assert "its worker or its machine died" in str(ended.state.message)
    assert put_in_order(POOL) == []


def test_a_slot_that_no_run_holds_is_freed(client: SyncPrefectClient, deployment: UUID) -> None:
    name = slots_of(client, deployment).limit_name
    client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=1))
    assert slots_of(client, deployment).stale
    assert put_in_order(POOL) == ["one: 1 concurrency slot freed that no run held"]
    assert slots_of(client, deployment).taken == 0


@fault("make serve", "the clock jumps back an hour, or forward a day, while the worker is down",
       "no run counts as missed before its time; of those that do one catches up",
       "the others are Cancelled with the reason")  # fmt: skip
def test_of_the_runs_that_were_missed_the_newest_catches_up_and_the_others_say_why(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.create_deployment(client.create_flow(idle), name="often", work_pool_name=pool(client), paused=False)
    every_second = IntervalSchedule(interval=timedelta(seconds=1), anchor_date=datetime.now(UTC))
    client.create_deployment_schedules(made, [(every_second, True)])
    wait_for(lambda: len(missed_runs(client, POOL)) >= 3)
    client.pause_deployment(made)
    with clock_moved(monkeypatch, hours=-1):
        assert missed_runs(client, POOL) == []
    with clock_moved(monkeypatch, hours=24):  # the scheduler may still add runs that it planned before the pause
        wait_for(lambda: len(missed_runs(client, POOL)) == len(scheduled_runs(client)) - 1)
    before = datetime.now(UTC)
    done = put_in_order(POOL)
    assert len(done) >= 3
    late = [run for run in scheduled_runs(client) if run.expected_start_time <= before]
    assert len(late) <= 1
    cancelled = runs_in(client, (StateType.CANCELLED,), POOL)
    assert len(cancelled) == len(done)
    assert all("one later run catches up" in str(run.state.message) for run in cancelled if run.state)
    client.delete_deployment(made)


@contextmanager
def clock_moved(monkeypatch: pytest.MonkeyPatch, *, hours: int) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(upkeep, "datetime", Mock(now=lambda zone: datetime.now(zone) + timedelta(hours=hours)))
        yield


def scheduled_runs(client: SyncPrefectClient) -> list[FlowRun]:
    return runs_in(client, (StateType.SCHEDULED,), POOL)


def test_the_server_is_told_once_to_end_runs_without_a_heartbeat(client: SyncPrefectClient) -> None:
    put_in_order(POOL)
    put_in_order(POOL)
    found = client.read_automations_by_name(AUTOMATION)
    assert [automation.enabled for automation in found] == [True]


@pytest.mark.parametrize(
    ("api", "here"),
    [("http://127.0.0.1:4200/api", True), ("http://localhost:4200/api", True), ("https://prefect.team/api", False)],
)
def test_only_a_loopback_server_is_taken_for_this_machines_own(api: str, here: bool) -> None:
    assert on_this_machine(api) is here
