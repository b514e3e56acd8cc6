"""The web app for everyone: every size of window, the keyboard alone, dark, and with Windows High Contrast."""

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.pages.accessibility import SCHEMES, is_wider_than_window, violations
from tests.support.pages.browsers import drop, file
from tests.support.services.webapp_server import IMAGE as PNG
from tests.support.services.webapp_server import METRICS, Served, tiny_classifier, use

SIZES = {"desktop": (1400, 900), "tablet": (1024, 768), "phone": (390, 844), "small phone": (320, 640)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing_on_the_page_and_the_model_card(browser: Browser, served: Served, scheme: str) -> None:
    use(served.webapp, tiny_classifier(refer_below=0.99), metrics=METRICS)
    with browser.new_context(**SCHEMES[scheme]) as context:
        page = context.new_page()
        page.goto(served.address)
        expect(page.locator("#model")).to_be_enabled()
        assert violations(page) == []
        drop(page, {"image.png": PNG, "none.txt": b"none"})
        expect(page.locator("#count")).to_have_text("2 of 2")
        page.locator("#tool-heat").click()
        page.locator("#tool-window").click()
        expect(page.locator("#stage-note")).to_have_text("")
        assert violations(page) == []
        page.set_viewport_size({"width": 320, "height": 640})
        assert violations(page) == []
        page.locator("#model").click()
        expect(page.locator("#card-body")).to_contain_text("Recall")
        assert violations(page) == []


@pytest.mark.parametrize("size", SIZES)
def test_at_every_size_targets_are_large_enough_and_nothing_is_cut_off(page: Page, size: str) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    drop(page, {"image.png": PNG})
    expect(page.locator("#count")).to_have_text("1 of 1")
    page.locator("#tool-heat").click()
    expect(page.locator("#stage-note")).to_have_text("")
    assert small_targets(page) == []
    assert not is_wider_than_window(page)
    assert page.evaluate(
        "document.querySelector('#result').scrollWidth <= document.querySelector('#result').clientWidth"
    )
    if width > 760:  # the image and its result fill the window, without scrolling
        expect(page.locator("#canvas")).to_be_in_viewport(ratio=1)
        expect(page.locator(".prediction")).to_be_in_viewport(ratio=1)
        tops = page.locator(".toolbar button").evaluate_all("all => all.map((one) => one.getBoundingClientRect().top)")
        assert len(set(tops)) == 1  # one row, all of it in sight
        expect(page.locator("#tool-full")).to_be_in_viewport(ratio=1)
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    page.locator("#tool-window").click()
    assert small_targets(page) == []
    assert not is_wider_than_window(page)
    page.locator("#model").click()
    assert page.evaluate("document.querySelector('#card').scrollWidth <= document.querySelector('#card').clientWidth")
    assert not is_wider_than_window(page)


def small_targets(page: Page) -> list[str]:
    """Return the texts of the controls that are in sight and smaller than 44 px."""
    names: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("button, select, a, summary, label, input[type=number]")]
            .filter((e) => e.checkVisibility()).map((e) => [e.textContent || e.id, e.getBoundingClientRect()])
            .filter(([text, box]) => box.height < 43.5 || box.width < 43.5).map(([text]) => text)"""
    )
    return names


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
    chooser.value.set_files([file("a.png", PNG), file("b.png", PNG), file("c.png", b"")])
    expect(page.locator("#count")).to_have_text("3 of 3")
    expect(page.locator("#status")).to_contain_text("3 of 3 done")
    page.locator(".row").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#detail")).to_contain_text("b.png")
    page.keyboard.press("End")
    expect(page.locator("#detail")).to_contain_text("is empty")
    page.keyboard.press("Home")
    expect(page.locator("#readout")).to_contain_text("px")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # past the other images
    page.keyboard.press("Tab")  # and the choice to keep the session, to the image
    expect(page.locator("#canvas")).to_be_focused()
    page.keyboard.press("h")
    expect(page.locator("#heat-options")).to_be_visible()


def test_tab_reaches_all_of_it_and_each_stop_shows_that_it_has_the_focus(page: Page) -> None:
    drop(page, {"image.png": PNG})
    expect(page.locator("#count")).to_have_text("1 of 1")
    page.locator("#tool-side").click()
    expect(page.locator("#stage-note")).to_have_text("")
    page.locator("#model").focus()
    page.keyboard.press("Shift+Tab")
    while page.evaluate(STOP):
        page.keyboard.press("Tab")
    assert page.evaluate("[...document.querySelectorAll('[data-stop=unmarked]')].map((e) => e.outerHTML)") == []
    missed = page.evaluate(
        """[...document.querySelectorAll("button, select, a, canvas, summary, input")].filter((e) => !e.dataset.stop
            && e.checkVisibility() && !e.disabled && e.name !== "heat-class").map((e) => e.outerHTML)"""
    )
    assert missed == []
    assert page.locator(".choice input[data-stop]").count() == 1, "arrow keys lead on from the chosen class"


# Notes at the focused element whether an outline marks it or what stands for it; returns false after the last one.
STOP = """() => {
    const e = document.activeElement;
    if (e === document.body || e.dataset.stop) return false;
    const marks = [e, e.nextElementSibling, e.parentElement].filter(Boolean).map((one) => getComputedStyle(one));
    e.dataset.stop = marks.some(({ outlineStyle }) => outlineStyle === "solid") ? "marked" : "unmarked";
    return true;
}"""


def test_high_contrast_shows_what_is_chosen_and_that_the_service_is_away(browser: Browser, served: Served) -> None:
    with browser.new_context(**SCHEMES["forced colours"]) as context:
        page = context.new_page()
        page.goto(served.address)
        expect(page.locator("#model")).to_have_class(re.compile("is-ready"))
        drop(page, {"image.png": PNG})
        expect(page.locator("#count")).to_have_text("1 of 1")
        page.locator("#tool-heat").click()
        expect(page.locator("#stage-note")).to_have_text("")
        assert colour(page, "#tool-heat") == colour(page, ".choice input:checked + span")
        assert colour(page, "#tool-heat") != colour(page, "#tool-side")
        assert colour(page, ".chart .fill") != colour(page, ".chart .track")
        ready = colour(page, ".dot")
        page.evaluate("document.querySelector('#model').classList.replace('is-ready', 'is-away')")
        assert colour(page, ".dot") != ready


def colour(page: Page, selector: str) -> Any:
    return page.evaluate("(s) => getComputedStyle(document.querySelector(s)).backgroundColor", selector)
