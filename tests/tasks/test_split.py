"""The split step: its outputs, and its gate, which detects every fault and leaves no output then."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cxr.common.errors import DataError, GateError
from cxr.common.files import sha256_of
from cxr.common.params import Paths, SplitParams
from tasks.split import check_split, split
from tests.support.faults import fault
from tests.support.images.raw_folder import RawFolder, paths_below, project_params, raw_folder
from tests.support.project import PROJECT
from tests.support.projects.stage_files import write_verdict

SMALL_QUOTAS = {
    "paper_train": {"normal": 20, "viral": 20, "bacterial": 20},
    "paper_test": {"normal": 5, "viral": 6, "bacterial": 7},
    "paper_validation": {"normal": 3, "viral": 3, "bacterial": 3},
}


def params(**changes: Any) -> SplitParams:
    return SplitParams.model_validate(project_params().split.model_dump() | {"validation_share": 0.1} | changes)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RawFolder]:
    folder = tmp_path_factory.mktemp("project")
    tables = raw_folder(folder / "data/raw")
    ids = tables.manifest.loc[tables.manifest["label"] == "viral", "image_id"].tolist()
    tables.near_duplicates = [(ids[0], ids[5]), (ids[5], ids[9])]
    tables.write(folder / "data/raw")
    write_verdict(folder / "reports/validation.json", folder / "data/raw")
    return folder / "data/raw", tables


@pytest.fixture
def paths(tmp_path: Path, raw: tuple[Path, RawFolder]) -> Paths:
    return paths_below(tmp_path).model_copy(
        update={"raw": raw[0], "validation": raw[0].parents[1] / "reports/validation.json"}
    )


@pytest.mark.parametrize("protocol", ["patient", "paper", "official", "cv", "block"])
def test_every_protocol_passes_its_gate_and_writes_a_summary(paths: Paths, protocol: str) -> None:
    chosen = params(protocol=protocol, **SMALL_QUOTAS)
    split(chosen, paths)
    table = pd.read_csv(paths.split / "splits.csv")
    summary = json.loads((paths.split / "split.json").read_text())
    assert list(table.columns) == ["image_id", "split", "fold", "label", "patient_id"]
    assert table["image_id"].is_monotonic_increasing
    for name in ("train", "validation", "test"):
        rows = table[table["split"] == name]
        assert summary["counts"][name] == {label: int((rows["label"] == label).sum()) for label in summary["classes"]}
        assert summary["patients"][name] == rows["patient_id"].nunique()
    assert (summary["overlapping_patients"] > 0) == (protocol == "paper")
    assert summary["protocol"] == protocol
    assert summary["classes"] == ["normal", "viral", "bacterial"]
    assert (summary["fold"], summary["folds"]) == ((0, 5) if protocol == "cv" else (-1, 0))
    assert summary["manifest_sha256"] == sha256_of(paths.raw / "manifest.parquet")
    assert summary["synthetic"] is True
    assert len(summary["test_set_sha256"]) == 64
    assert summary["blocks"] == 5
    assert ("withheld" in summary) == (protocol in ("official", "block"))


def test_a_block_counts_what_it_left_out_and_what_has_no_order(paths: Paths) -> None:
    split(params(protocol="block", block=4), paths)
    summary = json.loads((paths.split / "split.json").read_text())
    assert summary["block"] == 4
    assert summary["train_without_order"] == 60, "three classes of ten patients of the second set, two images each"
    assert set(summary["withheld"]) == {"same_patient", "near_duplicates", "other_sources"}
    assert len(summary["notes"]) == 2


def test_official_names_what_is_missing_of_the_published_set(paths: Paths, tmp_path: Path) -> None:
    tables = raw_folder(tmp_path / "raw")
    own_test = (tables.manifest["source"] == "kermany") & (tables.manifest["official_split"] == "test")
    tested = tables.manifest.loc[own_test, "image_id"].iloc[0]
    nested = "chest_xray/test/NORMAL/IM-0001-0001.jpeg"
    tables.manifest["path"] = [
        f"images/kermany/{part}/NORMAL/{n}.jpeg" for n, part in enumerate(tables.manifest["official_split"])
    ]
    tables.duplicates = [
        {"source": "kermany", "path": path, "kept_image_id": tested} for path in (nested, nested[len("chest_xray/") :])
    ]
    tables.synthetic = False
    tables.write(tmp_path / "raw")
    write_verdict(tmp_path / "validation.json", tmp_path / "raw")
    given = paths.model_copy(update={"raw": tmp_path / "raw", "validation": tmp_path / "validation.json"})
    split(params(protocol="official"), given)
    summary = json.loads((paths.split / "split.json").read_text())
    own = tables.manifest[tables.manifest["source"] == "kermany"]["official_split"].value_counts()
    assert summary["published"] == {
        "published": {"train": 5216, "val": 16, "test": 624},
        "at_hand": {"train": own["train"], "test": own["test"] + 1},
        "test_images": own["test"],
        "duplicates_of_test": 2,
    }
    missing = f"Of the 5,856 published images {5856 - own.sum() - 1:,} are missing here"
    assert summary["notes"][0].startswith(missing)


def test_the_four_way_task_splits_the_covid_images_too(paths: Paths) -> None:
    split(params(task="four_way", share_tolerance=0.1), paths)
    counts = json.loads((paths.split / "split.json").read_text())["counts"]
    assert all(counts[name]["covid"] for name in ("train", "validation", "test"))
    assert counts["unused"] == {}


@pytest.mark.parametrize("protocol", ["patient", "cv"])
def test_a_subsampled_split_passes_its_gate_with_the_quotas(paths: Paths, protocol: str) -> None:
    split(params(protocol=protocol, subsample="paper_quotas", train_share=0.5, **SMALL_QUOTAS), paths)
    summary = json.loads((paths.split / "split.json").read_text())
    assert summary["counts"]["train"] == {"normal": 10, "viral": 10, "bacterial": 10}
    assert summary["counts"]["test"] == SMALL_QUOTAS["paper_test"]
    assert summary["counts"]["validation"] == SMALL_QUOTAS["paper_validation"]
    assert (summary["subsample"], summary["train_share"], summary["overlapping_patients"]) == ("paper_quotas", 0.5, 0)


@pytest.mark.parametrize("protocol", ["patient", "official", "cv", "block"])
def test_a_share_of_the_training_images_of_one_source_keeps_the_test_set(paths: Paths, protocol: str) -> None:
    split(params(protocol=protocol), paths)
    whole = json.loads((paths.split / "split.json").read_text())
    split(params(protocol=protocol, train_share=0.5, train_sources=["kermany"]), paths)
    subsampled = json.loads((paths.split / "split.json").read_text())
    for key in ("validation", "test"):
        assert subsampled["counts"][key] == whole["counts"][key]
    assert subsampled["test_set_sha256"] == whole["test_set_sha256"]
    assert sum(subsampled["counts"]["train"].values()) < 0.5 * sum(whole["counts"]["train"].values())
    assert (subsampled["subsample"], subsampled["train_sources"]) == ("none", ["kermany"])


def test_the_same_seed_writes_the_same_bytes(paths: Paths, tmp_path: Path) -> None:
    split(params(), paths)
    again = paths.model_copy(update={"split": tmp_path / "again"})
    split(params(), again)
    for name in ("splits.csv", "split.json"):
        assert (paths.split / name).read_bytes() == (again.split / name).read_bytes()


def test_a_failed_check_leaves_no_output_and_removes_the_earlier_one(
    paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    split(params(), paths)
    with pytest.raises(GateError) as raised:
        split(params(share_tolerance=0.0001, validation_share=0.123), paths)
    assert "class_shares (1 of 5 checks)" in str(raised.value)
    assert list(paths.split.parent.iterdir()) == []
    assert "train 0.677, validation 0.123, test 0.2," in caplog.text
    assert "split=train, label=normal, images=" in caplog.text


def test_a_failed_check_removes_the_earlier_split_from_where_a_link_leads(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "another disk").mkdir()
    paths.split.parent.mkdir(parents=True, exist_ok=True)
    paths.split.symlink_to(tmp_path / "another disk" / "split")
    split(params(), paths)
    with pytest.raises(GateError):
        split(params(share_tolerance=0.0001, validation_share=0.123), paths)
    assert list((tmp_path / "another disk").iterdir()) == []


def broken(rows: pd.DataFrame, near_duplicates: pd.DataFrame, fault: str) -> pd.DataFrame:
    rows = rows.copy()
    pair = rows["image_id"].isin([near_duplicates["image_id_a"][0], near_duplicates["image_id_b"][0]])
    match fault:
        case "image_assigned_once":
            return rows.drop(index=[3])
        case "image_assigned_once, twice":
            return pd.concat([rows, rows.tail(1)])
        case "image_assigned_once, unknown":
            rows.loc[0, "image_id"] = "elsewhere-0"
        case "split_known":
            rows.loc[0, "split"] = "holdout"
        case "class_shares":
            rows.loc[rows.index[rows["split"] == "train"][::2], "split"] = "unused"
        case "train_sources":
            other = rows["image_id"].str.startswith("covid19") & (rows["split"] == "unused")
            rows.loc[other.idxmax(), "split"] = "train"
        case "patient_in_one_split":
            first = rows.index[rows["split"] == "train"][0]
            rows.loc[first, "split"] = "test"
        case "near_duplicates_in_one_split":
            rows.loc[pair, "split"] = ["test", "train"]
    return rows


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        ("image_assigned_once", "assigned=never"),
        ("image_assigned_once, twice", "assigned=twice"),
        ("image_assigned_once, unknown", "image_id=elsewhere-0"),
        ("split_known", "split=holdout"),
        ("patient_in_one_split", "splits_of_patient=2"),
        ("near_duplicates_in_one_split", "near_duplicate_elsewhere="),
        ("class_shares", "split=train, label=normal"),
    ],
)
def test_each_fault_in_a_split_is_detected_with_its_row(
    paths: Paths, caplog: pytest.LogCaptureFixture, fault: str, shown: str
) -> None:
    manifest, near_duplicates = (
        pd.read_parquet(paths.raw / "manifest.parquet"),
        pd.read_csv(paths.raw / "near_duplicates.csv"),
    )
    split(params(share_tolerance=0.3), paths)
    rows = broken(pd.read_csv(paths.split / "splits.csv"), near_duplicates, fault)
    rows.to_csv(paths.split / "splits.csv", index=False)
    with pytest.raises(GateError, match=fault.split(",", maxsplit=1)[0]):
        check_split(paths.split, manifest, near_duplicates, params(share_tolerance=0.3))
    assert shown in caplog.text


def test_a_training_image_of_another_source_is_detected(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    chosen = params(train_sources=["kermany"])
    split(chosen, paths)
    manifest, near_duplicates = (
        pd.read_parquet(paths.raw / "manifest.parquet"),
        pd.read_csv(paths.raw / "near_duplicates.csv"),
    )
    rows = broken(pd.read_csv(paths.split / "splits.csv"), near_duplicates, "train_sources")
    rows.to_csv(paths.split / "splits.csv", index=False)
    with pytest.raises(GateError, match=r"train_sources \("):
        check_split(paths.split, manifest, near_duplicates, chosen)
    assert "trains=covid19" in caplog.text


def test_a_missed_quota_is_detected(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    chosen = params(protocol="paper", **SMALL_QUOTAS)
    split(chosen, paths)
    manifest, near_duplicates = (
        pd.read_parquet(paths.raw / "manifest.parquet"),
        pd.read_csv(paths.raw / "near_duplicates.csv"),
    )
    chosen = params(protocol="paper", **{**SMALL_QUOTAS, "paper_test": {"normal": 6, "viral": 6, "bacterial": 7}})
    with pytest.raises(GateError, match=r"quotas_met \(1 of 3 checks\)"):
        check_split(paths.split, manifest, near_duplicates, chosen)
    assert "split=test, label=normal, images=5, quota=6" in caplog.text


@pytest.mark.parametrize("fault", ["not a pass", "about another manifest"])
@fault("split", "the gate did not pass, or passed on other data", "no split is written", "exit code 5, run validate")
def test_without_a_pass_of_the_gate_on_this_manifest_nothing_is_split(
    paths: Paths, tmp_path: Path, raw: tuple[Path, RawFolder], fault: str
) -> None:
    verdict = tmp_path / "validation.json"
    write_verdict(verdict, raw[0], passed=fault != "not a pass")
    if fault == "about another manifest":
        verdict.write_text(verdict.read_text().replace(sha256_of(raw[0] / "manifest.parquet"), "0" * 64))
    with pytest.raises(DataError, match=f"is {fault}; .* run `./run dvc repro validate`"):
        split(params(), paths.model_copy(update={"validation": verdict}))
    assert not paths.split.exists()


@fault("split", "a killed run left a partial folder", "it is removed", "the split is written as usual")
def test_the_partial_folder_of_a_killed_run_is_replaced(paths: Paths) -> None:
    left = paths.split.with_name(f".{paths.split.name}.partial")
    left.mkdir(parents=True)
    (left / "splits.csv").write_text("half a li")
    split(params(), paths)
    assert not left.exists()
    assert {path.name for path in paths.split.iterdir()} == {"splits.csv", "split.json"}


def test_the_log_reports_counts_and_leakage(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    split(params(), paths)
    assert "split test" in caplog.text
    assert "Split by patient: 0 of the" in caplog.text


def test_help_says_what_it_reads_and_writes() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "tasks.split", "--help"], check=True, cwd=PROJECT, capture_output=True, text=True
    )
    assert "data/split/splits.csv" in shown.stdout
