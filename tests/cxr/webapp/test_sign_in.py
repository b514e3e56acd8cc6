"""With a token, nothing but probes and the sign-in answers without it; it is never shown, logged or in an address."""

import re
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from cxr.common.errors import ParamsError
from cxr.webapp import sign_in
from cxr.webapp.server import check_openness
from cxr.webapp.service import PAGE_FILES, PATHS
from cxr.webapp.sign_in import COOKIE, OPEN_PATHS, SESSION_SECONDS, TOKEN_VARIABLE, Token, take_token
from tests.support.faults import fault
from tests.support.pages.accessibility import SCHEMES, violations
from tests.support.pages.browsers import drop
from tests.support.services.webapp_server import BYTES, IMAGE, Served, reason, serve_here, tiny_classifier

TOKEN = "of-the-tests-" + "x" * 32
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve_here(tiny_classifier(), token=TOKEN) as served:
        yield served


def post(served: Served, headers: dict[str, str], path: str = "/predict") -> httpx.Response:
    return httpx.post(f"{served.address}{path}", content=IMAGE, headers=BYTES | headers, timeout=60)


def signed_in(served: Served, token: str = TOKEN, **headers: str) -> httpx.Response:
    return httpx.post(f"{served.address}/sign-in", json={"token": token}, headers=headers, timeout=60)


@pytest.mark.parametrize("path", sorted(PATHS - OPEN_PATHS))
@fault("web app", "a request without the token, where there is one", "refused", "status 401, or the sign-in page")
def test_no_path_answers_without_the_token(served: Served, path: str) -> None:
    method = "GET" if path in PAGE_FILES or path in {"/example", "/metrics", "/model", "/openapi.json"} else "POST"
    answer = httpx.request(method, f"{served.address}{path}", headers=BYTES, content=IMAGE, timeout=60)
    if path == "/":
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    else:
        assert (answer.status_code, reason(answer)) == (401, "no token")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/nowhere", "/model/", "//model", "/health/../model", "/sign-in/../model", "/MODEL"])
def test_no_spelling_of_a_path_leads_past_the_token(served: Served, path: str) -> None:
    answer = httpx.get(f"{served.address}{path}", timeout=60)
    assert answer.status_code in {401, 404}
    assert "model_version" not in answer.text


def test_probes_need_no_token(served: Served) -> None:
    assert [httpx.get(f"{served.address}{path}", timeout=60).status_code for path in ("/health", "/ready")] == [
        200,
        200,
    ]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
    ],
)
def test_a_program_sends_the_token_as_a_bearer(served: Served, header: str, status: int) -> None:
    assert post(served, {"Authorization": header}).status_code == status


def test_a_token_in_the_address_or_a_cookie_is_no_token(served: Served) -> None:
    assert post(served, {}, f"/predict?token={TOKEN}&access_token={TOKEN}").status_code == 401
    assert post(served, {"Cookie": f"{COOKIE}={TOKEN}", "Origin": served.address}).status_code == 401


def test_a_cookie_is_for_this_page_alone_and_holds_no_token(served: Served) -> None:
    answer = signed_in(served, Origin=served.address)
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={SESSION_SECONDS}"} <= set(cookie.split("; "))
    assert "Secure" not in cookie  # loopback without TLS; tests/integration/test_tls_proxy.py has the other case
    assert TOKEN not in cookie
    kept = {"Cookie": cookie.partition(";")[0]}
    assert httpx.get(f"{served.address}/model", headers=kept, timeout=60).json()["sign_in"] is True
    assert post(served, kept | {"Origin": served.address}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [({}, 401), ({"Origin": "https://elsewhere.example"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403)],
)
@fault("web app", "another site's page posts with a reader's cookie", "refused", "status 401 or 403")
def test_a_cookie_does_not_let_another_site_post(served: Served, origin: dict[str, str], status: int) -> None:
    kept = {"Cookie": signed_in(served).headers["set-cookie"].partition(";")[0]}
    assert post(served, kept | origin).status_code == status
    assert post(served, kept | origin, "/feedback").status_code == status


@pytest.mark.parametrize(
    ("begun_s", "good"),
    [(0, True), (-3600, True), (3000, True), (-24 * 3600, False), (24 * 3600, False), (366 * 24 * 3600, False)],
)
@fault(
    "web app", "the clock jumps back or forth while readers are signed in",
    "no session lives more than an hour longer than it should", "the sign-in page, where the session has ended",
)  # fmt: skip
def test_a_session_does_not_outlive_a_correction_of_the_clock(
    monkeypatch: pytest.MonkeyPatch, begun_s: float, good: bool
) -> None:
    token, now = Token(TOKEN), time.time()
    with monkeypatch.context() as moved:
        moved.setattr(time, "time", lambda: now + begun_s)
        session = token.new_session()
    assert token.is_session(session) is good


def test_a_session_ends_and_is_bound_to_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    token = Token(TOKEN)
    session = token.new_session()
    end, _, mac = session.partition(".")
    assert token.is_session(session)
    assert not Token(f"{TOKEN}x").is_session(session)
    for forged in (f"{int(end) + 1}.{mac}", f"{end}.", ".", "", end, f"{end}.é", f"x.{mac}"):
        assert not token.is_session(forged)
    monkeypatch.setattr(sign_in.time, "time", lambda: int(end) + 1.0)
    assert not token.is_session(session)


@fault("web app", "somebody tries tokens", "ten a minute from one client", "status 429")
def test_tokens_can_be_tried_ten_times_a_minute() -> None:
    with serve_here(None, token=TOKEN) as served:
        answers = [signed_in(served, f"guess-{number}") for number in range(11)]
        assert [answer.status_code for answer in answers] == [*[401] * 10, 429]
        assert int(answers[-1].headers["retry-after"]) <= 6
        assert post(served, BEARER).status_code == 503  # a program with the token is not kept out


def test_without_a_token_there_is_nothing_to_sign_in_to(served: Served) -> None:
    with serve_here(tiny_classifier()) as open_to_all:
        assert signed_in(open_to_all).status_code == 401
        assert httpx.get(f"{open_to_all.address}/model", timeout=60).json()["sign_in"] is False
    assert httpx.get(f"{served.address}/model", headers=BEARER, timeout=60).json()["sign_in"] is True


def test_the_token_is_not_logged_shown_or_counted(
    served: Served, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    answers = [post(served, BEARER), post(served, {"Authorization": f"Basic {TOKEN}"}), signed_in(served)]
    answers += [
        httpx.get(f"{served.address}/{TOKEN}?token={TOKEN}", timeout=60),
        httpx.get(f"{served.address}/metrics", headers=BEARER, timeout=60),
    ]
    logged = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))  # clients'
    written = capfd.readouterr()
    text = "".join(f"{answer.text}{dict(answer.headers)}" for answer in answers)
    assert TOKEN not in text + logged + written.out + written.err
    assert TOKEN not in repr(served.webapp.service.sign_in.token)


def test_a_reader_signs_in_once_and_out(browser: Browser, served: Served) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        urls: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: urls.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served.address)
        expect(page).to_have_url(f"{served.address}/sign-in")
        page.get_by_label("Access token").fill("not the token")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("this is not the service's token")
        page.get_by_label("Access token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{served.address}/")
        expect(page.locator("#model")).to_be_enabled()
        drop(page, {"image.png": IMAGE})
        expect(page.locator("#count")).to_have_text("1 of 1")
        with page.expect_response("**/feedback") as stored:
            page.get_by_role("button", name=re.compile(r"\(N\)$")).click()
        assert stored.value.ok
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        expect(page).to_have_url(f"{served.address}/sign-in")
        page.goto(served.address)
        expect(page).to_have_url(f"{served.address}/sign-in")
        assert not any(TOKEN in url for url in urls)
        assert errors == []


def test_a_sign_out_that_did_not_reach_the_service_is_said(browser: Browser) -> None:
    with serve_here(tiny_classifier(), token=TOKEN) as served, browser.new_context() as context:
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        enter_token(page, served)
        page.route("**/sign-in", lambda route: route.abort())
        page.get_by_role("button", name="Sign out").click()
        expect(page.locator("#service")).to_contain_text("You are still signed in: The service does not answer.")
        assert errors == []


def enter_token(page: Page, served: Served) -> None:
    page.goto(served.address)
    page.get_by_label("Access token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_be_enabled()


def test_a_link_from_another_site_finds_the_reader_signed_in(browser: Browser, served: Served) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        enter_token(page, served)
        page.route("http://elsewhere.example/", lambda route: route.fulfill(body=f"<a href='{served.address}'>go</a>"))
        page.goto("http://elsewhere.example/")
        page.get_by_text("go").click()
        expect(page).to_have_url(f"{served.address}/")
        expect(page.locator("#model")).to_be_enabled()


def test_a_reader_whose_session_ended_loses_no_image(browser: Browser, served: Served) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        enter_token(page, served)
        context.clear_cookies()
        drop(page, {"image.png": IMAGE})
        expect(page.locator("#detail")).to_contain_text("Sign in again in another tab")
        again = context.new_page()
        again.goto(served.address)
        again.get_by_label("Access token").fill(TOKEN)
        again.keyboard.press("Enter")
        expect(again.locator("#model")).to_be_enabled()
        page.bring_to_front()
        page.locator("#retry").click()
        expect(page.locator("#count")).to_have_text("1 of 1")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing_on_the_sign_in(browser: Browser, served: Served, scheme: str) -> None:
    with browser.new_context(**SCHEMES[scheme]) as context:
        page = context.new_page()
        page.goto(served.address)
        expect(page.get_by_label("Access token")).to_be_focused()
        assert violations(page) == []


@pytest.mark.parametrize("given", ["short", "x" * 31, "with space " * 4, "é" * 40])
def test_a_weak_token_is_rejected(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, given)
    with pytest.raises(ParamsError, match="32 characters or more") as error:
        take_token()
    assert given not in str(error.value)


def test_the_token_is_taken_out_of_the_environment_of_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert take_token() == Token(TOKEN)
    assert take_token() is None


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), ("", True),
     ("10.1.2.3", True), ("cxr.example.org", True)],
)  # fmt: skip
def test_who_listens_for_others_needs_a_token_or_says_otherwise(host: str, is_open: bool) -> None:
    check_openness(host, Token(TOKEN), without_token=False)
    check_openness(host, None, without_token=True)
    if is_open:
        with pytest.raises(ParamsError, match="--without-token"):
            check_openness(host, None, without_token=False)
    else:
        check_openness(host, None, without_token=False)
