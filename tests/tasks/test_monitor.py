"""The monitor on a real store and scored images: each image of the champion counts once, missing inputs are named."""

import logging
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr.common.command_params import MonitorParams
from cxr.common.errors import RegistryError, WeightsError
from cxr.common.files import read_json
from cxr.common.notices import NOT_CLINICAL, SYNTHETIC
from cxr.common.params import read_params
from cxr.inference.feedback import Feedback, add_feedback
from cxr.inference.score_store import PartWriter, schema, version_folder
from cxr.models.reference import MEASURES, REFERENCE_FILE
from cxr.registry import tracking_store, versions
from cxr.registry.champion import aliases
from tasks.monitor import monitor
from tests.support.logs import own_messages
from tests.support.projects.registry_project import CLASSES, enter_project, reference, register, write_model

PARAMS = MonitorParams(
    window_images=20,
    alarm_windows=2,
    recent_windows=5,
    false_alarm_share=0.05,
    max_failed_share=0.2,
    resamples=200,
    seed=1,
)
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    enter_project(tmp_path, monkeypatch, tmp_path_factory)


def make_champion() -> versions.Version:
    write_model()
    version = register()
    aliases.move_champion(version.number, instead_of="", kind="promote", approved_by="ann", reason="test")
    return version


def write_scores(images: Iterable[tuple[int, dict[str, Any]]], *, version: str = "1") -> None:
    """Write rows as scoring does: the reference's images, each updated with the given columns."""
    usual = reference()
    writer = PartWriter(
        version_folder(Path("data/scores"), version), schema(CLASSES, MEASURES, {}), images_per_part=1000, shard="1of1"
    )
    writer.add(row(number, version, usual, changed) for number, changed in images)
    writer.close()


def row(number: int, version: str, usual: Any, changed: dict[str, Any]) -> dict[str, Any]:
    of = number * 7 % len(usual.predicted)  # 7 and 60 are coprime: every image is used
    confidence = float(usual.confidence[of])
    predicted = CLASSES[usual.predicted[of]]
    return {
        "location": "images", "path": f"image-{number:04d}.png", "sha256": f"{number:064x}", "size_bytes": 1,
        "scored_at": START + timedelta(minutes=number), "model_version": version, "predicted_class": predicted,
        "confidence": confidence, "refer": False, "error": None,
        **{f"p_{name}": confidence if name == predicted else (1 - confidence) / 2 for name in CLASSES},
        **{f"m_{name}": float(usual.measures[of, i]) for i, name in enumerate(MEASURES)},
    } | changed  # fmt: skip


UNREADABLE: dict[str, Any] = dict.fromkeys(
    ["sha256", "predicted_class", "confidence", "refer", *(f"p_{name}" for name in CLASSES)]
    + [f"m_{name}" for name in MEASURES]
) | {"error": "truncated"}


def run() -> dict[str, Any]:
    paths = read_params(Path("params.yaml")).paths
    monitor(PARAMS, paths)
    assert paths.monitor.with_suffix(".html").is_file()
    found: dict[str, Any] = read_json(paths.monitor)
    return found


def test_unchanged_images_are_no_drift_and_an_incomplete_window_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_champion()
    write_scores((number, {}) for number in range(67))
    for label in ("viral", "normal"):
        said = Feedback("2026-01-01T00:00:00+00:00", label.ljust(64, "0"), "1", "viral", label)
        add_feedback(read_params(Path("params.yaml")).paths.feedback, said)
    with caplog.at_level(logging.INFO):
        found = run()
    assert [(month["month"], month["images"], month["agreed"]) for month in found["agreement"]] == [("2026-01", 2, 1)]
    assert (found["drift"], len(found["windows"]), found["waiting"], found["version"]) == (False, 3, 7, "1")
    assert own_messages(caplog)[-1] == "drift: false"


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_page_of_a_model_of_synthetic_images_says_so(synthetic: bool) -> None:
    write_model(synthetic=synthetic)
    aliases.move_champion(register().number, instead_of="", kind="promote", approved_by="ann", reason="test")
    run()
    page = read_params(Path("params.yaml")).paths.monitor.with_suffix(".html").read_text()
    assert (SYNTHETIC in page, NOT_CLINICAL in page) == (synthetic, True)


def test_drift_is_looked_for_even_where_the_table_of_feedback_is_damaged(caplog: pytest.LogCaptureFixture) -> None:
    make_champion()
    write_scores((number, {}) for number in range(67))
    table = read_params(Path("params.yaml")).paths.feedback
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("time;image;label\n")
    with caplog.at_level(logging.INFO):
        found = run()
    assert (found["drift"], found["agreement"]) == (False, [])
    assert [line for line in caplog.messages if str(table) in line and "left out" in line]


def test_two_windows_of_brighter_images_are_drift_until_a_rebuild_is_started_for_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_champion()
    write_scores((number, {"m_brightness": 2.0} if number >= 60 else {}) for number in range(100))
    with caplog.at_level(logging.INFO):
        found = run()
    assert found["drift"]
    assert own_messages(caplog)[-1] == "drift: true"
    assert [window["alarm"] for window in found["windows"]] == [False, False, False, True, True]
    assert found["windows"][-1]["exceeded"] == ["brightness"]
    assert "images are brighter" in found["markdown"]
    assert found["windows"][-1]["last"] == "2026-01-01T01:39:00.000000+00:00"
    versions.tag_version("1", {versions.DRIFT_TAG: found["windows"][-1]["last"]})
    assert not run()["drift"]
    write_scores((number, {"m_brightness": 2.0}) for number in range(100, 140))
    assert run()["drift"]


def test_only_images_scored_by_the_champion_count_and_unreadable_ones_once() -> None:
    make_champion()
    write_scores(((number, {"m_brightness": 2.0}) for number in range(100)), version="7")
    repeated = [(500 + night, {"path": "bad.png", **UNREADABLE}) for night in range(30)]
    write_scores([*((number, {}) for number in range(59)), *repeated])
    found = run()
    assert (found["drift"], len(found["windows"]), found["waiting"]) == (False, 3, 0)
    assert found["windows"][-1]["distances"]["failed_images"] == pytest.approx(1 / 20)


def test_images_scored_without_a_reference_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    make_champion()
    unmeasured = {f"m_{name}": None for name in MEASURES}
    write_scores((number, unmeasured if number < 20 else {}) for number in range(45))
    found = run()
    assert (len(found["windows"]), found["waiting"]) == (1, 5)
    assert "20 images were scored before version 1" in caplog.text


def test_without_scored_images_there_is_no_window() -> None:
    make_champion()
    found = run()
    assert (found["drift"], found["windows"]) == (False, [])
    assert "0 of 20 images" in found["headline"]


def test_missing_champion_is_an_error() -> None:
    with pytest.raises(RegistryError, match="no champion"):
        run()


def test_version_without_a_reference_is_an_error_and_registering_again_adds_it() -> None:
    made = make_champion()
    client = tracking_store.client()
    client.delete_model_version_tag(versions.MODEL, made.number, "reference_sha256")
    shutil.rmtree("mlruns/cache", ignore_errors=True)
    with pytest.raises(WeightsError, match="run register"):
        run()
    assert register().number == made.number
    assert run()["drift"] is False


def test_changed_reference_in_the_store_is_not_used() -> None:
    make_champion()
    (stored,) = Path("mlruns").rglob(f"bundle/{REFERENCE_FILE}")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(WeightsError, match=REFERENCE_FILE):
        run()


def test_evaluation_without_a_reference_is_not_registered() -> None:
    write_model()
    (Path("reports/evaluation") / REFERENCE_FILE).unlink()
    with pytest.raises(WeightsError, match=r"dvc repro -f -s evaluate"):
        register()


def test_distances_of_unreadable_images_are_finite() -> None:
    make_champion()
    write_scores((number, UNREADABLE | {"path": f"bad-{number}"}) for number in range(40))
    found = run()
    assert found["drift"]
    assert all(np.isfinite(list(window["distances"].values())).all() for window in found["windows"])
    assert "100% of the images" in found["markdown"]
