"""The checklist answers every item, and what it points at exists."""

import re
from pathlib import Path

import pytest

from tests.support.project import PROJECT, is_parameter

TEMPLATES = PROJECT / "cxr" / "reporting" / "templates"
CHECKLIST = PROJECT / "docs" / "claim-checklist.md"
TEXT = CHECKLIST.read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", TEXT, re.MULTILINE)
MADE_BY_A_RUN = ("reports/",)


def sections_of(page: str) -> set[str]:
    """Return the titles of the sections of the report or a card, from its templates."""
    if page == "report":
        html = "".join(path.read_text(encoding="utf-8") for path in TEMPLATES.glob("*.html.j2"))
        return set(re.findall(r"<h2>(.+?)</h2>", html))
    template = TEMPLATES / f"{page.replace(' ', '_')}.md.j2"
    return set(re.findall(r"^## (.+)$", template.read_text(encoding="utf-8"), re.MULTILINE))


def anchors_of(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_each_of_the_44_items_has_one_row_with_an_answer() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 45))
    assert {answered for _, _, answered, _ in ROWS} == {"yes", "in part", "no"}


@pytest.mark.parametrize("answer", ["Not answered", "In part"])
def test_the_summary_names_the_items_that_lack_an_answer(answer: str) -> None:
    listed = re.search(rf"{answer}: ([\d, and]+)\.", TEXT)
    assert listed is not None
    marked = "no" if answer == "Not answered" else "in part"
    assert re.findall(r"\d+", listed[1]) == [number for number, _, answered, _ in ROWS if answered == marked]


def test_every_file_that_is_named_exists() -> None:
    spans = {span for span in re.findall(r"`([\w./-]+)`", TEXT) if not is_parameter(span)}
    named = {span for span in spans if "/" in span or "." in span or span == "LICENSE"}
    assert len(named) > 15
    missing = [path for path in named if not path.startswith(MADE_BY_A_RUN) and not (PROJECT / path).is_file()]
    assert missing == []


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("https://")]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        document = CHECKLIST.parent / path
        assert document.is_file(), link
        assert not anchor or anchor in anchors_of(document), link


def test_every_section_of_report_and_cards_that_is_named_exists() -> None:
    named = re.findall(r"\*(report|model card|data card): ([^*]+)\*", TEXT)
    assert len(named) > 20
    assert [f"{page}: {title}" for page, title in named if title not in sections_of(page)] == []
