"""The forensics command: planted faults are found, a clean set has none, and corrections go back into ingest."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cxr.common.command_params import ForensicsParams
from cxr.common.errors import DataError, ParamsError
from cxr.common.params import Paths
from cxr.forensics import features
from tasks.forensics import forensics
from tasks.ingest import ingest
from tests.support.images.planted_sets import CROPPED, LATE, MOSAIC, ORIGINAL, write_sets
from tests.support.images.raw_folder import paths_below, project_params, raw_folder
from tests.support.project import PROJECT

DEFAULTS = project_params()


def settings(**changed: object) -> ForensicsParams:
    quick = {"permutations": 199, "resamples": 200, "blocks": 4, "workers": 1}
    return DEFAULTS.forensics.model_copy(update=quick | changed)


def examined(folder: Path, **faults: Any) -> tuple[Paths, dict[str, Any]]:
    """Write the sets, ingest and examine them; return the paths and forensics.json."""
    write_sets(folder / "sets", **faults)
    sources = [one.model_copy(update={"location": str(folder / "sets")}) for one in DEFAULTS.ingest.sources]
    paths = paths_below(folder)
    ingest(DEFAULTS.ingest.model_copy(update={"sources": sources}), paths)
    forensics(settings(), paths)
    return paths, read(paths)


@cache
def faulty(folder: Path) -> tuple[Paths, dict[str, Any]]:
    return examined(folder, two_populations=True, shortcut=True, copies=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faulty")


def read(paths: Paths) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((paths.forensics / "forensics.json").read_text())
    return content


def test_a_clean_set_has_no_faults(tmp_path: Path) -> None:
    paths, found = examined(tmp_path)
    assert found["faults"] == []
    assert found["sources"]["kermany"]["predictions"]["accuracy"] > 0.9
    assert "None found" in (paths.forensics / "forensics.html").read_text()
    copies = pd.read_csv(paths.forensics / "copies.csv")
    assert copies["known"].all()
    assert {"correlation", "image_id_a", "path_b"} <= set(copies)


def test_a_label_of_two_populations_is_found_where_it_changes(folder: Path) -> None:
    found = faulty(folder)[1]["sources"]["kermany"]
    points = {one["label"]: one["change_points"] for one in found["sequences"]}
    assert [len(points[label]) for label in ("normal", "viral", "bacterial")] == [0, 0, 1]
    (point,) = points["bacterial"]
    assert abs(point["number"] - LATE) <= 2
    assert point["interval"][0] <= LATE <= point["interval"][1]
    assert point["before"] > 0.9
    assert point["after"] < 0.3
    assert {"series": ["bacteria", "virus"], "begins": point["number"], "is_change_point": True} in found["eras"]


def test_a_style_shortcut_is_found_for_the_pairs_that_have_it(folder: Path) -> None:
    sentences = [one["sentence"] for one in faulty(folder)[1]["faults"] if one["kind"] == "style shortcut"]
    assert any("border alone separates normal and viral" in sentence for sentence in sentences)
    assert not any("bacterial and viral" in sentence for sentence in sentences)


def test_a_recompressed_crop_in_another_set_is_found(folder: Path) -> None:
    pairs = [pair for pair in faulty(folder)[1]["copies"]["pairs"] if not pair["known"]]
    found = [{pair["path_a"], pair["path_b"]} for pair in pairs]
    assert found == [{f"images/kermany/{ORIGINAL.removeprefix('chest_xray/')}", f"images/covid19/{CROPPED[16:]}"}]


def test_a_mosaic_is_quarantined_and_its_original_named(folder: Path) -> None:
    quarantine = pd.read_csv(faulty(folder)[0].raw / "quarantine.csv")
    (row,) = quarantine.to_dict("records")
    assert (row["path"], row["reason"]) == (MOSAIC.removeprefix("Covid19-dataset/"), "mosaic or posterised")
    assert f"it looks like kermany/{ORIGINAL.removeprefix('chest_xray/')}" in row["detail"]


def test_doubted_labels_are_ranked_and_shown_and_a_correction_is_applied_by_ingest(
    folder: Path, tmp_path: Path
) -> None:
    paths, _ = faulty(folder)
    ranked = pd.read_csv(paths.forensics / "label_audit.csv")
    assert ranked["flagged"].is_monotonic_decreasing
    late = ranked[ranked["flagged"] & (ranked["label"] == "bacterial")].head(10)
    assert late["acquisition_number"].min() >= LATE
    assert set(late["suggested"]) == {"viral"}
    sheet = (paths.forensics / "review.html").read_text()
    assert all(name in sheet for name in late["image_id"])

    again = paths.model_copy(update={"corrections": tmp_path / "labels-corrected.csv", "raw": tmp_path / "raw"})
    late.assign(label="viral", reviewer="reader")[["image_id", "label", "reviewer"]].to_csv(
        again.corrections, index=False
    )
    sources = [one.model_copy(update={"location": str(folder / "sets")}) for one in DEFAULTS.ingest.sources]
    ingest(DEFAULTS.ingest.model_copy(update={"sources": sources}), again)
    counted = json.loads((again.raw / "ingest.json").read_text())["corrections"]
    assert counted == {
        "relabelled": 10,
        "confirmed": 0,
        "changes": [{"from": "bacterial", "to": "viral", "images": 10}],
    }
    manifest = pd.read_parquet(again.raw / "manifest.parquet").set_index("image_id")
    assert set(manifest.loc[late["image_id"], "label"]) == {"viral"}


def test_the_most_doubted_labels_come_first_whatever_their_source(tmp_path: Path) -> None:
    paths = paths_below(tmp_path)
    ingest(DEFAULTS.ingest.model_copy(update={"sample_patients_per_class": 15}), paths)
    forensics(settings(permutations=99, resamples=100), paths)
    ranked = pd.read_csv(paths.forensics / "label_audit.csv")
    assert ranked.groupby("source")["flagged"].nunique().tolist() == [2, 2]
    assert ranked["flagged"].is_monotonic_decreasing
    assert ranked.loc[ranked["flagged"], "margin"].is_monotonic_decreasing


def test_a_second_run_measures_no_image_and_gives_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, _ = faulty(folder)
    before = {path.name: path.read_bytes() for path in paths.forensics.iterdir()}

    def fail(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(features, "_measured", fail)
    forensics(settings(), paths)
    assert {path.name: path.read_bytes() for path in paths.forensics.iterdir()} == before


def test_a_larger_set_is_examined_in_part_by_whole_patients(folder: Path, tmp_path: Path) -> None:
    paths = faulty(folder)[0].model_copy(update={"forensics": tmp_path / "forensics"})
    forensics(settings(max_images=100), paths)
    found = read(paths)
    assert 90 <= found["images"] <= 100
    assert found["images_of_the_set"] == 184


def test_fewer_images_than_one_patient_has_are_refused_in_a_line(tmp_path: Path) -> None:
    tables = raw_folder(paths_below(tmp_path).raw, patients_per_class=3)
    tables.manifest["patient_id"] = "one patient"
    tables.write(paths_below(tmp_path).raw)
    with pytest.raises(ParamsError, match=r"forensics.max_images is 5, and the patient drawn first has more images"):
        forensics(settings(max_images=5), paths_below(tmp_path))


def test_the_contact_sheet_repeats_what_was_corrected_before(folder: Path, tmp_path: Path) -> None:
    changed = {"forensics": tmp_path / "forensics", "corrections": tmp_path / "labels-corrected.csv"}
    paths = faulty(folder)[0].model_copy(update=changed)
    paths.corrections.write_text("image_id,label,reviewer\nkermany-0123456789abcdef,viral,Ann\n")
    forensics(settings(max_images=100), paths)
    assert "kermany-0123456789abcdef,viral,Ann" in (paths.forensics / "review.html").read_text()


def test_without_data_the_command_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ingest.json is missing; run `./run dvc repro ingest`"):
        forensics(settings(), paths_below(tmp_path))


def test_weights_that_are_missing_are_one_line(tmp_path: Path, folder: Path) -> None:
    paths, _ = faulty(folder)
    params = tmp_path / "params.yaml"
    text = (PROJECT / "params.yaml").read_text().replace("  raw: data/raw\n", f"  raw: {paths.raw}\n")
    params.write_text(text.replace("  weights: none # imagenet | path to a state dict", "  weights: absent.pth #"))
    command = [sys.executable, "-m", "tasks.forensics", "--params", str(params)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stderr.splitlines()[-1].startswith("error: weights absent.pth do not exist")
