"""The web app in a real browser."""

import base64
import csv
import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.dicom_images import dicom_image
from tests.support.webapp_server import LIMITS, Served, serve_here, synthetic, tiny_classifier, use

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SLOW = 60_000.0  # ms; the machine may be busy
PNG = cv2.imencode(".png", synthetic("viral"))[1].tobytes()
DICOM = dicom_image(synthetic("normal", seed=2).astype(np.uint16))
EVIL = '=HYPERLINK("x")<img src=x onerror=alert(1)>.png'

expect.set_options(timeout=SLOW)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None and not os.environ.get("CI"):
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve_here(tiny_classifier(refer_below=0.99)) as served:
        yield served


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The page, opened; it must load nothing from elsewhere and raise no error of its own."""
    with browser.new_context() as context:
        page = context.new_page()
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(served.address)
        expect(page.locator("#model")).to_be_enabled()
        yield page
        elsewhere = [url for url in asked if not url.startswith((served.address, "data:", "blob:"))]
        assert (elsewhere, errors) == ([], [])


def drop(page: Page, files: dict[str, bytes]) -> None:
    """Drop files on the page, in one go, as a hand would."""
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


def test_a_png_a_dicom_image_and_a_text_are_dropped_and_each_is_told_of_rightly(page: Page) -> None:
    drop(page, {"image.png": PNG, "IM000001": DICOM, "notes.txt": b"Not an image.\n"})
    expect(page.locator("#count")).to_have_text("3 of 3")
    rows = page.locator(".row")
    for number, data in enumerate((PNG, DICOM)):
        classifier = tiny_classifier(refer_below=0.99)
        (answer,) = classifier.answer(classifier.read(data, name="image")[None])
        rows.nth(number).click()
        expect(page.locator(".verdict")).to_contain_text(answer.predicted_class)
        shares = page.locator(".chart .share").all_text_contents()
        told = [float(share.strip("<> %")) / 100 for share in shares]
        assert told == pytest.approx(list(answer.probabilities.values()), abs=0.001)
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


def test_research_only_and_synthetic_stand_in_sight_at_every_width(page: Page) -> None:
    for width in (1400, 390):
        page.set_viewport_size({"width": width, "height": 800})
        notice = page.locator(".notice").first
        expect(notice).to_be_in_viewport()
        expect(notice).to_contain_text("Research software, not for clinical use.")
        expect(notice).to_contain_text("Synthetic images")
        too_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not too_wide


def test_the_heat_has_a_class_and_a_strength(page: Page) -> None:
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


def test_all_of_it_works_from_the_keyboard(page: Page) -> None:
    page.on("filechooser", lambda _: None)  # the browser is told to hand choosers over long before one is opened
    page.keyboard.press("Tab")  # skip to the reading
    page.keyboard.press("Tab")
    expect(page.locator("#model")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#card")).to_be_visible()
    expect(page.locator("#card-body")).to_contain_text("Goes to a reader")
    page.keyboard.press("Escape")
    expect(page.locator("#card")).to_be_hidden()
    expect(page.locator("#model")).to_be_focused()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.querySelector('#drop')).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([file("a.png", PNG), file("b.png", DICOM), file("c.png", b"")])
    expect(page.locator("#count")).to_have_text("3 of 3")
    expect(page.locator("#said")).to_contain_text("3 of 3 read")
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
    page.keyboard.press("Tab")  # past the other images, to the classes of the heat
    expect(page.locator(".choice input:checked")).to_be_focused()


def test_a_name_is_text_on_the_page_and_no_formula_in_the_table(page: Page) -> None:
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
    assert "not for clinical use" in good["disclaimer"]


def test_no_name_of_a_file_leaves_the_page(page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda one: sent.append(f"{one.url} {one.headers} {(one.post_data_buffer or b'')[:20]!r}"))
    drop(page, {"Sorrowful^Jane.png": PNG})
    expect(page.locator(".stack .heat")).to_be_visible()
    assert len(sent) >= 2
    assert not any("Sorrowful" in one for one in sent)


def test_clearing_forgets_the_images(page: Page) -> None:
    drop(page, {"image.png": PNG})
    expect(page.locator("#count")).to_have_text("1 of 1")
    page.locator("#clear").click()
    expect(page.locator(".row")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    assert "image.png" not in page.locator("body").inner_text()


def test_a_busy_service_is_asked_again_until_all_images_are_read(browser: Browser) -> None:
    images = {f"{seed}.png": cv2.imencode(".png", synthetic(seed=seed))[1].tobytes() for seed in range(6)}
    with serve_here(tiny_classifier(), limits=replace(LIMITS, waiting=1)) as served, browser.new_context() as context:
        page = context.new_page()
        page.goto(served.address)
        drop(page, images)
        expect(page.locator("#count")).to_have_text("6 of 6")
        expect(page.locator(".row.is-wrong")).to_have_count(0)


def test_a_new_champion_shows_on_the_page(browser: Browser) -> None:
    with serve_here(tiny_classifier("1")) as served, browser.new_context() as context:
        page = context.new_page()
        page.goto(served.address)
        expect(page.locator("#model")).to_contain_text("Version 1")
        use(served.page, tiny_classifier("2", seed=2, synthetic=False))
        drop(page, {"image.png": PNG})
        expect(page.locator("#model")).to_contain_text("Version 2")
        expect(page.locator("#synthetic")).to_be_hidden()
        expect(page.locator(".facts")).to_contain_text("version 2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Browser, served: Served, scheme: Any) -> None:
    with browser.new_context(color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(served.address)
        drop(page, {"image.png": PNG, "none.txt": b"none"})
        expect(page.locator("#count")).to_have_text("2 of 2")
        expect(page.locator(".stack .heat")).to_be_visible()
        told = page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
                && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
                let ground = e;
                while (ground && /, 0\\)$|transparent/.test(getComputedStyle(ground).backgroundColor))
                    ground = ground.parentElement;
                return [e.textContent.slice(0, 40), getComputedStyle(e).color,
                    ground ? getComputedStyle(ground).backgroundColor : "rgb(255, 255, 255)"];
            })"""
        )
    poor = [(text, ratio) for text, ink, ground in told if (ratio := contrast(ink, ground)) < 4.5]
    assert len(told) > 25
    assert poor == []


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two CSS colours (WCAG 2.2), 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
