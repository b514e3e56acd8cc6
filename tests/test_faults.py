"""docs/faults.md is what the tests prove."""

from tests.support.faults import PAGE, rows
from tests.support.faults import page as made

LEAST_ROWS = 120


def test_the_page_of_faults_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == made(), "run `python -m tests.support.faults`"


def test_the_page_has_enough_rows_and_none_twice() -> None:
    found = rows()
    assert len(found) >= LEAST_ROWS
    assert len({(row.where, row.fault) for row in found}) == len(found)
