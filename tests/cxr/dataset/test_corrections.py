"""labels-corrected.csv: checked whole, applied by ingest, counted, and never half applied."""

import json
from pathlib import Path

import cv2
import pandas as pd
import pytest

from cxr.common.errors import DataError
from cxr.common.params import IngestParams, Paths
from cxr.dataset.corrections import read_corrections
from cxr.dataset.manifest import read_manifest
from tasks.ingest import ingest
from tests.support.images.planted_sets import write_sets
from tests.support.images.raw_folder import paths_below, project_params
from tests.support.project import PROJECT

HEADER = "image_id,label,reviewer\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder / "sets", copies=True, patients=3)
    return folder


def ingested(folder: Path, corrections: str) -> Paths:
    paths = paths_below(folder)
    paths.corrections.write_text(corrections, encoding="utf-8")
    params = project_params().ingest
    sources = [one.model_copy(update={"location": str(folder / "sets")}) for one in params.sources]
    ingest(
        IngestParams.model_validate({**params.model_dump(), "sources": [one.model_dump() for one in sources]}), paths
    )
    return paths


def test_a_correction_changes_the_label_and_is_counted(folder: Path) -> None:
    before = read_manifest(ingested(folder, HEADER).raw).set_index("image_id")["label"]
    viral, normal = (before.index[before == label][0] for label in ("viral", "normal"))
    paths = ingested(folder, f"{HEADER}{viral},bacterial,a reader\n{normal},normal,\n")
    after = read_manifest(paths.raw).set_index("image_id")["label"]
    assert after[viral] == "bacterial"
    assert after.drop(viral).equals(before.drop(viral))
    counted = json.loads((paths.raw / "ingest.json").read_text())
    assert counted["corrections"] == {
        "relabelled": 1,
        "confirmed": 1,
        "changes": [{"from": "viral", "to": "bacterial", "images": 1}],
    }
    assert counted["classes"]["bacterial"] == (before == "bacterial").sum() + 1
    rows = pd.read_csv(paths.raw / "corrections.csv", keep_default_na=False).set_index("image_id")
    assert rows.loc[viral, ["label_was", "label", "reviewer"]].tolist() == ["viral", "bacterial", "a reader"]


def test_a_corrected_image_stays_where_a_recompressed_copy_has_the_old_label(tmp_path: Path) -> None:
    write_sets(tmp_path / "sets", patients=3)
    original = min((tmp_path / "sets" / "chest_xray").rglob("person*_virus_*"))
    copy = original.with_name(f"{original.name.partition('_')[0]}_virus_999.jpeg")
    pixels = cv2.imread(str(original), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(copy), pixels, [cv2.IMWRITE_JPEG_QUALITY, 70])
    paths = ingested(tmp_path, HEADER)
    (kept,) = pd.read_csv(paths.raw / "duplicates.csv").query("kind == 'near'")["kept_image_id"]
    counted = json.loads((paths.raw / "ingest.json").read_text())
    paths = ingested(tmp_path, f"{HEADER}{kept},bacterial,a reader\n")
    assert read_manifest(paths.raw).set_index("image_id")["label"][kept] == "bacterial"
    again = json.loads((paths.raw / "ingest.json").read_text())
    assert {name: again[name] for name in ("kept", "quarantined", "duplicates")} == {
        name: counted[name] for name in ("kept", "quarantined", "duplicates")
    }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("KNOWN,bacterial,\nkermany-0000000000000000,viral,\n", "no image has the image_id kermany-0000000000000000"),
        ("KNOWN,bacterial,\nKNOWN,normal,\n", r"image KNOWN has more than one line"),
        ("KNOWN,tuberculosis,\n", r"line 2: unknown class 'tuberculosis', expected one of normal, viral, bacterial"),
        ("KNOWN,,\n", r"line 2: unknown class ''"),
        ("KNOWN\n", r"line 2 has 1 fields, expected 3"),
        (",viral,\n", r"line 2 has no image_id"),
    ],
)
def test_a_wrong_file_is_rejected_whole(folder: Path, lines: str, message: str) -> None:
    paths = ingested(folder, HEADER)
    known = read_manifest(paths.raw)["image_id"].iloc[0]
    before = (paths.raw / "manifest.parquet").read_bytes()
    with pytest.raises(DataError, match=message.replace("KNOWN", known)) as error:
        ingested(folder, HEADER + lines.replace("KNOWN", known))
    assert str(paths.corrections) in str(error.value)
    assert "no correction was applied" in str(error.value)
    assert (paths.raw / "manifest.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,class\n", "expected the header image_id,label,reviewer, found id,class"),
        (b"", "expected the header image_id,label,reviewer, found nothing"),
        (b"image_id,label,reviewer\nx,viral,M\xfcller\n", "cannot be read"),
    ],
)
def test_another_format_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels-corrected.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_corrections(path)


def test_the_file_of_a_fresh_clone_and_a_missing_one_correct_nothing(tmp_path: Path) -> None:
    assert read_corrections(PROJECT / "labels-corrected.csv") == []
    assert read_corrections(tmp_path / "labels-corrected.csv") == []


def test_dvc_tracks_the_file_as_an_input_of_ingest() -> None:
    stage = (PROJECT / "dvc.yaml").read_text().partition("  ingest:")[2].partition("  validate:")[0]
    assert "- ${paths.corrections}" in stage
