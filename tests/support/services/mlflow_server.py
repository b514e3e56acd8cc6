"""MLflow's own server on loopback, over a store of the test."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from tests.support.services.prefect_servers import clean_environment
from tests.support.services.servers import free_ports, running


@contextlib.contextmanager
def serve_mlflow(
    folder: Path, environment: Mapping[str, str] | None = None, *, store: str | None = None
) -> Iterator[str]:
    """Serve the store in `folder` (mlflow.db, or the database `store`; artifacts); yields the address.

    This is the application that `mlflow server` starts, set up as it does it, in one process in place of two or three
    that each import MLflow. The command itself is run by `make serve` and infra/mlflow.sh, whose tests start it.
    """
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, "-m", "uvicorn", "--port", address.rpartition(":")[2], "mlflow.server.fastapi_app:app"]
    settings = clean_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true") | {
        "_MLFLOW_SERVER_FILE_STORE": store or f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{folder}/artifacts",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        **(environment or {}),
    }
    with running(
        command, settings, log=folder / "server.log", answers=lambda: httpx.get(f"{address}/health").text == "OK"
    ):
        yield address
