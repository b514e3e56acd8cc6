"""One client cannot take all connections of the web app."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from cxr.webapp import connections
from tests.support.faults import fault
from tests.support.services.webapp_server import IMAGE, Served, reason, send, send_from, serve_here, tiny_classifier
from tests.support.waiting import wait_for

MOST = 5


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(connections, "_MOST_CONNECTIONS", MOST)
    with serve_here(tiny_classifier()) as served:
        yield served


def hold(stack: ExitStack, served: Served, count: int) -> None:
    """Open connections and say nothing."""
    for _ in range(count):
        stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))


@fault("web app", "a client without a token opens connections and sends nothing",
       "further ones of this client are refused, other clients are answered", "status 429, busy")  # fmt: skip
def test_a_client_that_holds_connections_does_not_keep_others_out(served: Served) -> None:
    with ExitStack() as stack:
        hold(stack, served, MOST)
        refused = send(served, IMAGE)
        assert (refused.status_code, reason(refused), refused.headers["retry-after"]) == (429, "busy", "5")
        assert send_from("127.0.0.2", served).status_code == 200
    wait_for(lambda: send(served, IMAGE).status_code == 200)


def test_a_process_with_few_open_files_gives_a_client_a_quarter_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (16, 16))
    with serve_here(tiny_classifier()) as served, ExitStack() as stack:
        hold(stack, served, 4)
        assert send(served, IMAGE).status_code == 429


def test_the_connections_of_a_trusted_proxy_are_those_of_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_MOST_CONNECTIONS", MOST)
    with serve_here(tiny_classifier(), proxies=["127.0.0.0/8"]) as served, ExitStack() as stack:
        hold(stack, served, MOST)
        assert send(served, IMAGE).status_code == 200


def test_a_connection_that_brings_no_request_is_closed_and_one_in_use_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SILENT_SECONDS", 0.5)
    with serve_here(tiny_classifier()) as served, httpx.Client(base_url=served.address, timeout=60) as client:
        used = client.get("/health").extensions["network_stream"]
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as silent:
            silent.sendall(b"GET /health HTT")
            assert silent.recv(1) == b""
        assert client.get("/health").extensions["network_stream"] is used
