"""The contact sheet saves what its reader chooses, and loses no decision of the file that it replaces."""

from pathlib import Path

import pytest

from cxr.common.notices import SYNTHETIC
from cxr.dataset.corrections import Correction, read_corrections
from cxr.forensics.page import render_review
from cxr.forensics.review import DoubtedImage
from tests.support.pages.browsers import launch_browser

EARLIER = [Correction("set-1", "viral", 'Ann "Lee", </script>'), Correction("set-2", "normal", "Ann")]
SHOWN = [DoubtedImage(name, f"{name}.png", "viral", "bacterial", 0.1, 0.9, "data:,") for name in ("set-2", "set-3")]
CHOSEN = [Correction("set-2", "bacterial", "Bo Berg"), Correction("set-3", "normal", "Bo Berg")]


@pytest.mark.parametrize(
    ("earlier", "expected"), [([], CHOSEN), (EARLIER, [EARLIER[0], *CHOSEN])], ids=["first sheet", "second sheet"]
)
def test_the_sheet_saves_choices_and_repeats_earlier_corrections(
    earlier: list[Correction], expected: list[Correction], tmp_path: Path
) -> None:
    with launch_browser() as browser:
        page = browser.new_page()
        page.set_content(render_review(SHOWN, earlier, synthetic=False))
        page.fill("#reviewer", "Bo Berg")
        for one in CHOSEN:
            page.select_option(f"[data-image={one.image_id}]", one.label)
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / download.value.suggested_filename)
        assert page.inner_text("#saved") == f"{len(expected)} corrections saved"
    assert read_corrections(tmp_path / "labels-corrected.csv") == expected


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_sheet_of_synthetic_images_says_so(synthetic: bool) -> None:
    assert (SYNTHETIC in render_review(SHOWN, [], synthetic=synthetic)) is synthetic
