"""Real Prefect servers on loopback, as a team or `make serve` runs them."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.services.servers import free_ports, running


def clean_environment(**given: str) -> dict[str, str]:
    """Return the environment without the settings of this session, and with those `given`."""
    ours = ("PREFECT_", "MLFLOW_", "CXR_", "DVC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1", **given}


@contextlib.contextmanager
def serve_prefect(folder: Path) -> Iterator[dict[str, str]]:
    """Serve Prefect with its scheduler on a free port; yields the environment that leads to it."""
    port = free_ports(1)[0]
    environment = clean_environment(
        PREFECT_HOME=str(folder / "prefect"),
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2",
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    health = f"{environment['PREFECT_API_URL']}/health"
    with running(command, environment, log=folder / "server.log", answers=lambda: httpx.get(health).text == "true"):
        yield environment
