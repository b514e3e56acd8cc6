"""Answers for people fit the terminal, and the end says once what concerns several images."""

import os

from cxr.inference.answer import Answer
from cxr.inference.answer_table import Result, Style, Summary, Table
from tests.support.projects.registry_project import spec

LONG = "a/very/long/folder/of/many/images/number-0017.png"
SURE = Answer({"normal": 0.9, "viral": 0.06, "bacterial": 0.04}, refer=False)
UNSURE = Answer({"normal": 0.4, "viral": 0.36, "bacterial": 0.24}, refer=True)
MIRRORED = Answer({"normal": 0.9, "viral": 0.06, "bacterial": 0.04}, refer=True, warning="looks mirrored")


def test_a_line_is_no_wider_than_the_terminal_and_keeps_the_end_of_a_path() -> None:
    table = Table(spec(), [LONG], Style(columns=72))
    row = table.row(Result(LONG, SURE))
    assert len(row) <= 72
    assert len(table.heading()) == len(row)
    assert row.startswith("…")
    assert "number-0017.png" in row
    assert LONG in Table(spec(), [LONG], Style()).row(Result(LONG, SURE)), "without a terminal nothing is cut"


def test_colours_are_for_terminals_alone() -> None:
    plain, coloured = (Table(spec(), ["a.png"], style) for style in (Style(), Style(80, has_colours=True)))
    assert "\033[" not in plain.row(Result("a.png", UNSURE)) + plain.heading()
    assert coloured.row(Result("a.png", UNSURE)).startswith("\033[33m")
    assert "\033[" not in coloured.row(Result("a.png", SURE))
    assert "\033[31merror: a.png is empty" in coloured.row(Result("a.png", error="a.png is empty"))


def test_a_warning_is_told_once_with_its_images_and_the_end_counts_all() -> None:
    summary = Summary()
    for number in range(7):
        summary.add(Result(f"{number}.png", MIRRORED))
    for answer in (SURE, UNSURE):
        summary.add(Result("b.png", answer))
    summary.add(Result("c.png", error="c.png is empty"))
    warning, count = summary.lines(Style())
    assert warning == "warning for 7 images: looks mirrored\n  0.png, 1.png, 2.png, 3.png, 4.png and 2 more"
    assert count == "9 images answered, 7 with a warning, 8 for a reader, 1 could not be read"


def test_a_name_that_no_output_takes_or_that_commands_a_terminal_is_escaped() -> None:
    name = os.fsdecode(b"caf\xe9\x1b[2J.png")
    table, summary = Table(spec(), [name], Style()), Summary()
    result = Result(name, MIRRORED, error=f"{name} has no study")
    summary.add(result)
    for text in (table.row(result), table.row(Result(name, error=f"{name} is empty")), *summary.lines(Style())[:1]):
        assert text.encode().count(rb"caf\xe9\x1b[2J.png") == text.count("caf")
        assert "\033" not in text
