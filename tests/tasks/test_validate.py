"""The gate after ingest: each fault is caught under its name with its first rows; warnings let the run go on."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cxr.common.errors import DataError, GateError, ParamsError
from cxr.common.params import Paths, ValidateParams
from tasks.quality.data_docs import make_self_contained
from tasks.quality.expectations import Check, Outcome, Table, check_tables
from tasks.validate import validate
from tests.support.project import PROJECT
from tests.support.raw_folder import RawFolder, pack, paths_below, project_params, raw_folder, unpacked

CHECKS = [
    "schema",
    "image_id_unique",
    "sha256_unique",
    "label_known",
    "patient_id_present",
    "file_as_recorded",
    "width_px",
    "height_px",
    "aspect_ratio",
    "statistics_present",
    "grey_mean",
    "grey_std",
    "images_per_class",
    "files_accounted_for",
    "quarantined_share",
    "source_grey_mean_gap",
]


def params(**changes: Any) -> ValidateParams:
    return ValidateParams.model_validate(project_params().section("validate").model_dump() | changes)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return paths_below(tmp_path)


@pytest.fixture
def tables(paths: Paths) -> RawFolder:
    return raw_folder(paths.raw, patients_per_class=12)


def test_sound_data_pass_and_every_check_is_listed(paths: Paths, tables: RawFolder) -> None:
    tables.write(paths.raw)
    validate(params(), paths)
    report = json.loads(paths.validation.read_text())
    assert report["passed"] is True
    assert [entry["name"] for entry in report["expectations"]] == CHECKS
    assert report["expectations"][6] == {
        "name": "width_px",
        "severity": "error",
        "passed": True,
        "observed": f"0 of {len(tables.manifest)} rows fail",
        "threshold": "64 to 8000 px",
    }
    assert report["expectations"][-1]["severity"] == "warn"


def test_report_and_data_docs_are_the_same_bytes_every_time(paths: Paths, tables: RawFolder) -> None:
    def outputs() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in paths.data_docs.parent.rglob("*") if path.is_file()}

    tables.write(paths.raw)
    validate(params(), paths)
    first = outputs()
    validate(params(), paths)
    assert outputs() == first


def test_data_docs_need_no_network_and_say_that_images_are_synthetic(paths: Paths, tables: RawFolder) -> None:
    tables.write(paths.raw)
    validate(params(), paths)
    index = (paths.data_docs / "index.html").read_text()
    assert "Data after ingest: passed" in index
    assert "SYNTHETIC images: drawn by a program, no patients." in index
    pages = re.findall(r'<a href="([^"]+)"', index)
    assert len(pages) == 4
    for page in pages:
        html = (paths.data_docs / page).read_text()
        assert "after-ingest-of-synthetic-images" in html
        assert not re.search(r"<script|<link|<img|url\(http|src=.http", html)


def test_data_docs_of_real_images_do_not_say_synthetic(paths: Paths, tables: RawFolder) -> None:
    tables.synthetic = False
    tables.write(paths.raw)
    validate(params(), paths)
    everything = "".join(page.read_text() for page in paths.data_docs.rglob("*.html"))
    assert "synthetic" not in everything.lower()


def set_cell(column: str, value: Any, table: str = "manifest") -> Callable[[RawFolder, Path], None]:
    """Return a fault: the first row's `column` gets `value`."""

    def fault(tables: RawFolder, _raw: Path) -> None:
        rows: pd.DataFrame = getattr(tables, table)
        rows[column] = rows[column].astype(object)
        rows.loc[0, column] = value

    return fault


def same_as_second(column: str) -> Callable[[RawFolder, Path], None]:
    def fault(tables: RawFolder, raw: Path) -> None:
        set_cell(column, tables.manifest[column][1])(tables, raw)

    return fault


def lose_image(tables: RawFolder, raw: Path) -> None:
    images = unpacked(raw)
    del images[tables.manifest["path"][0]]
    pack(raw, images)


def replace_image(tables: RawFolder, raw: Path) -> None:
    pack(raw, unpacked(raw) | {tables.manifest["path"][0]: b"other"})


def drop_viral(tables: RawFolder, _raw: Path) -> None:
    viral = tables.manifest.index[tables.manifest["label"] == "viral"][5:]
    tables.manifest = tables.manifest.drop(index=viral)


def forget_statistics(tables: RawFolder, _raw: Path) -> None:
    tables.statistics = tables.statistics.drop(index=[0])


def quarantine_many(tables: RawFolder, _raw: Path) -> None:
    tables.quarantined = 30


@pytest.mark.parametrize(
    ("name", "fault", "shown"),
    [
        ("sha256_unique", same_as_second("sha256"), "sha256="),
        ("image_id_unique", same_as_second("image_id"), "image_id=covid19-"),
        ("label_known", set_cell("label", "fungal"), "label=fungal"),
        ("patient_id_present", set_cell("patient_id", ""), "patient_id=None"),
        ("file_as_recorded", lose_image, "file=missing"),
        ("file_as_recorded", replace_image, "file=changed"),
        ("width_px", set_cell("width", 20), "width=20"),
        ("height_px", set_cell("height", 9000), "height=9000"),
        ("aspect_ratio", set_cell("width", 1200), "aspect_ratio=3.75"),
        ("statistics_present", forget_statistics, "image_id=covid19-"),
        ("grey_mean", set_cell("grey_mean", 250.0, "statistics"), "grey_mean=250"),
        ("grey_std", set_cell("grey_std", 2.5, "statistics"), "grey_std=2.5"),
        ("images_per_class", drop_viral, "label=viral, images=5, at_least=20"),
        ("quarantined_share", quarantine_many, "source=kermany, total=102, kept=72, quarantined=30"),
    ],
)
def test_each_fault_is_caught_under_its_name_with_its_row(
    paths: Paths,
    tables: RawFolder,
    caplog: pytest.LogCaptureFixture,
    name: str,
    fault: Callable[[RawFolder, Path], None],
    shown: str,
) -> None:
    fault(tables, paths.raw)
    tables.write(paths.raw)
    with pytest.raises(GateError) as raised:
        validate(params(), paths)
    assert name in str(raised.value)
    lines = caplog.text.splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(name) or f" {name} " in line)
    assert shown in "\n".join(lines[start : start + 3])
    failed = paths.data_docs.with_name("data_docs_failed")
    assert "Data after ingest: failed" in (failed / "index.html").read_text()
    assert not paths.data_docs.exists()
    assert not paths.validation.exists()


def test_the_message_names_the_checks_and_says_where_to_look(paths: Paths, tables: RawFolder) -> None:
    set_cell("width", 20)(tables, paths.raw)
    tables.write(paths.raw)
    with pytest.raises(GateError) as raised:
        validate(params(), paths)
    assert "width_px, aspect_ratio (2 of 16 checks)" in str(raised.value)
    assert f"{paths.data_docs}_failed/index.html" in str(raised.value)


def test_files_that_are_not_accounted_for_are_caught(
    paths: Paths, tables: RawFolder, caplog: pytest.LogCaptureFixture
) -> None:
    tables.write(paths.raw)
    account = json.loads((paths.raw / "ingest.json").read_text())
    account["sources"]["covid19"]["total"] += 1
    (paths.raw / "ingest.json").write_text(json.dumps(account))
    with pytest.raises(GateError, match=r"files_accounted_for \(1 of 16 checks\)"):
        validate(params(), paths)
    assert "source=covid19, total=33, kept=32" in caplog.text


def test_a_manifest_without_a_column_fails_on_its_schema_alone(
    paths: Paths, tables: RawFolder, caplog: pytest.LogCaptureFixture
) -> None:
    tables.write(paths.raw)
    pd.read_parquet(paths.raw / "manifest.parquet").drop(columns="patient_id").assign(extra=1).to_parquet(
        paths.raw / "manifest.parquet"
    )
    with pytest.raises(GateError, match=r"schema \(1 of 1 checks\)"):
        validate(params(), paths)
    assert "column=patient_id, found=absent, expected=str" in caplog.text
    assert "column=extra, found=int64, expected=absent" in caplog.text


def test_a_warning_is_reported_and_the_run_goes_on(
    paths: Paths, tables: RawFolder, caplog: pytest.LogCaptureFixture
) -> None:
    second = tables.manifest.loc[tables.manifest["source"] == "covid19", "image_id"]
    tables.statistics.loc[tables.statistics["image_id"].isin(second), "grey_mean"] += 80
    tables.write(paths.raw)
    validate(params(), paths)
    assert "source_grey_mean_gap    warn" in caplog.text
    gap = json.loads(paths.validation.read_text())["expectations"][-1]
    assert (gap["name"], gap["severity"], gap["passed"]) == ("source_grey_mean_gap", "warn", False)
    with pytest.raises(GateError, match="source_grey_mean_gap"):
        validate(params(warn_only=[]), paths)


def test_a_warning_for_a_check_that_does_not_exist_is_refused(paths: Paths, tables: RawFolder) -> None:
    tables.write(paths.raw)
    with pytest.raises(ParamsError) as raised:
        validate(params(warn_only=["grey_men"]), paths)
    assert str(raised.value) == f"warn_only names no check of this gate: grey_men; there are {', '.join(CHECKS)}"


@pytest.mark.parametrize("name", ["manifest.parquet", "ingest.json"])
def test_a_missing_input_is_named(paths: Paths, tables: RawFolder, name: str) -> None:
    tables.write(paths.raw)
    (paths.raw / name).unlink()
    with pytest.raises(DataError) as raised:
        validate(params(), paths)
    assert str(raised.value) == f"{paths.raw / name} is missing; run `python -m tasks.ingest` to make it"


def test_what_earlier_runs_left_is_cleared(paths: Paths, tables: RawFolder) -> None:
    failed = paths.data_docs.with_name("data_docs_failed")
    for left in (failed, paths.data_docs, failed.with_name(f".{failed.name}.partial")):
        left.mkdir(parents=True)
        (left / "old.html").write_text("old")
    tables.write(paths.raw)
    validate(params(), paths)
    assert not list(paths.data_docs.parent.rglob("old.html"))
    assert {path.name for path in paths.data_docs.parent.iterdir()} == {"data_docs", "validation.json"}


def test_a_check_that_cannot_run_fails_and_says_why() -> None:
    rows = pd.DataFrame({"a": [1]})
    check = Check("impossible", "ColumnValuesToBeUnique", {"column": "b"}, "unique")
    (outcome,) = check_tables([Table("rows", rows, ("a",), (check,))], suite="test", notes="")
    assert not outcome.passed
    assert outcome.observed.startswith("the check could not run: ")
    assert '"b"' in outcome.observed


def test_the_index_shows_what_a_file_name_tries_to_inject_as_text(tmp_path: Path) -> None:
    outcome = Outcome("file_as_recorded", "error", False, "1 of 1 rows fail", "", ("path=<script>alert(1)</script>",))
    make_self_contained(tmp_path, [outcome], title="Data", notes="")
    assert "&lt;script&gt;" in (tmp_path / "index.html").read_text()


def test_help_says_what_it_reads_and_writes() -> None:
    command = [sys.executable, "-m", "tasks.validate", "--help"]
    shown = subprocess.run(command, check=True, cwd=PROJECT, capture_output=True, text=True)
    assert "reports/validation.json" in shown.stdout
