"""The web app in a real browser."""

import base64
import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from cxr.common.notices import NOT_CLINICAL
from cxr.inference.feedback import read_feedback
from tests.support.images.dicom_images import dicom_image
from tests.support.images.real_data import RAW, needs_real_images
from tests.support.pages.browsers import drop
from tests.support.services.webapp_server import IMAGE as PNG
from tests.support.services.webapp_server import LIMITS, METRICS, Served, serve_here, synthetic, tiny_classifier, use

DICOM = dicom_image(synthetic("normal", seed=2).astype(np.uint16))
EVIL = '=HYPERLINK("x")<img src=x onerror=alert(1)>.png'


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve_here(tiny_classifier(refer_below=0.99)) as served:
        yield served


def test_a_png_a_dicom_image_and_a_text_file_each_get_the_right_result(page: Page) -> None:
    drop(page, {"image.png": PNG, "IM000001": DICOM, "notes.txt": b"Not an image.\n"})
    expect(page.locator("#count")).to_have_text("3 of 3")
    rows = page.locator(".row")
    for number, data in enumerate((PNG, DICOM)):
        classifier = tiny_classifier(refer_below=0.99)
        (answer,) = classifier.answer(classifier.read(data, name="image")[None])
        rows.nth(number).click()
        expect(page.locator(".prediction")).to_contain_text(answer.predicted_class)
        texts = page.locator(".chart .probability").all_text_contents()
        shown = [float(text.strip("<> %")) / 100 for text in texts]
        assert shown == pytest.approx(list(answer.probabilities.values()), abs=0.001)
        assert answer.refer is True
        expect(page.locator(".finding")).to_contain_text("A reader should see this image")
        expect(rows.nth(number).locator(".flag")).to_have_text("Refer")
        height, width = synthetic(*_image(number)).shape
        expect(page.locator("#readout")).to_contain_text(f"{width} x {height} px")
    rows.nth(2).click()
    expect(page.locator("#detail")).to_contain_text("No result for this file")
    expect(page.locator("#detail")).to_contain_text("not an image")
    expect(page.locator("#stage")).to_be_hidden()


def _image(number: int) -> tuple[str, int]:
    return (("viral", 1), ("normal", 2))[number]


def test_the_disclaimer_is_visible_at_every_width(page: Page) -> None:
    for width in (1400, 390):
        page.set_viewport_size({"width": width, "height": 800})
        notice = page.locator(".notice").first
        expect(notice).to_be_in_viewport()
        expect(notice).to_contain_text(NOT_CLINICAL)
        expect(notice).to_contain_text("Synthetic images")
        too_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not too_wide


def test_the_heat_map_is_off_until_asked_for_and_has_a_class_and_an_opacity(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "heat=true" in request.url else None)
    drop(page, {"image.png": PNG})
    expect(page.locator("#readout")).to_contain_text("px")
    settle(page)
    plain = pixels(page)
    assert np.ptp(plain, axis=2).max() == 0  # grey
    assert asked == []
    with page.expect_response(lambda response: "heat=true" in response.url):
        page.locator("#tool-heat").click()
    expect(page.locator("#stage-note")).to_have_text("")
    expect(page.locator(".legend")).to_contain_text("transparent, not used")
    assert len(asked) == 1
    settle(page)
    coloured = np.ptp(pixels(page), axis=2).max()
    assert coloured > 20
    page.locator("#opacity").fill("20")
    assert 0 < np.ptp(pixels(page), axis=2).max() < coloured
    with page.expect_response(lambda response: "heat=true" in response.url):
        page.locator(".choice input:not(:checked)").first.check(force=True)
    expect(page.locator("#stage-note")).to_have_text("")
    assert len(asked) == 2
    page.locator("#tool-heat").click()
    settle(page)
    assert np.array_equal(pixels(page), plain)


def pixels(page: Page) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return what the viewer shows, (height, width, 3)."""
    png = base64.b64decode(page.evaluate("document.querySelector('#canvas').toDataURL()").partition(",")[2])
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), np.int64)


def settle(page: Page) -> None:
    """Wait until the image fits its pane, which the line below it makes smaller as it gets its text."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def readout(page: Page) -> dict[str, int]:
    text = page.locator("#readout").inner_text()
    found = re.search(r"(\d+)% · window (\d+), level (-?\d+)", text)
    assert found is not None, text
    return dict(zip(("scale", "window", "level"), map(int, found.groups()), strict=True))


def test_the_viewer_zooms_pans_and_windows_16_bits_by_mouse_and_keyboard(page: Page) -> None:
    drop(page, {"IM000001": dicom_image(synthetic().astype(np.uint16) * 16, bits=12, ImageLaterality="R")})
    expect(page.locator("#orientation")).to_have_text("View PA · Side R")
    settle(page)
    canvas, start, fitted = page.locator("#canvas"), readout(page), pixels(page)
    assert start["window"] == 16 * int(np.ptp(synthetic()))
    canvas.hover()
    page.mouse.wheel(0, -600)
    assert readout(page)["scale"] > start["scale"]
    page.mouse.down()
    page.mouse.move(500, 300, steps=3)
    page.mouse.up()
    panned = pixels(page)
    page.mouse.down(button="right")
    page.mouse.move(400, 300, steps=3)
    page.mouse.up(button="right")
    assert readout(page)["window"] < start["window"]
    assert not np.array_equal(pixels(page), panned)
    canvas.focus()
    for key, change in (("1", "scale"), ("Shift+ArrowUp", "level"), ("Shift+ArrowRight", "window"), ("-", "scale")):
        before = readout(page)
        page.keyboard.press(key)
        assert readout(page)[change] != before[change], key
    page.keyboard.press("r")
    assert readout(page) == start
    assert np.array_equal(pixels(page), fitted)
    page.keyboard.press("i")
    expect(page.locator("#readout")).to_contain_text("inverted")
    middle = fitted.shape[0] // 2, fitted.shape[1] // 2
    assert pixels(page)[middle][0] == pytest.approx(255 - fitted[middle][0], abs=2)


def test_a_dicom_image_is_windowed_in_its_own_units_from_the_windows_of_its_file(page: Page) -> None:
    stored = synthetic().astype(np.uint16) * 16
    windows = {
        "WindowCenter": [1000, 500],
        "WindowWidth": [2000, 1500],
        "WindowCenterWidthExplanation": ["WIDE", "BONE"],
    }
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU", "VOILUTFunction": "LINEAR_EXACT"}
    drop(page, {"IM000001": dicom_image(stored, bits=12, **windows, **rescale)})
    expect(page.locator("#readout")).to_contain_text("window 2000, level 1000 HU")
    settle(page)
    start = pixels(page)
    page.locator("#canvas").press("w")
    level, width, presets = (page.get_by_label(name, exact=True) for name in ("Level", "Width", "Preset"))
    expect(presets.locator("option:checked")).to_have_text("WIDE: level 1000, width 2000")
    presets.select_option("BONE: level 500, width 1500")
    expect(page.locator("#readout")).to_contain_text("window 1500, level 500 HU")
    page.locator("#canvas").press("1")
    page.locator("#canvas").press("w")  # the pane has its full height again
    settle(page)
    expected = np.clip((stored.astype(float) - 1024 - 500) / 1500 + 0.5, 0, 1) * 255
    middle = np.asarray(pixels(page).shape[:2]) // 2
    shown = pixels(page)[middle[0] - 40 : middle[0] + 40, middle[1] - 40 : middle[1] + 40, 0]
    rows, columns = (side // 2 for side in stored.shape)
    difference = np.abs(shown - expected[rows - 40 : rows + 40, columns - 40 : columns + 40])
    assert difference.mean() <= 4  # a side of odd length lies half a pixel off
    page.locator("#canvas").press("w")
    width.fill("800")
    width.press("Enter")
    expect(page.locator("#readout")).to_contain_text("window 800, level 500 HU")
    expect(presets.locator("option:checked")).to_have_text("Your own")
    level.fill("")
    level.press("Enter")
    expect(level).to_have_value("500")
    presets.select_option("All levels of the image")
    expect(page.locator("#readout")).to_contain_text(f"window {np.ptp(stored)}")
    page.locator("#canvas").press("r")
    page.locator("#canvas").press("w")
    settle(page)
    assert np.array_equal(pixels(page), start)


def test_two_fingers_zoom(page: Page) -> None:
    drop(page, {"image.png": PNG})
    expect(page.locator("#readout")).to_contain_text("px")
    settle(page)
    before = readout(page)["scale"]
    page.evaluate(
        """() => { const c = document.querySelector("#canvas"); c.setPointerCapture = () => {};
            const box = c.getBoundingClientRect(), y = box.top + 100;
            const send = (type, pointerId, x) => c.dispatchEvent(new PointerEvent(type,
                { pointerId, clientX: box.left + x, clientY: y, pointerType: "touch", buttons: 1, bubbles: true }));
            send("pointerdown", 1, 100); send("pointerdown", 2, 200); send("pointermove", 2, 300);
            send("pointerup", 1, 100); send("pointerup", 2, 300); }"""
    )
    assert readout(page)["scale"] == pytest.approx(2 * before, abs=2)


def test_side_by_side_shows_the_image_and_the_image_with_its_heat(page: Page) -> None:
    drop(page, {"image.png": PNG})
    expect(page.locator("#readout")).to_contain_text("px")
    expect(page.locator("#count")).to_have_text("1 of 1")  # without an answer there is no heat map to wait for
    page.locator("#tool-side").click()
    expect(page.locator("#stage-note")).to_have_text("")
    shown = np.ptp(pixels(page), axis=2)
    half = shown.shape[1] // 2
    assert shown[:, : half - 2].max() == 0
    assert shown[:, half + 2 :].max() > 20


def test_the_session_survives_a_reload_unless_that_is_switched_off(page: Page) -> None:
    drop(page, {"a.png": PNG, "b.txt": b"none"})
    expect(page.locator("#count")).to_have_text("2 of 2")
    page.reload()
    expect(page.locator("#count")).to_have_text("2 of 2")
    page.locator(".row", has_text="a.png").click()
    expect(page.locator("#readout")).to_contain_text("px")
    page.locator("#keep").uncheck()
    page.reload()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#keep")).not_to_be_checked()


def test_clear_can_be_undone(page: Page) -> None:
    drop(page, {"image.png": PNG})
    expect(page.locator("#count")).to_have_text("1 of 1")
    page.locator("#clear").click()
    expect(page.locator(".row")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    assert "image.png" not in page.locator("body").inner_text()
    page.locator("#undo").click()
    expect(page.locator(".row")).to_have_count(1)
    expect(page.locator(".prediction")).to_contain_text("Prediction")


def test_when_the_service_stops_the_dot_tells_and_images_are_retried_once_it_is_back(browser: Browser) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        with serve_here(tiny_classifier()) as served:
            page.goto(served.address)
            expect(page.locator("#model")).to_have_class(re.compile("is-ready"))
        drop(page, {"image.png": PNG})
        expect(page.locator(".finding")).to_contain_text("could not be sent")
        expect(page.locator("#service")).to_contain_text("does not answer")
        expect(page.locator("#model")).to_have_class(re.compile("is-away"))
        with serve_here(tiny_classifier(), port=served.port):
            expect(page.locator("#model")).to_have_class(re.compile("is-ready"))
            expect(page.locator("#service")).to_have_text("")
            page.locator("#retry").click()
            expect(page.locator(".prediction")).to_contain_text("Prediction")
            expect(page.locator("#retry")).to_be_hidden()


def test_the_examples_are_one_click_away_and_the_list_sorts_and_filters(page: Page) -> None:
    page.locator("#examples").click()
    expect(page.locator("#count")).to_have_text("4 of 4")
    rows = page.locator(".row")
    expect(rows.nth(3).locator(".flag")).to_have_text("Warning")  # it is upside down
    drop(page, {"aaa.txt": b"none"})
    expect(page.locator("#count")).to_have_text("5 of 5")
    page.select_option("#order", "name")
    expect(rows.first).to_contain_text("aaa.txt")
    page.select_option("#filter", "failed")
    expect(rows).to_have_count(1)
    page.select_option("#filter", "refer")
    expect(rows).to_have_count(4)


def test_on_a_phone_a_tap_on_an_image_shows_it_below_the_notice(page: Page, served: Served) -> None:
    served.webapp.watch.contradiction = "the alias champion was removed by hand; " * 8
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    drop(page, {f"{number}.png": PNG for number in range(3)})
    page.locator("#list .row").nth(2).click()
    expect(page.locator("#canvas")).to_be_in_viewport(ratio=0.99)
    notice, canvas = page.locator(".notice").first.bounding_box(), page.locator("#canvas").bounding_box()
    assert notice is not None
    assert canvas is not None
    assert notice["y"] + notice["height"] <= canvas["y"]
    served.webapp.watch.contradiction = ""


def test_a_list_of_500_images_scrolls_by_itself(page: Page) -> None:
    page.route("**/predict*", lambda route: route.abort())
    drop(page, {f"{number:03d}.png": b"none" for number in range(500)})
    expect(page.locator("#count")).to_have_text("500 of 500")
    page.locator(".row").nth(450).click()
    expect(page.locator(".finding .file")).to_have_text("450.png")
    expect(page.locator(".finding .file")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    page.keyboard.press("End")
    expect(page.locator(".row").nth(499)).to_be_focused()
    expect(page.locator(".row").nth(499)).to_be_in_viewport()


@needs_real_images
def test_500_real_images_are_answered_sorted_and_kept(page: Page) -> None:
    page.set_default_timeout(60_000)
    files = sorted((RAW / "chest_xray").rglob("*.jpeg"))[::10][:500]
    page.set_input_files("#file", files)
    expect(page.locator("#count")).to_have_text("500 of 500", timeout=600_000)
    expect(page.locator(".row.is-wrong")).to_have_count(0)
    page.select_option("#order", "refer")
    flags: list[bool] = page.locator(".row").evaluate_all(
        "rows => rows.map((row) => row.querySelector('.flag') !== null)"
    )
    assert flags == sorted(flags, reverse=True)
    page.locator(".row").nth(450).click()
    expect(page.locator("#readout")).to_contain_text("224 x 224 px")
    page.reload()
    expect(page.locator("#count")).to_have_text("500 of 500")
    page.locator(".row").nth(499).click()
    expect(page.locator("#readout")).to_contain_text("224 x 224 px")


def test_the_overlay_and_the_report_can_be_saved(page: Page) -> None:
    drop(page, {"image.dcm": DICOM})
    for name, suffix, start in (("overlay", "overlay.png", b"\x89PNG"), ("report", "sr.dcm", b"\0" * 128 + b"DICM")):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save {name}").click()
        assert download.value.suggested_filename == f"image.dcm.{suffix}"
        assert download.value.path().read_bytes().startswith(start)


def test_one_key_agrees_or_corrects_and_a_reload_keeps_it(page: Page, served: Served) -> None:
    table = served.webapp.service.feedback.table
    drop(page, {"Jane Sorrowful.png": PNG})
    box = page.get_by_role("group", name="What do you see?")
    box.get_by_label("Note, without names").fill("a note")
    page.locator("#list .row").focus()
    page.keyboard.press("a")
    expect(box).to_contain_text("Stored: ")
    page.locator("#result").focus()
    page.keyboard.press("n")
    expect(box).to_contain_text("Stored: normal")
    box.get_by_label("Note, without names").press_sequentially("van")  # letters in a note are no keys
    agreed, corrected = read_feedback(table)
    assert (agreed.agrees, agreed.note, corrected.label) == (True, "a note", "normal")
    assert agreed.image_sha256 == hashlib.sha256(PNG).hexdigest()
    assert "Jane" not in table.read_text()
    page.reload()
    expect(page.get_by_role("group", name="What do you see?")).to_contain_text("Stored: normal")


def test_feedback_that_is_not_stored_is_said_and_the_keyboard_stays_where_it_was(page: Page) -> None:
    drop(page, {"image.png": PNG})
    box = page.get_by_role("group", name="What do you see?")
    corrected = box.get_by_role("button", name="It is").first
    page.route("**/feedback", lambda route: route.abort())
    corrected.press("Enter")
    expect(box).to_contain_text("Not stored: The service does not answer.")
    page.unroute("**/feedback")
    corrected.press("Enter")
    expect(box).to_contain_text("Stored: ")
    expect(box).not_to_contain_text("Not stored")
    expect(corrected).to_be_focused()


def test_a_file_name_is_text_on_the_page_and_no_formula_in_the_csv(page: Page) -> None:
    drop(page, {EVIL: PNG, "b,\n.txt": b"none"})
    expect(page.locator("#count")).to_have_text("2 of 2")
    expect(page.locator(".finding .file")).to_have_text(EVIL)
    assert page.locator("img[src=x]").count() == 0
    with page.expect_download() as download:
        page.locator("#export").click()
    text = download.value.path().read_text(encoding="utf-8-sig")
    good, bad = csv.DictReader(io.StringIO(text, newline=""))
    assert good["file"] == good["path"] == f"'{EVIL}"
    assert good["sha256"] == hashlib.sha256(PNG).hexdigest()
    assert (bad["file"], bad["predicted_class"]) == ("b,\n.txt", "")
    assert "not an image" in bad["error"]
    classifier = tiny_classifier()
    (answer,) = classifier.answer(classifier.read(PNG, name="image")[None])
    assert {name: float(good[f"p_{name}"]) for name in answer.probabilities} == dict(answer.probabilities)
    assert (good["predicted_class"], good["refer"], good["model_version"]) == (answer.predicted_class, "true", "1")
    assert good["disclaimer"].startswith(NOT_CLINICAL)


def test_a_folder_can_be_dropped_or_chosen_with_all_below_it(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.png").write_bytes(PNG)
    (folder / "deeper" / "b.png").write_bytes(PNG)
    drop_folder(page, folder)
    expect(page.locator("#count")).to_have_text("2 of 2")
    paths = page.locator(".row .name").evaluate_all("all => all.map((one) => one.title)")
    assert sorted(paths) == ["study/a.png", "study/deeper/b.png"]
    page.set_input_files("#folder", folder)
    expect(page.locator("#count")).to_have_text("4 of 4")
    expect(page.locator(".row.is-wrong")).to_have_count(0)


def drop_folder(page: Page, folder: Path) -> None:
    """Drop a folder as the operating system hands it over."""
    session = page.context.new_cdp_session(page)
    box = page.locator("#drop").bounding_box()
    assert box is not None
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": box["x"] + 20, "y": box["y"] + 20, "data": data})


def test_what_the_browser_cannot_read_of_a_folder_is_named_and_the_rest_is_classified(
    page: Page, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(PNG)  # a name that is not UTF-8
    drop_folder(page, folder)
    expect(page.locator("#service")).to_contain_text("Left out, because the browser cannot read it: study")
    expect(page.locator("#count")).to_have_text("1 of 1")
    expect(page.locator(".row .name")).to_have_text("a.png")


def test_file_names_are_not_sent(page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda one: sent.append(f"{one.url} {one.headers} {(one.post_data_buffer or b'')[:20]!r}"))
    drop(page, {"Sorrowful^Jane.png": PNG})
    page.locator("#tool-heat").click()
    expect(page.locator("#stage-note")).to_have_text("")
    expect(page.locator("#readout")).to_contain_text("px")
    assert len(sent) >= 2
    assert not any("Sorrowful" in one for one in sent)


def test_a_busy_service_is_retried_until_all_images_are_classified(browser: Browser) -> None:
    images = {f"{seed}.png": cv2.imencode(".png", synthetic(seed=seed))[1].tobytes() for seed in range(6)}
    with (
        serve_here(tiny_classifier(), limits=replace(LIMITS, max_queued_images=1)) as served,
        browser.new_context() as context,
    ):
        page = context.new_page()
        page.goto(served.address)
        drop(page, images)
        expect(page.locator("#count")).to_have_text("6 of 6")
        expect(page.locator(".row.is-wrong")).to_have_count(0)


def test_an_alias_that_contradicts_the_audit_log_is_named_on_the_page(page: Page, served: Served) -> None:
    expect(page.locator("#contradiction")).to_be_hidden()
    served.webapp.watch.contradiction = "the alias champion was removed by hand"
    page.reload()
    expect(page.locator("#contradiction")).to_contain_text("The registry contradicts itself: the alias champion was")
    served.webapp.watch.contradiction = ""


def test_a_new_champion_shows_on_the_page(browser: Browser) -> None:
    with serve_here(tiny_classifier("1")) as served, browser.new_context() as context:
        page = context.new_page()
        page.goto(served.address)
        expect(page.locator("#model")).to_contain_text("Version 1")
        expect(page.locator("#subtitle")).to_contain_text("Normal, viral, bacterial:")
        use(
            served.webapp,
            tiny_classifier("2", seed=2, synthetic=False, classes=("normal", "bacterial"), bias=(0.0, 0.0)),
        )
        page.select_option("#filter", "viral")
        drop(page, {"image.png": PNG})
        expect(page.locator("#model")).to_contain_text("Version 2")
        expect(page.locator("#filter")).to_have_value("all")  # it has no such class
        expect(page.locator(".row")).to_have_count(1)
        expect(page.locator("#subtitle")).to_contain_text("Normal, bacterial:")
        expect(page.locator("#synthetic")).to_be_hidden()
        expect(page.locator(".facts")).to_contain_text("version 2")


def test_under_a_warning_there_is_no_answer_and_the_numbers_are_one_click_away(page: Page) -> None:
    upside_down = cv2.imencode(".png", np.rot90(synthetic(), 2))[1].tobytes()
    drop(page, {"upside-down.png": upside_down})
    expect(page.locator(".prediction")).to_have_text("No answer")
    expect(page.locator(".finding")).to_contain_text("upside down")
    expect(page.locator(".row .outcome")).to_have_text("no answer")
    expect(page.locator(".chart")).to_be_hidden()
    page.locator("summary", has_text="Show the numbers").click()
    expect(page.locator(".chart .probability")).to_have_count(3)


def test_beside_each_class_stands_how_often_the_model_is_right_about_it(browser: Browser) -> None:
    with serve_here(tiny_classifier()) as served, browser.new_context() as context:
        use(served.webapp, tiny_classifier(), metrics=METRICS)
        page = context.new_page()
        page.goto(served.address)
        drop(page, {"image.png": PNG})
        expect(page.locator(".chart > div").nth(1)).to_contain_text(
            "found 53% (36% to 70%) of 30 viral images; of 20 images it called viral, 80% (60% to 93%) were"
        )


def test_no_image_stands_beside_the_answer_to_another_one(page: Page) -> None:
    drop(page, {"a.dcm": DICOM, "b.png": PNG})
    expect(page.locator("#count")).to_have_text("2 of 2")
    expect(page.locator("#orientation")).to_have_text("View PA")
    held: list[Route] = []
    page.route("**/pixels?*", lambda route: held.append(route))  # noqa: PLW0108  # playwright takes no built-in
    with page.expect_request("**/pixels?*"):
        page.locator(".row", has_text="b.png").click()
    expect(page.locator("#finding .file")).to_have_text("b.png")
    expect(page.locator("#stage-note")).to_have_text("Loading the image …")
    assert pixels(page).max() == 0
    expect(page.locator("#orientation")).to_have_text("")
    expect(page.get_by_role("img", name="Image b.png, not loaded yet")).to_be_visible()
    page.locator("#canvas").press("h")
    page.locator("#canvas").press("w")
    page.get_by_label("Preset", exact=True).dispatch_event("change")
    page.locator("#canvas").press("w")
    page.locator("#canvas").press("h")
    held[0].continue_()
    expect(page.locator("#readout")).to_contain_text("px")
    assert pixels(page).max() > 0
    page.locator(".row", has_text="a.dcm").click()  # its pixels are there still
    expect(page.get_by_role("img", name="Image a.dcm. Arrow keys")).to_be_visible()


def test_the_heat_map_of_an_image_that_waited_for_its_answer_is_of_the_predicted_class(page: Page) -> None:
    drop(page, {"a.png": PNG})
    expect(page.locator("#readout")).to_contain_text("px")
    predicted = page.locator(".chart .is-top dt").inner_text()
    page.route("**/predict?image=true", lambda route: _answered_otherwise(route, predicted))
    drop(page, {"b.png": cv2.imencode(".png", synthetic(seed=9))[1].tobytes()})
    page.locator(".row", has_text="b.png").click()
    expect(page.locator("#finding .file")).to_have_text("b.png")
    other = page.locator(".chart .is-top dt")
    expect(other).not_to_have_text(predicted)
    page.locator("#tool-heat").click()
    expect(page.locator(".choice input:checked")).to_have_value(other.inner_text())


def _answered_otherwise(route: Route, predicted: str) -> None:
    """Answer when the page has shown the image, with another class than `predicted`."""
    response = route.fetch()
    answer = response.json()
    other = next(name for name in answer["probabilities"] if name != predicted)
    expect(route.request.frame.page.get_by_role("img", name="Image b.png. Arrow keys")).to_be_visible()
    route.fulfill(response=response, json=answer | {"predicted_class": other})


def test_the_figures_of_a_new_champion_do_not_stand_beside_the_answer_of_the_one_before(browser: Browser) -> None:
    with serve_here(tiny_classifier(refer_below=0.99)) as served, browser.new_context() as context:
        use(served.webapp, tiny_classifier(refer_below=0.99), metrics=METRICS)
        page = context.new_page()
        page.goto(served.address)
        drop(page, {"image.png": PNG})
        finding = page.locator("#finding")
        expect(finding).to_contain_text("The referral threshold is 99.0%")
        use(served.webapp, tiny_classifier("2", refer_below=0.4), metrics=METRICS)
        page.reload()  # the session is kept
        expect(page.locator("#model")).to_contain_text("Version 2")
        expect(finding).to_contain_text("A reader should see this image")
        expect(finding).not_to_contain_text("threshold is 40.0%")
        expect(page.locator(".chart")).not_to_contain_text("Test set")
        expect(page.locator(".chart .limit")).to_have_count(0)
        expect(page.locator(".facts")).to_contain_text("version 1")
        expect(finding.get_by_role("button", name="see its model card")).to_have_count(0)


def test_what_was_cleared_does_not_come_back_with_an_answer_that_was_on_its_way(page: Page) -> None:
    drop(page, {"image.png": PNG})
    box = page.get_by_role("group", name="What do you see?")
    held: list[Route] = []
    page.route("**/feedback", lambda route: held.append(route))  # noqa: PLW0108  # playwright takes no built-in
    with page.expect_request("**/feedback"):
        box.get_by_role("button", name="It is").first.click()
    page.locator("#clear").click()
    expect(page.locator(".row")).to_have_count(0)
    held[0].continue_()
    expect(page.locator("#status")).to_contain_text("stored that it is")
    page.reload()
    expect(page.locator("#model")).to_be_enabled()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator(".row")).to_have_count(0)
