"""The web app in a real browser."""

import base64
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from cxr.common.notices import NOT_CLINICAL
from tests.support.browsers import launch_browser
from tests.support.dicom_images import dicom_image
from tests.support.webapp_server import IMAGE as PNG
from tests.support.webapp_server import LIMITS, Served, serve_here, synthetic, tiny_classifier, use

TIMEOUT_MS = 60_000.0  # long, for a busy machine
DICOM = dicom_image(synthetic("normal", seed=2).astype(np.uint16))
EVIL = '=HYPERLINK("x")<img src=x onerror=alert(1)>.png'

expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve_here(tiny_classifier(refer_below=0.99)) as served:
        yield served


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The open page; it must load nothing from elsewhere and raise no error."""
    with browser.new_context() as context:
        page = context.new_page()
        urls: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: urls.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(served.address)
        expect(page.locator("#model")).to_be_enabled()
        yield page
        elsewhere = [url for url in urls if not url.startswith((served.address, "data:", "blob:"))]
        assert (elsewhere, errors) == ([], [])


def drop(page: Page, files: dict[str, bytes]) -> None:
    """Drop files on the page, all at once."""
    encoded = [[name, base64.b64encode(data).decode()] for name, data in files.items()]
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, data] of files)
                transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
            return transfer;
        }""",
        encoded,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def file(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


def test_a_png_a_dicom_image_and_a_text_file_each_get_the_right_result(page: Page) -> None:
    drop(page, {"image.png": PNG, "IM000001": DICOM, "notes.txt": b"Not an image.\n"})
    expect(page.locator("#count")).to_have_text("3 of 3")
    rows = page.locator(".row")
    for number, data in enumerate((PNG, DICOM)):
        classifier = tiny_classifier(refer_below=0.99)
        (answer,) = classifier.answer(classifier.read(data, name="image")[None])
        rows.nth(number).click()
        expect(page.locator(".prediction")).to_contain_text(answer.predicted_class)
        texts = page.locator(".chart .probability").all_text_contents()
        shown = [float(text.strip("<> %")) / 100 for text in texts]
        assert shown == pytest.approx(list(answer.probabilities.values()), abs=0.001)
        assert answer.refer is True
        expect(page.locator(".finding")).to_contain_text("A reader should see this image")
        expect(rows.nth(number).locator(".flag")).to_have_text("Refer")
        expect(page.locator(".stack .image")).to_have_js_property("naturalWidth", synthetic(*_image(number)).shape[1])
        expect(page.locator(".stack .heat")).to_be_visible()
    rows.nth(2).click()
    expect(page.locator("#detail")).to_contain_text("This file could not be read")
    expect(page.locator("#detail")).to_contain_text("not an image")
    expect(page.locator(".stack")).to_have_count(0)


def _image(number: int) -> tuple[str, int]:
    return (("viral", 1), ("normal", 2))[number]


def test_the_disclaimer_is_visible_at_every_width(page: Page) -> None:
    for width in (1400, 390):
        page.set_viewport_size({"width": width, "height": 800})
        notice = page.locator(".notice").first
        expect(notice).to_be_in_viewport()
        expect(notice).to_contain_text(NOT_CLINICAL)
        expect(notice).to_contain_text("Synthetic images")
        too_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not too_wide


def test_the_heat_map_has_a_class_and_an_opacity(page: Page) -> None:
    drop(page, {"image.png": PNG})
    heat = page.locator(".stack .heat")
    expect(heat).to_be_visible()
    before = heat.get_attribute("src")
    other = page.locator(".choice input:not(:checked)").first
    other.check(force=True)
    expect(heat).not_to_have_attribute("src", str(before))
    page.locator("#opacity").fill("20")
    expect(heat).to_have_css("opacity", "0.2")
    drop(page, {"next.png": PNG})
    page.locator(".row").nth(1).click()
    expect(page.locator(".stack .heat")).to_have_css("opacity", "0.2")


def test_the_page_works_from_the_keyboard(page: Page) -> None:
    page.on("filechooser", lambda _: None)  # intercept choosers well before one is opened
    page.keyboard.press("Tab")  # skip to the result
    page.keyboard.press("Tab")
    expect(page.locator("#model")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#card")).to_be_visible()
    expect(page.locator("#card-body")).to_contain_text("Referred to a reader")
    page.keyboard.press("Escape")
    expect(page.locator("#card")).to_be_hidden()
    expect(page.locator("#model")).to_be_focused()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.querySelector('#drop')).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([file("a.png", PNG), file("b.png", DICOM), file("c.png", b"")])
    expect(page.locator("#count")).to_have_text("3 of 3")
    expect(page.locator("#status")).to_contain_text("3 of 3 done")
    for _ in range(3):
        page.keyboard.press("Tab")  # export, clear, the first image
    expect(page.locator(".row").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#detail")).to_contain_text("b.png")
    page.keyboard.press("End")
    expect(page.locator("#detail")).to_contain_text("is empty")
    page.keyboard.press("Home")
    expect(page.locator(".choice input:checked")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # past the other images, to the classes of the heat map
    expect(page.locator(".choice input:checked")).to_be_focused()


def test_a_file_name_is_text_on_the_page_and_no_formula_in_the_csv(page: Page) -> None:
    drop(page, {EVIL: PNG, "b,\n.txt": b"none"})
    expect(page.locator("#count")).to_have_text("2 of 2")
    expect(page.locator(".finding .file")).to_have_text(EVIL)
    assert page.locator("img[src=x]").count() == 0
    with page.expect_download() as download:
        page.locator("#export").click()
    text = download.value.path().read_text(encoding="utf-8-sig")
    good, bad = csv.DictReader(io.StringIO(text, newline=""))
    assert good["file"] == f"'{EVIL}"
    assert (bad["file"], bad["predicted_class"]) == ("b,\n.txt", "")
    assert "not an image" in bad["error"]
    classifier = tiny_classifier()
    (answer,) = classifier.answer(classifier.read(PNG, name="image")[None])
    assert {name: float(good[f"p_{name}"]) for name in answer.probabilities} == dict(answer.probabilities)
    assert (good["predicted_class"], good["refer"], good["model_version"]) == (answer.predicted_class, "true", "1")
    assert good["disclaimer"].startswith(NOT_CLINICAL)


def test_file_names_are_not_sent(page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda one: sent.append(f"{one.url} {one.headers} {(one.post_data_buffer or b'')[:20]!r}"))
    drop(page, {"Sorrowful^Jane.png": PNG})
    expect(page.locator(".stack .heat")).to_be_visible()
    assert len(sent) >= 2
    assert not any("Sorrowful" in one for one in sent)


def test_clear_removes_the_images(page: Page) -> None:
    drop(page, {"image.png": PNG})
    expect(page.locator("#count")).to_have_text("1 of 1")
    page.locator("#clear").click()
    expect(page.locator(".row")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    assert "image.png" not in page.locator("body").inner_text()


def test_a_busy_service_is_retried_until_all_images_are_classified(browser: Browser) -> None:
    images = {f"{seed}.png": cv2.imencode(".png", synthetic(seed=seed))[1].tobytes() for seed in range(6)}
    with (
        serve_here(tiny_classifier(), limits=replace(LIMITS, max_queued_images=1)) as served,
        browser.new_context() as context,
    ):
        page = context.new_page()
        page.goto(served.address)
        drop(page, images)
        expect(page.locator("#count")).to_have_text("6 of 6")
        expect(page.locator(".row.is-wrong")).to_have_count(0)


def test_an_alias_that_contradicts_the_audit_log_is_named_on_the_page(page: Page, served: Served) -> None:
    expect(page.locator("#contradiction")).to_be_hidden()
    served.webapp.watch.contradiction = "the alias champion was removed by hand"
    page.reload()
    expect(page.locator("#contradiction")).to_contain_text("The registry contradicts itself: the alias champion was")
    served.webapp.watch.contradiction = ""


def test_a_new_champion_shows_on_the_page(browser: Browser) -> None:
    with serve_here(tiny_classifier("1")) as served, browser.new_context() as context:
        page = context.new_page()
        page.goto(served.address)
        expect(page.locator("#model")).to_contain_text("Version 1")
        expect(page.locator("#subtitle")).to_contain_text("Normal, viral, bacterial:")
        use(
            served.webapp,
            tiny_classifier("2", seed=2, synthetic=False, classes=("normal", "bacterial"), bias=(0.0, 0.0)),
        )
        drop(page, {"image.png": PNG})
        expect(page.locator("#model")).to_contain_text("Version 2")
        expect(page.locator("#subtitle")).to_contain_text("Normal, bacterial:")
        expect(page.locator("#synthetic")).to_be_hidden()
        expect(page.locator(".facts")).to_contain_text("version 2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(browser: Browser, served: Served, scheme: Any) -> None:
    with browser.new_context(color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(served.address)
        drop(page, {"image.png": PNG, "none.txt": b"none"})
        expect(page.locator("#count")).to_have_text("2 of 2")
        expect(page.locator(".stack .heat")).to_be_visible()
        found = page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
                && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
                let shown = e;
                while (shown && /, 0\\)$|transparent/.test(getComputedStyle(shown).backgroundColor))
                    shown = shown.parentElement;
                return [e.textContent.slice(0, 40), getComputedStyle(e).color,
                    shown ? getComputedStyle(shown).backgroundColor : "rgb(255, 255, 255)"];
            })"""
        )
    illegible = [(text, ratio) for text, ink, background in found if (ratio := contrast(ink, background)) < 4.5]
    assert len(found) > 25
    assert illegible == []


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two CSS colours (WCAG 2.2), 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
