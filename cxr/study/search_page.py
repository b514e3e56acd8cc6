"""The results of a search: a table of all trials, and a page that says what they are worth."""

import csv
from collections.abc import Sequence
from pathlib import Path

from cxr.common.files import atomic_file
from cxr.common.notices import NOT_CLINICAL
from cxr.reporting.templating import render
from cxr.study.search import Search, Tried
from cxr.study.spec import MIN_HEADLINE_SEEDS

TABLE = "trials.csv"
PAGE = "search.html"
_TEMPLATES = Path(__file__).parent / "templates"


def write_results(search: Search, tried: Sequence[Tried], folder: Path) -> None:
    """Write both files.

    Args:
        search: what was searched.
        tried: trials that have ended, the best first.
        folder: made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = list(search.parameters)
    with atomic_file(folder / TABLE) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", "validation_macro_f1", "epochs", *names, "run_id", "message"])
        for one in tried:
            values = [one.values.get(name) for name in names]
            writer.writerow([one.number, one.state, one.macro_f1, one.epochs, *values, one.run_id, one.message])
    with atomic_file(folder / PAGE) as partial:
        partial.write_text(as_page(search, tried), encoding="utf-8")


def as_page(search: Search, tried: Sequence[Tried]) -> str:
    """Return the page: the best trial as a row for study.yaml, what was searched, every trial."""
    best = next((one for one in tried if one.state == "complete"), None)
    content = {"search": search, "tried": tried, "best": best, "seeds": MIN_HEADLINE_SEEDS, "notice": NOT_CLINICAL}
    return render("search.html.j2", content, folder=_TEMPLATES)
