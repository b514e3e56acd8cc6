"""Put Prefect in order before a worker starts: end dead runs, free their slots, cancel runs that were missed.

    ./run flows.upkeep           # `make serve` does it by itself; elsewhere: before each `prefect worker start`

Prefect alone leaves a run whose worker or machine died `Running` for ever, and starts every run that a machine
missed while it was off, one after the other. Here:

- Dead runs become `Crashed`, which frees their concurrency slot. On a server of this machine alone (a loopback
  address) a run is dead when its process or the worker above it is gone. On a team's server an automation of
  Prefect's decides: no heartbeat for 90 seconds.
- Of the runs of one deployment that were missed, the newest is the catch-up; the older ones are `Cancelled` and
  say so.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import CxrError
from flows.notifications import keep_notifications
from flows.serve import POOL

UNDER_WAY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
AUTOMATION = "crash runs without a heartbeat"
HEARTBEATS_MISSED_AFTER = timedelta(seconds=90)
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Slots:
    """The concurrency slots of one deployment: how many are taken, and by which runs."""

    deployment_id: UUID
    deployment: str
    limit_name: str
    taken: int
    holders: tuple[str, ...]

    @property
    def stale(self) -> bool:
        """Whether more slots are taken than runs are under way: nothing will free these."""
        return self.taken > len(self.holders)


def main() -> int:
    """Put everything in order once and print a line for each change."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--pool", default=POOL, help="work pool (%(default)s)")
    arguments = parser.parse_args()
    if not PREFECT_API_URL.value():
        raise CxrError("PREFECT_API_URL is not set; start `make serve`, or name the server that is to be put in order")
    for line in put_in_order(arguments.pool):
        print(line)
    return 0


def put_in_order(pool: str = POOL) -> list[str]:
    """End dead runs, free stale slots, cancel missed runs; return a line for each.

    To be called while no worker of this machine polls the pool: a run that is just being started has no process yet.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every request
    with get_client(sync_client=True) as client:
        keep_automation(client)
        keep_notifications(client)
        done: list[str] = []
        if on_this_machine(str(PREFECT_API_URL.value())):
            done.extend(_end_dead_runs(client, pool))
            done.extend(_free_stale_slots(client))
        done.extend(_cancel_missed(client, pool))
        return done


def on_this_machine(api: str) -> bool:
    """Say whether the server at `api` can have workers on this machine alone."""
    return urlsplit(api).hostname in _LOOPBACK


def slots_of_deployments(client: SyncPrefectClient) -> list[Slots]:
    """Return the slots of every deployment that limits how many of its runs go on at once."""
    found = []
    for deployment in client.read_deployments():
        if deployment.global_concurrency_limit is None:
            continue
        limit = client.read_global_concurrency_limit_by_name(deployment.global_concurrency_limit.name)
        holders = [run.name for run in runs_in(client, UNDER_WAY) if run.deployment_id == deployment.id]
        found.append(Slots(deployment.id, deployment.name, limit.name, limit.active_slots, tuple(holders)))
    return found


def dead_runs(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    """Return the runs that are under way for the server and have neither a worker nor a process on this machine."""
    alive = {run for run, process in _run_processes() if _worker_above(process)}
    return [run for run in runs_in(client, UNDER_WAY, pool) if run.id not in alive]


def missed_runs(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    """Return the scheduled runs whose time has passed, but for the newest of each deployment."""
    now = datetime.now(UTC)
    due = [
        run
        for run in runs_in(client, (StateType.SCHEDULED,), pool)
        if run.auto_scheduled and run.expected_start_time is not None and run.expected_start_time < now
    ]
    newest = {run.deployment_id: run.id for run in sorted(due, key=_expected)}
    return [run for run in due if run.id != newest[run.deployment_id]]


def runs_in(client: SyncPrefectClient, states: Iterable[StateType], pool: str | None = None) -> list[FlowRun]:
    """Return the runs that are in one of `states`, of `pool` or, without one, of all."""
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])) if pool else None,
    )


def keep_automation(client: SyncPrefectClient) -> None:
    """Make sure that the server ends runs whose heartbeat stopped, on any machine."""
    if client.read_automations_by_name(AUTOMATION):
        return
    trigger = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},  # a run that ends, pauses or waits says so; a dead one says nothing
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=HEARTBEATS_MISSED_AFTER,
    )
    seconds = HEARTBEATS_MISSED_AFTER.total_seconds()
    action = ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {seconds:.0f} s")
    client.create_automation(AutomationCore(name=AUTOMATION, trigger=trigger, actions=[action]))


def _end_dead_runs(client: SyncPrefectClient, pool: str) -> Iterator[str]:
    for _, process in _run_processes():
        if not _worker_above(process):
            _kill_group(process)
    for run in dead_runs(client, pool):
        message = "its worker or its machine died; the next run goes on from the last finished step"
        client.set_flow_run_state(run.id, Crashed(message=message), force=True)
        yield f"{run.name}: ended, {message}"


def _free_stale_slots(client: SyncPrefectClient) -> Iterator[str]:
    for slots in slots_of_deployments(client):
        if slots.stale:
            held = len(slots.holders)
            client.update_global_concurrency_limit(slots.limit_name, GlobalConcurrencyLimitUpdate(active_slots=held))
            yield f"{slots.deployment}: {slots.taken - held} concurrency slot freed that no run held"


def _cancel_missed(client: SyncPrefectClient, pool: str) -> Iterator[str]:
    for run in missed_runs(client, pool):
        message = f"missed at {_expected(run):%Y-%m-%d %H:%M} UTC; one later run catches up for all that were missed"
        client.set_flow_run_state(run.id, Cancelled(message=message), force=True)
        yield f"{run.name}: cancelled, {message}"


def _expected(run: FlowRun) -> datetime:
    return run.expected_start_time or datetime.min.replace(tzinfo=UTC)


def _run_processes() -> Iterator[tuple[UUID, psutil.Process]]:
    """Yield the leading process of each deployment run of this server on this machine."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            leads = os.getpgid(process.pid) == process.pid
        except (psutil.Error, ProcessLookupError):
            continue  # gone by now, or another user's
        if leads and RUN_VARIABLE in environment and environment.get("PREFECT_API_URL") == PREFECT_API_URL.value():
            yield UUID(environment[RUN_VARIABLE]), process


def _worker_above(process: psutil.Process) -> bool:
    try:
        parent = process.parent()
        return parent is not None and {"worker", "start"} <= set(parent.cmdline())
    except psutil.Error:
        return False


def _kill_group(process: psutil.Process) -> None:
    """Kill a run; what it supervises (flows.supervised) stops by itself."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    except (ProcessLookupError, psutil.Error):
        return


if __name__ == "__main__":
    run_command(main)
