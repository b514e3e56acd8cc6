"""Make Data Docs self-contained and reproducible.

As generated, Data Docs load styles, fonts, scripts and an image with a time stamp from ten hosts. Without a network
they show unstyled text and an empty index, and with one they tell these hosts who reads the report. They also contain
times and random IDs, so that two runs on the same data would give different entries in dvc.lock.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tasks.quality.expectations import Outcome

_REMOTE = re.compile(r"<script\b.*?</script>|<footer\b.*?</footer>|<link\b[^>]*>|<img\b[^>]*>", re.DOTALL)
_TIME = re.compile(r"\d{4}-?\d\d-?\d\dT\d\d:?\d\d:?\d\d[\d.:+]*Z?")
_RANDOM_ID = re.compile(r"-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RESOURCE = re.compile(r"url\([^)]*\)")
_NEEDS_SCRIPT = ".modal, .btn, [data-toggle=collapse], .card:has(.btn-group)"

_STYLE = f"""<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #1c2733; margin: 0 auto; max-width: 1200px; padding: 1rem }}
a {{ color: #0b5c8a }}
h4, h5, h6 {{ margin: .6rem 0 .3rem }}
table {{ border-collapse: collapse; margin: .4rem 0 1rem }}
td, th {{ border: 1px solid #d5dde4; padding: .25rem .6rem; text-align: left; vertical-align: top }}
th {{ background: #f0f4f7 }}
ol, ul {{ padding-left: 1.2rem }}
.breadcrumb, .nav {{ list-style: none; padding: 0 }}
.breadcrumb {{ display: flex; gap: .5rem }}
.breadcrumb li + li::before {{ content: "/ " }}
.alert {{ background: #f0f4f7; border-left: 4px solid #0b5c8a; margin: 1rem 0 .4rem; padding: .4rem .8rem }}
.badge {{ background: #e3e9ee; border-radius: 3px; font-family: monospace; padding: 0 .3rem }}
.text-success::before {{ color: #1a7f37; content: "\\2713"; font-weight: bold }}
.text-warning::before {{ color: #9a6700; content: "!"; font-weight: bold }}
.text-danger::before {{ color: #c0262d; content: "\\2717"; font-weight: bold }}
{_NEEDS_SCRIPT} {{ display: none }}
</style>
"""


def make_self_contained(docs: Path, outcomes: Sequence[Outcome], *, title: str, notes: str) -> None:
    """Remove scripts, remote resources and times from the pages below `docs`, and write an index without them."""
    for page in docs.rglob("*.html"):
        html = _REMOTE.sub("", page.read_text(encoding="utf-8"))
        html = _RANDOM_ID.sub("", _TIME.sub("not recorded", _RESOURCE.sub("none", html)))
        page.write_text(html.replace("</head>", f"{_STYLE}</head>", 1), encoding="utf-8")
    shutil.rmtree(docs / "static", ignore_errors=True)  # fonts and 3 MB of tutorial images
    (docs / "index.html").write_text(_index(docs, outcomes, title, notes), encoding="utf-8")


def _index(docs: Path, outcomes: Sequence[Outcome], title: str, notes: str) -> str:
    pages = sorted(page.relative_to(docs).as_posix() for page in (docs / "validations").rglob("*.html"))
    links = "".join(f'<li><a href="{escape(page)}">{escape(page.split("/")[1])}</a></li>' for page in pages)
    passed = all(outcome.passed for outcome in outcomes if outcome.severity == "error")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="UTF-8"><title>{escape(title)}</title>\n'
        f"{_STYLE}</head>\n<body><h1>{escape(title)}: {'passed' if passed else 'failed'}</h1>\n"
        f"<p><strong>{escape(notes)}</strong></p>\n"
        "<table><tr><th></th><th>check</th><th>severity</th><th>expected</th><th>found</th></tr>\n"
        f"{''.join(_row(outcome) for outcome in outcomes)}</table>\n"
        f"<h4>Details by Great Expectations</h4>\n<ul>{links}</ul>\n</body></html>\n"
    )


def _row(outcome: Outcome) -> str:
    failed = "text-danger" if outcome.severity == "error" else "text-warning"
    found = "<br>".join(escape(line) for line in (outcome.observed, *outcome.offenders))
    return (
        f'<tr><td class="{"text-success" if outcome.passed else failed}"></td><td>{escape(outcome.name)}</td>'
        f"<td>{outcome.severity}</td><td>{escape(outcome.expected)}</td><td>{found}</td></tr>\n"
    )
