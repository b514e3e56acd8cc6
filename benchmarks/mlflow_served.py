"""`mlflow models serve` of a registered version, to compare with."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

from cxr.common.errors import CxrError
from cxr.registry import tracking_store
from cxr.registry.versions import MODEL

_STARTS_WITHIN_SECONDS = 300

Ask = Callable[[list[bytes]], list[dict[str, object]]]


@contextmanager
def served(number: str, *, on: bool = True) -> Iterator[Ask | None]:
    """Serve a version on a free local port; yield a function that classifies images there, None where not `on`."""
    if not on:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}/{number}"]
    settings = {
        tracking_store.STORE_VARIABLE: tracking_store.tracking_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # MLflow calls uvicorn
    }
    server = subprocess.Popen(
        [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait(server, port)
        yield lambda images: _ask(port, images)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait(60)


def _wait(server: "subprocess.Popen[bytes]", port: int) -> None:
    ends = time.monotonic() + _STARTS_WITHIN_SECONDS
    while time.monotonic() < ends and server.poll() is None:
        with suppress(requests.ConnectionError):
            if requests.get(f"http://127.0.0.1:{port}/ping", timeout=60).ok:
                return
        time.sleep(1)
    raise CxrError(f"mlflow models serve did not answer on port {port}; run its command by hand to see why")


def _ask(port: int, images: list[bytes]) -> list[dict[str, object]]:
    rows = [[base64.b64encode(image).decode()] for image in images]
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}})
    done = requests.post(
        f"http://127.0.0.1:{port}/invocations", data=body, headers={"Content-Type": "application/json"}, timeout=300
    )
    done.raise_for_status()
    return list(done.json()["predictions"])
