"""Accessibility of a page in the browser, as axe-core measures it (https://github.com/dequelabs/axe-core, MPL 2.0)."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

_AXE = Path(__file__).with_name("axe.min.js")
SCHEMES: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "forced colours": {"color_scheme": "dark", "forced_colors": "active"},
}
"""Options of a browser context by name; Windows High Contrast is "forced colours"."""


def violations(page: Page) -> list[str]:
    """Return what breaks a rule of axe, all rules that it checks unless told otherwise: the rule and the elements."""
    page.evaluate(_AXE.read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run({ resultTypes: ['violations'] })).violations")
    return [f"{one['id']}: {' '.join(node['html'][:120] for node in one['nodes'])}" for one in found]


def is_wider_than_window(page: Page) -> bool:
    """Return whether the page scrolls sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def faults_of_report(browser: Browser, html: str) -> list[str]:
    """Return what is wrong with a self-contained page, on a phone in every scheme and on a desktop; [] if nothing."""
    found = []
    for scheme, width in (*((scheme, 390) for scheme in SCHEMES), ("light", 1280)):
        with browser.new_context(viewport={"width": width, "height": 900}, **SCHEMES[scheme]) as context:
            page = context.new_page()
            page.set_content(html)
            faults = violations(page) + page.evaluate(_OVERLAPS)
            faults += ["is wider than the window"] if is_wider_than_window(page) else []
            found += [f"{scheme}, {width} px: {fault}" for fault in faults]
    return found


_OVERLAPS = """() => [...document.querySelectorAll("main svg")].flatMap((svg) => {
    const texts = [...svg.querySelectorAll("text")].map((e) => [e.textContent.trim(), e.getBoundingClientRect()]);
    return texts.flatMap(([one, a], i) => texts.slice(i + 1).filter(([other, b]) => one && other
        && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.3 * Math.min(a.height, b.height))
        .map(([other]) => `texts overlap: ${one}, ${other}`));
})"""
