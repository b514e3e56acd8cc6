"""The monitor's page is self-contained and explains every alarm."""

from dataclasses import replace

from cxr.monitoring.agreement import Agreement
from cxr.monitoring.drift import FAILED, SIGNALS
from cxr.monitoring.page import MonitorPage, render_page, to_markdown
from tests.support.images.reference_images import CLASSES
from tests.support.pages.accessibility import faults_of_report
from tests.support.pages.browsers import launch_browser
from tests.support.projects.drift_windows import window

PAGE = MonitorPage(
    version="3", drift=True, rule="1 alarm", window_images=40, windows=[window(1, alarm=False), window(2, alarm=True)],
    limits=dict.fromkeys((*SIGNALS, FAILED), 0.2), usual_shares=dict.fromkeys(CLASSES, 1 / 3),
    reference_images=240, waiting=7, since="2026-01-01T00:00",
    origin={"Version": "3", "Role": "champion"},
)  # fmt: skip
DARKER = "images are darker: the median shifted by 1.0 spreads (distance 0.30, limit 0.20)"


def test_page_is_self_contained_and_escapes_paths() -> None:
    html = render_page(PAGE)
    assert DARKER in html
    assert "http" not in html
    assert "<script" not in html
    assert "a&lt;b&gt;.png" in html


def test_page_is_whole_and_accessible_and_says_in_short_what_shifted() -> None:
    html = render_page(PAGE)
    assert f"<dd>In the last alarm, window 2: {DARKER}.</dd>" in html
    assert "<dt>Role</dt><dd>champion</dd>" in html
    assert '<a href="#every-signal">Every signal</a>' in html
    with launch_browser() as browser:
        assert faults_of_report(browser, html) == []


def test_markdown_has_a_row_per_window() -> None:
    rows = to_markdown(PAGE).splitlines()
    assert [row.startswith("| 1 |") or row.startswith("| 2 |") for row in rows[-2:]] == [True, True]
    assert rows[-1].endswith(f"| {DARKER} |")


def test_page_without_windows_counts_the_scored_images() -> None:
    assert "7 of 40 images" in render_page(replace(PAGE, windows=[], drift=False))


def test_agreement_of_readers_stands_on_the_page_and_in_markdown() -> None:
    page = replace(PAGE, agreement=[Agreement("2026-03", 40, 30, 0.75, 0.598, 0.858)])
    assert "<td>2026-03</td><td>40</td><td>30</td><td>75%</td>" in render_page(page)
    assert to_markdown(page).splitlines()[-1] == "| 2026-03 | 40 | 75% | 60% to 86% |"
    assert "What readers say" not in render_page(PAGE)
