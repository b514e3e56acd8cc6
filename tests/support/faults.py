"""The list of faults that were tried, docs/faults.md: made from the marks of the tests that prove it.

    python -m tests.support.faults

writes the page. A test with the mark `fault` is one row; tests/e2e/test_damaged_inputs.py gives a row for each input of
each stage.
"""

import ast
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest

from tests.support.project import PROJECT

PAGE = PROJECT / "docs" / "faults.md"

_HEAD = """# Faults

What was done to the product on purpose, and what it did. Each row is proved by the test in its last column; the page is
made from these tests (`python -m tests.support.faults`), and a test fails while it is not current.

{count} rows. None ends in a traceback, and none leaves half an output: outputs are whole, as before, or gone.
Under `dvc repro`, DVC takes a stage's outputs away before the stage begins, also where that then refuses its input;
`./run dvc checkout` brings them back from the cache.

| where | fault | what happens | what the user sees | test |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One line of the page."""

    where: str
    fault: str
    happens: str
    seen: str
    test: str


def fault(where: str, what: str, happens: str, seen: str) -> pytest.MarkDecorator:
    """Mark a test as the proof of a row.

    Args:
        where: stage, command, flow or service.
        what: the fault.
        happens: what the product does.
        seen: what the user sees. Each is a string, or the name of one of the module.
    """
    return pytest.mark.fault(where, what, happens, seen)


def rows() -> list[Row]:
    """Return every row, sorted by place; more than one mark on a test gives more than one row."""
    found = [row for file in sorted((PROJECT / "tests").rglob("test_*.py")) for row in _marked(file)]
    return sorted([*found, *_damaged_inputs()], key=lambda row: (row.where, row.fault, row.test))


def page() -> str:
    """Return the content of docs/faults.md."""
    listed = rows()
    lines = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in astuple(row))} |\n" for row in listed)
    return _HEAD.format(count=len(listed)) + "".join(lines)


def _marked(file: Path) -> Iterator[Row]:
    module = ast.parse(file.read_text(encoding="utf-8"))
    texts = {
        node.targets[0].id: node.value.value
        for node in module.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(module):
        if not isinstance(node, ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "fault":
                where, what, happens, seen = (
                    texts[argument.id] if isinstance(argument, ast.Name) else ast.literal_eval(argument)
                    for argument in mark.args
                )
                yield Row(where, what, happens, seen, f"`{file.relative_to(PROJECT)}::{node.name}`")


def _damaged_inputs() -> Iterator[Row]:
    from tests.e2e import test_damaged_inputs as damaged

    test = f"`tests/e2e/test_damaged_inputs.py::{damaged.test_a_damaged_input_is_refused_by_name.__name__}`"
    refused, whole = "refused before any output is touched", "the earlier outputs are as before, or gone"
    for stage, files in damaged.INPUTS.items():
        for file in files:
            advice = f"run `./run dvc repro {damaged.writer(file)}`" if stage != "ingest" else "save it again"
            kinds = [kind for kind in damaged.DAMAGE if (stage, file, kind) not in damaged.HARMLESS]
            if "missing" in kinds:
                yield Row(stage, f"`{file}` is missing", whole, f"exit code 5 or 7, the file's name, {advice}", test)
            other = ", ".join(kind for kind in kinds if kind != "missing")
            seen = f"exit code 5 or 7, the file, what was expected and found, {advice}"
            yield Row(stage, f"`{file}`: {other}", refused if stage != "validate" else whole, seen, test)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
