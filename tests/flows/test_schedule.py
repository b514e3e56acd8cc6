"""The deployments of prefect.yaml in a server as a team runs it: their schedules really yield runs.

With sqlalchemy 2.1 the scheduler failed in every loop and no run was ever created; only the server's log said so.
"""

import json
import subprocess
import sys
from typing import Any

import httpx

from tests.support.project import PROJECT
from tests.support.waiting import wait_for

# deployment -> scheduled or on demand, and what a second run does while the first goes on
WANTED = {
    "rebuild/weekly": (True, "ENQUEUE"),
    "score/nightly": (True, "CANCEL_NEW"),
    "monitor/daily": (True, "CANCEL_NEW"),
    "promote/on-demand": (False, "ENQUEUE"),
    "judge/on-demand": (False, "ENQUEUE"),
}


def prefect(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    subprocess.run(command, cwd=PROJECT, env={**environment, "CXR_POOL": "local"}, check=True)


def test_the_deployments_are_there_with_their_policies_and_the_scheduled_ones_yield_runs(
    standing_server: dict[str, str],
) -> None:
    prefect(standing_server, "work-pool", "create", "local", "--type", "process", "--overwrite")
    prefect(standing_server, "deploy", "--all")
    api = standing_server["PREFECT_API_URL"]
    deployments = {name: httpx.get(f"{api}/deployments/name/{name}", timeout=60).json() for name in WANTED}
    for name, (scheduled, collision) in WANTED.items():
        found = deployments[name]
        assert bool(found["schedules"]) == scheduled, name
        assert found["global_concurrency_limit"]["limit"] == 1, name
        assert found["concurrency_options"]["collision_strategy"] == collision, name
        pull = found["pull_steps"][0]["prefect.deployments.steps.set_working_directory"]
        assert pull["directory"] == str(PROJECT)
    assert json.dumps(deployments["rebuild/weekly"]["parameters"]) == json.dumps(
        {"overrides": None, "promote": True, "keep": 5}
    )
    expected = {deployments[name]["id"] for name, (scheduled, _) in WANTED.items() if scheduled}

    def planned() -> set[Any]:
        wanted = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        answer: list[Any] = httpx.post(f"{api}/flow_runs/filter", json=wanted, timeout=60).json()
        return {run["deployment_id"] for run in answer} & set(ids)

    ids = {found["id"] for found in deployments.values()}
    wait_for(lambda: planned() == expected)
