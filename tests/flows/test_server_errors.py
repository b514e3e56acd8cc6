"""A Prefect server that is away or refuses the account: one line, whichever flow was started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services.servers import free_ports, serve_web

FLOW = """
from prefect import flow
from flows.server_errors import run_flow_command

@flow
def nothing() -> None: ...

run_flow_command(nothing)
"""


def start_flow(api: str, folder: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_API_URL": api,
        "PREFECT_API_AUTH_STRING": "admin:wrong-guess",
        "PREFECT_HOME": str(folder),
        "PREFECT_CLIENT_MAX_RETRIES": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **settings,
    }
    command = [sys.executable, "-c", FLOW]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("away", [True, False])
def test_it_is_one_line_that_says_what_to_set(away: bool, tmp_path: Path) -> None:
    with serve_web() as web:
        web.authorization = "Basic other"
        api = f"http://127.0.0.1:{free_ports(1)[0]}/api" if away else f"{web.address}/api"
        done = start_flow(api, tmp_path)
    assert done.returncode == 9
    said = done.stderr.splitlines()
    assert said[-1].startswith(f"error: Prefect's server {api} ")
    assert ("PREFECT_API_URL" if away else "PREFECT_API_AUTH_STRING") in said[-1]
    assert "Traceback" not in done.stderr
    assert "wrong-guess" not in done.stdout + done.stderr
