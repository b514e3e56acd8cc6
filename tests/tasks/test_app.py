"""`./run app`: the web app as a process with a registry."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from cxr.common.errors import RegistryError
from cxr.common.params import override, read_params
from cxr.registry.champion import aliases
from tasks import app
from tests.support.faults import fault
from tests.support.project import PROJECT
from tests.support.projects.registry_project import call, enter_project
from tests.support.services.webapp_server import BYTES, IMAGE, Process, register_champion, serve_process
from tests.support.waiting import wait_for

PLANTED = "Sorrowful-Jane"


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    override(Path("params.yaml"), {"app.champion_poll_s": 0.2})


def test_a_registry_without_a_champion_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match="champion"):
        call(monkeypatch, app.main)


def test_the_queue_must_hold_one_image() -> None:
    with pytest.raises(Exception, match="max_queued_mb"):
        override(Path("params.yaml"), {"app.max_queued_mb": 1.0})
    assert read_params(Path("params.yaml")).app.max_queued_mb > 1


class Clients:
    """Clients that send requests without a pause, and the responses."""

    def __init__(self, served: Process, count: int) -> None:
        self.responses: list[tuple[int, str]] = []
        self.ended = threading.Event()
        self.address = served.address
        self.threads = [threading.Thread(target=self._send) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _send(self) -> None:
        with httpx.Client(timeout=120) as client:
            while not self.ended.is_set():
                response = client.post(
                    f"{self.address}/predict", params={"heat": "true", "name": PLANTED}, content=IMAGE, headers=BYTES
                )
                self.responses.append((response.status_code, response.json().get("model_version", "")))

    def end(self) -> list[tuple[int, str]]:
        """Stop sending and return all responses."""
        self.ended.set()
        for thread in self.threads:
            thread.join()
        return self.responses

    def versions(self) -> set[str]:
        """Return the versions that have answered so far."""
        return {version for _, version in self.responses}


@fault("web app", "SIGTERM", "it ends, and its decoders with it", "exit code 0")
@fault("web app", "a new champion is damaged", "the earlier one keeps answering", "the log says why")
def test_a_new_champion_takes_over_under_load_without_a_dropped_request_and_a_damaged_one_does_not() -> None:
    """The champion moves to a good version, to a damaged one and back; then the registry fails."""
    first = register_champion(1)
    with serve_process() as served:
        clients = Clients(served, 3)
        wait_for(lambda: "1" in clients.versions())
        second = register_champion(2, instead_of=first.number)
        wait_for(lambda: second.number in clients.versions())

        damaged = register_champion(3, instead_of=second.number, damaged=True)
        wait_for(lambda: f"version {damaged.number} cannot be used" in served.log.read_text())
        answered = len(clients.responses)
        wait_for(lambda: len(clients.responses) > answered + 5)

        aliases.move_champion(
            first.number, instead_of=damaged.number, kind="rollback", approved_by="ann", reason="test"
        )
        count = len(clients.responses)
        wait_for(lambda: "1" in {version for _, version in clients.responses[count:]})
        Path("mlruns/mlflow.db").rename("mlruns/moved.db")
        Path("mlruns/mlflow.db").mkdir()  # a store that cannot be opened
        wait_for(lambda: "stays in use" in served.log.read_text().splitlines()[-1])
        count = len(clients.responses)
        wait_for(lambda: len(clients.responses) > count + 5)
        responses = clients.end()
        metrics = httpx.get(f"{served.address}/metrics", timeout=60).text
        decoders = psutil.Process(served.process.pid).children()
        assert served.end() == 0
        assert decoders
        assert psutil.wait_procs(decoders, timeout=120)[1] == []
        log = served.log.read_text()
    assert {status for status, _ in responses} == {200}
    assert {version for _, version in responses} == {first.number, second.number}
    assert log.count("failed while") == 1  # a registry outage is logged once
    assert log.count(f"version {damaged.number} cannot be used") == 1
    assert "Traceback" not in log
    assert PLANTED not in log + metrics
    assert f'path="/predict",status="200"}} {float(len(responses))}' in metrics


def test_the_token_is_read_from_a_file_and_nothing_listens_for_others_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_champion(1)
    command = [sys.executable, "-m", "tasks.app", "--host", "0.0.0.0"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--without-token" in done.stderr
    token = "t" * 40
    (tmp_path / "token").write_text(f"{token}\n")
    monkeypatch.setenv("CXR_APP_TOKEN_FILE", str(tmp_path / "token"))
    with serve_process("--host", "0.0.0.0") as served:
        send = {name: httpx.post(f"{served.address}/predict", content=IMAGE, headers=BYTES | given, timeout=60)
                for name, given in (("without", {}), ("with", {"Authorization": f"Bearer {token}"}))}  # fmt: skip
        assert {name: answer.status_code for name, answer in send.items()} == {"without": 401, "with": 200}
        of_the_process = Path(f"/proc/{served.process.pid}/environ").read_text()
        assert token not in served.log.read_text() + of_the_process


@fault("web app", "a second one on the same port", "the first goes on", "cannot listen, try another port")
def test_a_taken_port_is_an_error_and_an_open_address_a_warning() -> None:
    register_champion(1)
    with serve_process("--host", "0.0.0.0", "--engine", "torch", "--without-token") as served:
        assert "there is no token" in served.log.read_text()
        port = served.address.rpartition(":")[2]
        command = [sys.executable, "-m", "tasks.app", "--port", port, "--host", "0.0.0.0", "--without-token"]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: cannot listen")
        answer = httpx.post(f"{served.address}/predict", content=IMAGE, headers=BYTES, timeout=60).json()
        assert answer["engine"] == "torch"


@pytest.mark.parametrize("port", ["99999", "-1", "http"])
def test_a_port_that_there_is_not_is_refused_at_once(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app.command_line().parse_args(["--port", port])
    assert ended.value.code == 2
    assert f"argument --port: expected a whole number from 1 to 65535, got {port!r}" in capsys.readouterr().err
