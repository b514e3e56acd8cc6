"""Prefect's part of `make doctor`: server, worker, deployments, their last runs, late and stuck runs, slots."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import requests
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from ruamel.yaml import YAML

from cxr.common.files import read_json
from cxr.common.findings import Finding, failed, ok, warning
from flows.serve import POOL, STATE
from flows.upkeep import UNDER_WAY, dead_runs, on_this_machine, runs_in, slots_of_deployments

LATE_AFTER = timedelta(minutes=2)
_ORDER = "end `make serve` with Ctrl-C and start it again; elsewhere stop the worker, `./run flows.upkeep`, start it"


def check_server(root: Path, api: str) -> Iterator[Finding]:
    """Check the server at `api`; where it does not answer that is all there is to say."""
    try:
        answers = requests.get(f"{api}/health", timeout=10).ok
    except requests.RequestException:
        answers = False
    if not answers:
        yield failed("Prefect", f"{api} does not answer", "make serve; or set PREFECT_API_URL to a server that runs")
        return
    yield ok("Prefect", f"{api} answers")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with get_client(sync_client=True) as client:
        polled = _polled(client)
        yield polled
        yield from _deployments(client, root)
        yield from _last_runs(client, root)
        yield from _late(client, polled.level == "ok")
        yield from _stuck(client, api)
        yield from _slots(client)
    yield from _watch(root)


def _polled(client: SyncPrefectClient) -> Finding:
    try:
        workers = client.read_workers_for_work_pool(POOL)
    except ObjectNotFound:
        return failed("worker", f"the server has no work pool {POOL}", "make serve")
    online = [worker for worker in workers if worker.status == WorkerStatus.ONLINE]
    if online:
        return ok("worker", f"{online[0].name} polls the pool {POOL}")
    last = max((worker.last_heartbeat_time for worker in workers if worker.last_heartbeat_time), default=None)
    heard = f"the last was heard of {_ago(last)}" if last else "there never was one"
    return failed(
        "worker", f"no worker polls the pool {POOL}; {heard}", f"make serve, or `./run prefect worker start -p {POOL}`"
    )


def _wanted(root: Path) -> dict[str, dict[str, Any]]:
    """Return the deployments of prefect.yaml by `flow/deployment`."""
    wanted = YAML(typ="safe").load(root / "prefect.yaml")["deployments"]
    return {f"{one['entrypoint'].rpartition(':')[2]}/{one['name']}": one for one in wanted}


def _deployments(client: SyncPrefectClient, root: Path) -> Iterator[Finding]:
    for name, wanted in _wanted(root).items():
        try:
            deployment = client.read_deployment_by_name(name)
        except ObjectNotFound:
            yield failed(name, "the server does not know this deployment", "./run prefect --no-prompt deploy --all")
            continue
        off = [schedule for schedule in deployment.schedules if not schedule.active]
        if deployment.paused or off:
            yield warning(
                name, "its schedule is paused: no run will start by itself", f"./run prefect deployment resume {name}"
            )
        elif wanted.get("schedules") and not deployment.schedules:
            yield failed(
                name, "it has no schedule, and prefect.yaml gives one", "./run prefect --no-prompt deploy --all"
            )
        else:
            yield ok(name, _schedule(deployment.schedules))


def _last_runs(client: SyncPrefectClient, root: Path) -> Iterator[Finding]:
    """Say how the last run of each deployment ended; one that was cancelled or skipped says nothing."""
    ends = FlowRunFilterStateType(any_=[StateType.COMPLETED, StateType.FAILED, StateType.CRASHED])
    for name in _wanted(root):
        with suppress(ObjectNotFound):
            of_it = FlowRunFilterDeploymentId(any_=[client.read_deployment_by_name(name).id])
            found = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(deployment_id=of_it, state=FlowRunFilterState(type=ends)),
                sort=FlowRunSort.END_TIME_DESC,
                limit=1,
            )
            yield _last_run(f"last run of {name}", found[0]) if found else ok(f"last run of {name}", "none yet")


def _last_run(check: str, run: FlowRun) -> Finding:
    ended = f"{run.name} ended as {run.state_name} {_ago(run.end_time)}"
    if run.state_type == StateType.COMPLETED:
        return ok(check, ended)
    lines = str(run.state.message if run.state else "").splitlines()
    message = f"{ended}: {lines[0]}" if lines else ended
    return failed(check, message, f"fix the cause, then run it again; its log: ./run prefect flow-run logs {run.id}")


def _schedule(schedules: list[Any]) -> str:
    crons = [str(getattr(schedule.schedule, "cron", schedule.schedule)) for schedule in schedules]
    return f"scheduled: {', '.join(crons)}" if crons else "on demand"


def _late(client: SyncPrefectClient, polled: bool) -> Iterator[Finding]:
    now = datetime.now(UTC)
    due = [
        run
        for run in runs_in(client, (StateType.SCHEDULED,), POOL)
        if run.expected_start_time and run.expected_start_time < now - LATE_AFTER
    ]
    if not due:
        yield ok("late runs", "none")
    holders: dict[UUID | None, tuple[str, ...]] = {
        slots.deployment_id: slots.holders for slots in slots_of_deployments(client)
    }
    for run in due:
        held_by = ", ".join(holders.get(run.deployment_id, ()))
        waits = f"{run.name} is due since {_ago(run.expected_start_time)}"
        if held_by:
            yield warning(
                "late runs", f"{waits} and waits for {held_by}, which holds the slot", "wait, or cancel that one"
            )
        elif not polled:
            yield failed("late runs", f"{waits}, and no worker takes it", "start the worker: make serve")
        else:
            yield failed("late runs", f"{waits}, and nothing holds the slot", _ORDER)


def _stuck(client: SyncPrefectClient, api: str) -> Iterator[Finding]:
    if on_this_machine(api):
        dead = [
            run for run in dead_runs(client, POOL) if _since(run) > LATE_AFTER or run.state_type != StateType.PENDING
        ]
        for run in dead:
            message = f"{run.name} is {run.state_name} for the server, and has no process or no worker here"
            yield failed("stuck runs", message, _ORDER)
        if not dead:
            under_way = [run.name for run in runs_in(client, UNDER_WAY, POOL)]
            yield ok("stuck runs", f"none; under way: {', '.join(under_way) or 'nothing'}")
    else:
        yield ok("stuck runs", "the server ends runs without a heartbeat by itself")


def _slots(client: SyncPrefectClient) -> Iterator[Finding]:
    stale = [slots for slots in slots_of_deployments(client) if slots.stale]
    for slots in stale:
        message = f"{slots.deployment}: {slots.taken} taken by {', '.join(slots.holders) or 'no run at all'}"
        yield failed("concurrency slots", message, _ORDER)
    if not stale:
        yield ok("concurrency slots", "none is held without a run")


def _watch(root: Path) -> Iterator[Finding]:
    """Ask the watch of `make serve` how it goes; elsewhere nothing is known of one."""
    state = root / STATE / "serve.json"
    address = read_json(state).get("watch") if state.is_file() else None
    if not address:
        return
    try:
        health = requests.get(f"{address}/health", timeout=10).json()
    except (requests.RequestException, ValueError):
        yield failed(
            "watch", "it does not answer: aliases moved in MLflow are not judged", "see .prefect/logs/watch.log"
        )
        return
    if health["problem"]:
        yield failed("watch", health["problem"], "do what the message says; it looks again by itself")
    else:
        how = "MLflow's server tells it of moves" if health["subscribed"] else "looks every 20 s, without webhooks"
        yield ok("watch", f"aliases moved in MLflow are judged; {how}")


def _since(run: FlowRun) -> timedelta:
    return datetime.now(UTC) - (run.state.timestamp if run.state else datetime.now(UTC))


def _ago(moment: datetime | None) -> str:
    return f"{(datetime.now(UTC) - moment).total_seconds() / 60:.0f} minutes ago" if moment else "never"
