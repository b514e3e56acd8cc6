"""Messages to people: real events on a real server reach a real web address or mailbox, and only those that should."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Completed, Failed, State

from cxr.registry import tracking_store, versions
from flows.notifications import ADDRESS_VARIABLE, NOTICES, keep_notifications, report_move_by_hand
from tests.support.faults import fault
from tests.support.projects.registry_project import enter_project, register, write_model
from tests.support.services.receivers import receive_mail, receive_posts
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("prefect_server")

SENT = {"failed": 'no "champion"', "drift": "darker images", "held in a rebuild": "two images differ"}


@flow(name="score")
def score(message: str, name: str) -> State:
    """Stand for a flow of this project, which ends in the state `name`."""
    return Failed(message=message) if name == "Failed" else Completed(message=message, name=name)


@flow(name="somebody else's")
def stranger() -> State:
    """Stand for a flow of another project on the same server."""
    return Failed(message="not ours")


@task(task_run_name="promote", cache_policy=NO_CACHE)
def hold() -> State:
    return Completed(name="Held", message="two images differ")


@flow(name="rebuild")
def rebuild() -> None:
    hold()


@pytest.fixture
def client(prefect_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    assert prefect_server
    with get_client(sync_client=True) as one:
        yield one
        monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
        keep_notifications(one)


def test_failed_drifted_held_and_moved_by_hand_are_each_posted_of_their_run(
    client: SyncPrefectClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with receive_posts() as (address, posts):
        monkeypatch.setenv(ADDRESS_VARIABLE, address)
        keep_notifications(client)
        stranger(return_state=True)
        score("fine", "Completed", return_state=True)
        score('no "champion"', "Failed", return_state=True)
        score("darker images", "Drift", return_state=True)
        rebuild()
        enter_project(tmp_path, monkeypatch, tmp_path_factory)
        write_model()
        register()
        report_move_by_hand()  # no champion and no record agree
        tracking_store.client().set_registered_model_alias(versions.MODEL, versions.CHAMPION, "1")
        report_move_by_hand()
        wait_for(
            lambda: {"moved by hand", *SENT.values()} <= {post[key] for post in posts for key in ("notice", "message")},
            seconds=300,
        )
    # Prefect delivers an event at least once, so a post may come twice; of an earlier test's flow one may come late.
    runs = {post["run"] for post in posts if (post["notice"], post["message"]) in SENT.items()}
    sent = {(post["notice"], post["message"]) for post in posts if post["run"] in runs}
    assert sent == set(SENT.items())
    (moved,) = {post["message"] for post in posts if post["notice"] == "moved by hand"}
    assert "version 1" in moved
    assert {"fine", "not ours"}.isdisjoint(post["message"] for post in posts)
    assert all(post["text"].endswith(f". {post['message']}") for post in posts)


@fault("Prefect", "the receiver of CXR_NOTIFY_URL takes a message and never answers", "the run ends as without it, and "
       "the next message is sent", "the messages after it")  # fmt: skip
def test_a_receiver_that_never_answers_holds_neither_a_run_nor_the_next_message(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receive_posts(silent_to="first") as (address, posts):
        monkeypatch.setenv(ADDRESS_VARIABLE, address)
        keep_notifications(client)
        score("first", "Failed", return_state=True)
        wait_for(lambda: "first" in {post["message"] for post in posts}, seconds=300)
        assert score("second", "Drift", return_state=True).name == "Drift"
        wait_for(lambda: "second" in {post["message"] for post in posts}, seconds=300)


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # imported by Apprise
def test_a_failure_is_mailed(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with receive_mail() as (port, mails):
        monkeypatch.setenv(ADDRESS_VARIABLE, f"mailto://127.0.0.1:{port}?from=cxr@example.org&to=ann@example.org")
        keep_notifications(client)
        score("no champion", "Failed", return_state=True)
        wait_for(lambda: mails, seconds=300)
    assert "To: ann@example.org" in mails[0].replace(" <ann@example.org>", "")
    assert "no champion" in mails[0]


def test_without_an_address_the_automations_go_away(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLE, "http://127.0.0.1:9/hook")
    keep_notifications(client)
    keep_notifications(client)  # twice makes no second automation
    assert all(len(client.read_automations_by_name(notice.automation)) == 1 for notice in NOTICES)
    monkeypatch.delenv(ADDRESS_VARIABLE)
    keep_notifications(client)
    assert not any(client.read_automations_by_name(notice.automation) for notice in NOTICES)
