"""The deployment of prefect.yaml in a server as a team runs it: its schedule really yields runs.

With sqlalchemy 2.1 the scheduler failed in every loop and no run was ever created; only the server's log said so.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def standing_server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Prefect server as a team runs it, with its scheduler, on a free loopback port; yields its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {
        **kept,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "DO_NOT_TRACK": "true",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "server.log"
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as server:
        try:
            wait_for(lambda: httpx.get(f"{environment['PREFECT_API_URL']}/health").text == "true", log)
            yield environment
        finally:
            server.terminate()


def wait_for(condition: Any, log: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"waited for {seconds} s in vain; the server said: {log.read_text()[-2000:]}")


def prefect(environment: dict[str, str], *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "prefect", *arguments], cwd=PROJECT, env=environment, check=True)


def test_the_scheduled_deployment_yields_runs_in_a_standing_server(
    standing_server: dict[str, str], tmp_path: Path
) -> None:
    prefect(standing_server, "work-pool", "create", "local", "--type", "process")
    prefect(standing_server, "--no-prompt", "deploy", "--all")
    api = standing_server["PREFECT_API_URL"]
    wanted = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}

    def scheduled() -> list[Any]:
        answer: list[Any] = httpx.post(f"{api}/flow_runs/filter", json=wanted).json()
        return answer

    wait_for(scheduled, tmp_path / "server.log")
    deployment = httpx.get(f"{api}/deployments/name/rebuild/weekly").json()
    assert {run["deployment_id"] for run in scheduled()} == {deployment["id"]}
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    pull = deployment["pull_steps"][0]["prefect.deployments.steps.set_working_directory"]
    assert pull["directory"] == str(PROJECT)
    assert json.dumps(deployment["parameters"]) == json.dumps({"overrides": None, "promote": True, "keep": 5})
