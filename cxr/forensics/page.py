"""The pages of `tasks.forensics`: the findings, and the contact sheet for a person who relabels.

Both are self-contained, without network access. The findings show no image. The contact sheet shows the doubted ones;
its script writes the reader's choices to a file and sends nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxr.common.classes import LABELS
from cxr.common.notices import notice
from cxr.dataset.corrections import Correction, correction_lines
from cxr.forensics import figures
from cxr.forensics.review import DoubtedImage
from cxr.reporting.templating import render

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(content: Mapping[str, Any], drawn: Mapping[str, Mapping[str, str]]) -> str:
    """Return the findings as HTML; `content` is that of forensics.json, `drawn` what `draw_figures` makes of it."""
    shown = {"found": content, "figures": drawn, "notice": notice(synthetic=content["synthetic"])}
    return render("forensics.html.j2", shown, folder=_TEMPLATES)


def draw_figures(content: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the figures of each examined source as SVG by name; a figure without data is left out."""
    drawn = {}
    for source, examined in content["sources"].items():
        if "unavailable_because" not in examined:
            drawn[source] = {"probes": figures.style_probes(examined["probes"])}
            if examined["sequences"]:
                drawn[source]["agreement"] = figures.agreement_along_order(examined["sequences"])
    return drawn


def render_review(images: Sequence[DoubtedImage], earlier: Sequence[Correction], *, synthetic: bool) -> str:
    """Return the contact sheet as HTML.

    Args:
        images: that it shows.
        earlier: corrections of the file that the one of the sheet will replace; it repeats them, but for images for
            which the reader now chooses a label.
        synthetic: the images show nobody.
    """
    lines = {one.image_id: line for one, line in zip(earlier, correction_lines(earlier), strict=True)}
    content = {"images": images, "earlier": lines, "labels": LABELS, "notice": notice(synthetic=synthetic)}
    return render("review.html.j2", content, folder=_TEMPLATES)
