"""A move of an alias, seen by the watch: through MLflow's real server, and past it."""

import hashlib
import hmac
import signal
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Completed

import flows.watch
from cxr.common.cli import run_command
from cxr.registry import tracking_store
from cxr.registry.champion import webhook
from cxr.registry.stored_names import MODEL, REQUESTED
from flows.judge import judge
from flows.watch import Watch, _is_of_this_machine, watch
from tests.support.faults import fault
from tests.support.moments import in_child, signals_itself
from tests.support.projects.registry_project import enter_project, register, write_model
from tests.support.services.mlflow_server import serve_mlflow
from tests.support.waiting import wait_for

SIGNED_WITH = "a secret of this test"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)
    return tmp_path / "mlruns"


@pytest.fixture
def receiver() -> Iterator[tuple[str, Watch]]:
    watch = Watch(SIGNED_WITH)
    with flows.watch.receiver(watch, host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", watch
        server.shutdown()
        thread.join()


def signed(body: bytes, *, signed_with: str = SIGNED_WITH, sent: float | None = None) -> dict[str, str]:
    when = str(int(time.time() if sent is None else sent))
    digest = hmac.new(signed_with.encode(), b"one." + when.encode() + b"." + body, hashlib.sha256).digest()
    return {
        "X-MLflow-Delivery-Id": "one",
        "X-MLflow-Timestamp": when,
        "X-MLflow-Signature": f"v1,{b64encode(digest).decode()}",
    }


def test_mlflows_server_wakes_the_watch_when_an_alias_moves(
    store: Path, receiver: tuple[str, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model()
    register()
    secrets = webhook.read_secrets(store / webhook.KEYS_FILE)
    environment = {**webhook.TO_THIS_MACHINE, **secrets.as_environment()}
    address, watch = receiver
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with serve_mlflow(store, environment) as server:
        monkeypatch.setenv(tracking_store.STORE_VARIABLE, server)
        for _ in range(2):
            webhook.subscribe(address, SIGNED_WITH)
        person = MlflowClient(server, server)
        assert len(person.list_webhooks()) == 1
        person.set_registered_model_alias(MODEL, REQUESTED, "1")
        wait_for(watch.woken.is_set)
        watch.woken.clear()
        person.delete_registered_model_alias(MODEL, REQUESTED)
        wait_for(watch.woken.is_set)
        webhook.unsubscribe()
        assert not person.list_webhooks()


@pytest.mark.usefixtures("store", "prefect_server")
def test_a_look_starts_one_run_for_what_somebody_asks_past_the_server() -> None:
    write_model()
    register()
    watch = Watch(SIGNED_WITH)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="watch", type="process"), overwrite=True)
        made = client.create_deployment(client.create_flow(judge), name="on-demand", work_pool_name="watch")
        watch.look()
        assert watch.problem == ""
        assert made not in {run.deployment_id for run in client.read_flow_runs()}
        tracking_store.client().set_registered_model_alias(MODEL, REQUESTED, "1")
        for _ in range(2):  # the run of the first look is still due
            watch.look()
        runs = [run for run in client.read_flow_runs() if run.deployment_id == made]
        assert (watch.problem, len(runs)) == ("", 1)
        client.set_flow_run_state(runs[0].id, Completed(), force=True)
        watch.look()  # the request is still there: another run
        runs = [run for run in client.read_flow_runs() if run.deployment_id == made]
        assert len(runs) == 2
        for run in runs:  # as somebody does who tidies up Prefect's page
            client.delete_flow_run(run.id)
        watch.look()
        assert watch.problem == ""
        assert len([run for run in client.read_flow_runs() if run.deployment_id == made]) == 1
        client.delete_deployment(made)  # and its run with it
        watch.look()
        assert "no deployment judge/on-demand" in watch.problem


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        # Called in the test: a signature is too old after five minutes, and the tests of other files come first.
        (lambda: signed(b"{}"), 204),
        (lambda: signed(b"{} "), 401),  # of another body
        (lambda: signed(b"{}", signed_with="another"), 401),
        (lambda: signed(b"{}", sent=time.time() - 3600), 401),  # kept and sent again
        (lambda: signed(b"{}", sent=time.time() + 3600), 401),
        (lambda: {**signed(b"{}"), "X-MLflow-Timestamp": "soon"}, 401),
        (dict, 401),
    ],
)
@fault("flows.watch", "its clock and that of MLflow's server are an hour apart", "messages are refused; the store is "
       "looked at every 20 seconds as before", "the verdict on the version's page, seconds later")  # fmt: skip
def test_only_what_mlflow_signed_wakes_the_watch(
    receiver: tuple[str, Watch], headers: Callable[[], dict[str, str]], status: int
) -> None:
    address, watch = receiver
    assert httpx.post(address, content=b"{}", headers=headers(), timeout=60).status_code == status
    assert watch.woken.is_set() == (status == 204)


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8090", 200), ("localhost", 200), ("[::1]:8090", 200), ("elsewhere.example", 403), ("", 403),
     ("localhost.elsewhere.example", 403), ("10.0.0.1", 403)],
)  # fmt: skip
def test_its_state_is_told_on_this_machine_alone(receiver: tuple[str, Watch], host: str, status: int) -> None:
    assert httpx.get(f"{receiver[0]}health", headers={"Host": host}, timeout=60).status_code == status
    assert not _is_of_this_machine("10.0.0.1", "127.0.0.1:8090")


@pytest.mark.usefixtures("store")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@fault("flows.watch", "SIGTERM", "it ends, its subscription with it", "exit code 143")
def test_a_watch_is_terminated(tmp_path: Path) -> None:
    said, terminates = tmp_path / "said", signals_itself(signal.SIGTERM)
    ended = in_child(
        lambda: run_command(lambda: watch(host="127.0.0.1", port=0, address="")),
        lambda: setattr(Watch, "look", lambda _: terminates()),
        said=said,
    )
    assert ended == 143
    assert said.read_text().splitlines() == ["terminated; run the same command again to continue"]


def test_a_long_message_is_refused_unread(receiver: tuple[str, Watch]) -> None:
    connection = HTTPConnection(receiver[0].removeprefix("http://").strip("/"), timeout=60)
    connection.putrequest("POST", "/")
    connection.putheader("Content-Length", str(webhook.MOST_BYTES + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@fault("flows.watch", "senders that begin a message and do not end it", "a genuine one is heard all the same",
       "nothing; a connection is closed after 10 s of silence")  # fmt: skip
def test_messages_that_never_end_do_not_hide_a_genuine_one(receiver: tuple[str, Watch]) -> None:
    address, watch = receiver
    place = httpx.URL(address)
    with ExitStack() as open_ones:
        for _ in range(4):
            dripping = open_ones.enter_context(socket.create_connection((place.host, place.port or 80)))
            dripping.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        assert httpx.post(address, content=b"{}", headers=signed(b"{}"), timeout=60).status_code == 204
    assert watch.woken.is_set()


def test_the_secrets_are_drawn_once_for_their_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "secrets.json"
    drawn = webhook.read_secrets(file)
    assert webhook.read_secrets(file) == drawn
    assert file.stat().st_mode & 0o777 == 0o600
    assert drawn.signing not in repr(drawn)
