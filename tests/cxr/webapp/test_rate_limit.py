"""One client cannot flood the service with cheap requests; only a trusted proxy says who the client is."""

import socket
import time
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest
from starlette.requests import Request

from cxr.common.errors import ParamsError
from cxr.webapp import rate_limit
from cxr.webapp.fair_turns import client_of
from cxr.webapp.limits import RejectedError
from cxr.webapp.rate_limit import RateLimit
from cxr.webapp.server import trusted
from tests.cxr.webapp.test_fairness import send_from
from tests.cxr.webapp.test_feedback import SAID
from tests.support.faults import fault
from tests.support.services.webapp_server import BYTES, IMAGE, LIMITS, Served, reason, serve_here, tiny_classifier
from tests.support.waiting import wait_for

FEW = replace(LIMITS, max_images_per_minute=2, max_feedback_per_minute=2)
SENDING: dict[str, Callable[[Served], httpx.Response]] = {
    "/predict": lambda served: httpx.post(f"{served.address}/predict", content=b"no image", headers=BYTES, timeout=60),
    "/pixels": lambda served: httpx.post(f"{served.address}/pixels", content=IMAGE, headers=BYTES, timeout=60),
    "/example": lambda served: httpx.get(f"{served.address}/example", timeout=60),
    "/feedback": lambda served: httpx.post(f"{served.address}/feedback", json=SAID, timeout=60),
}


@pytest.mark.parametrize("path", SENDING)
@fault(
    "web app",
    "one client sends more in a minute than it may",
    "its further requests are refused before they are read; others are answered",
    "status 429, too many requests",
)
def test_a_flood_of_one_client_is_refused_and_another_is_answered(path: str) -> None:
    with serve_here(tiny_classifier(), limits=FEW) as served:
        answers = [SENDING[path](served) for _ in range(3)]
        assert all(answer.status_code in {200, 422} for answer in answers[:2])
        assert (answers[2].status_code, reason(answers[2])) == (429, "too many requests")
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        assert send_from("127.0.0.2", served).status_code == 200


@pytest.mark.parametrize("hours", [-1, 24])
@fault("web app", "the clock jumps while a client is at its limit", "the limit is as before", "status 429")
def test_the_limit_does_not_depend_on_the_clock(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    limit = RateLimit(2, "images")
    limit.take("one")
    limit.take("one")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + hours * 3600)
    with pytest.raises(RejectedError):
        limit.take("one")
    limit.take("another")


def test_a_bucket_fills_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(rate_limit.time, "monotonic", lambda: now[0])
    limit = RateLimit(2, "images")
    limit.take("one")
    limit.take("one")
    with pytest.raises(RejectedError) as refused:
        limit.take("one")
    assert refused.value.retry_seconds == 30
    now[0] += 30
    limit.take("one")
    with pytest.raises(RejectedError):
        limit.take("one")
    now[0] += 3600
    limit.take("one")
    limit.take("one")
    with pytest.raises(RejectedError):  # an hour of silence saves up one minute
        limit.take("one")


def test_many_clients_take_a_bounded_memory() -> None:
    limit = RateLimit(1, "images")
    for number in range(rate_limit._MOST_CLIENTS + 10):
        limit.take(str(number))
    assert len(limit._buckets) == rate_limit._MOST_CLIENTS


def slow_feedback(served: Served, address: str = "127.0.0.1") -> socket.socket:
    """Start to send feedback that never ends."""
    client = socket.create_connection(("127.0.0.1", served.port), source_address=(address, 0))
    client.sendall(b"POST /feedback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    return client


@fault(
    "web app",
    "one client holds unfinished feedback open",
    "three quarters of the room; images and another's feedback pass",
    "status 429",
)
def test_unfinished_feedback_fills_neither_the_room_of_images_nor_that_of_others() -> None:
    with serve_here(tiny_classifier(), limits=replace(LIMITS, max_queued_images=4)) as served:
        held = [slow_feedback(served) for _ in range(3)]
        try:
            wait_for(lambda: served.webapp.service.feedback.admission.requests["127.0.0.1"] == 3)
            refused = httpx.post(f"{served.address}/feedback", json=SAID, timeout=60)
            assert (refused.status_code, reason(refused)) == (429, "busy")
            with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"), timeout=60) as other:
                assert other.post(f"{served.address}/feedback", json=SAID).status_code == 200
            assert httpx.post(f"{served.address}/predict", content=IMAGE, headers=BYTES, timeout=60).status_code == 200
        finally:
            for client in held:
                client.close()


def clients_seen(served: Served, *forwarded: str) -> set[str]:
    """Return the addresses that the rate limit counts after a request for each header."""
    for value in forwarded:
        httpx.get(f"{served.address}/example", headers={"X-Forwarded-For": value}, timeout=60)
    return set(served.webapp.service.rate._buckets)


@fault("web app", "a client names another address in X-Forwarded-For", "its own address counts", "nothing")
def test_a_forwarded_address_counts_from_a_trusted_proxy_alone() -> None:
    with serve_here(tiny_classifier()) as served:
        assert clients_seen(served, "192.0.2.1", "192.0.2.2") == {"127.0.0.1"}
    with serve_here(tiny_classifier(), proxies=["10.0.0.0/8"]) as served:
        assert clients_seen(served, "192.0.2.1") == {"127.0.0.1"}
    with serve_here(tiny_classifier(), proxies=["127.0.0.0/8", "10.0.0.1"]) as served:
        # What stands to the left of the first address that is no proxy may be a client's own invention.
        assert clients_seen(served, "192.0.2.1", "203.0.113.9, 192.0.2.2, 10.0.0.1") == {"192.0.2.1", "192.0.2.2"}


@pytest.mark.parametrize("name", ["*", "proxy", "10.0.0.1/8", ""])
def test_a_proxy_is_trusted_by_address_alone(name: str) -> None:
    with pytest.raises(ParamsError, match="--trust-proxy"):
        trusted(name)


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        (None, ""),
    ],
)
def test_one_machine_is_one_client(host: str | None, client: str) -> None:
    peer = None if host is None else (host, 1)
    assert client_of(Request({"type": "http", "client": peer})) == client


def test_the_proxy_headers_are_off_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own variable
    with serve_here(tiny_classifier()) as served:
        assert clients_seen(served, "192.0.2.1") == {"127.0.0.1"}
