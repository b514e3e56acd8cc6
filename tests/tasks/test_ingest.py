"""Ingest: every file is accounted for, duplicates are removed, and the result is reproducible."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from cxr.common.errors import DataError, ParamsError, SourceError
from cxr.common.params import IngestParams, Paths, Source, read_params
from cxr.dataset.deduplicate import Deduplicated
from cxr.dataset.ingest import list_files
from cxr.dataset.ingest_record import read_ingest_record, read_statistics
from cxr.dataset.manifest import MANIFEST_COLUMNS, read_manifest
from tasks.ingest import _account, ingest
from tests.support.faults import fault
from tests.support.images.dicom_images import SECRETS, dicom_image, picture
from tests.support.images.raw_folder import unpacked
from tests.support.images.real_data import RAW, needs_real_images
from tests.support.logs import own_messages
from tests.support.project import PROJECT

DEFAULTS = read_params(PROJECT / "params.yaml")
NORMAL, PNEUMONIA = "chest_xray/train/NORMAL", "chest_xray/train/PNEUMONIA"
COVID_NORMAL = "Covid19-dataset/train/Normal"


@cache
def image(number: int, *, side: int = 64, quality: int = 95, suffix: str = ".jpeg") -> bytes:
    """Return a random image; images with the same number are duplicates, whatever their side and quality."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    picture = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return bytes(cv2.imencode(suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def lay_out(folder: Path, files: dict[str, bytes]) -> None:
    # Both sets have one image at least: an empty set is an error of its own.
    both = {f"{NORMAL}/IM-9999-0001.jpeg": image(9999), f"{COVID_NORMAL}/9998.jpeg": image(9998)}
    for name, content in (both | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def settings_for(location: Path | str, **changed: object) -> IngestParams:
    sources = [source.model_copy(update={"location": str(location)}) for source in DEFAULTS.ingest.sources]
    return DEFAULTS.ingest.model_copy(update={"sources": sources, "workers": 2, **changed})


def paths_in(folder: Path) -> Paths:
    return DEFAULTS.paths.model_copy(update={"raw": folder / "raw", "downloads": folder / "downloads"})


def ingested(tmp_path: Path, files: dict[str, bytes], **changed: object) -> Path:
    lay_out(tmp_path / "sets", files)
    ingest(settings_for(tmp_path / "sets", **changed), paths_in(tmp_path))
    return tmp_path / "raw"


def quarantine(raw: Path) -> dict[str, tuple[str, str]]:
    table = pd.read_csv(raw / "quarantine.csv")
    names = table["source"] + "/" + table["path"]
    return dict(zip(names, zip(table["reason"], table["detail"], strict=True), strict=True))


def kept_paths(raw: Path) -> list[str]:
    return sorted(path for path in read_manifest(raw)["path"] if "999" not in path)


def digest_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_image_is_packed_byte_for_byte_and_described_in_one_row(tmp_path: Path) -> None:
    raw = ingested(tmp_path, {f"{PNEUMONIA}/person7_virus_3.jpeg": image(1, side=80)})
    manifest = read_manifest(raw)
    assert list(manifest.columns) == list(MANIFEST_COLUMNS)
    assert manifest["image_id"].is_monotonic_increasing
    row = manifest.set_index("path").loc["images/kermany/train/PNEUMONIA/person7_virus_3.jpeg"]
    assert unpacked(raw)[str(row.name)] == image(1, side=80)
    digest = hashlib.sha256(image(1, side=80)).hexdigest()
    assert row["sha256"] == digest
    assert row["image_id"] == f"kermany-{digest[:16]}"
    assert (row["label"], row["patient_id"], row["official_split"]) == ("viral", "kermany/train/person7", "train")
    assert (row["width"], row["height"], row["mode"], row["bytes"]) == (80, 80, "L", len(image(1, side=80)))
    assert len(row["phash"]) == 16
    assert (row["acquisition_series"], row["acquisition_number"]) == ("virus", 7)
    unordered = manifest.set_index("source").loc["covid19", ["acquisition_series", "acquisition_number"]]
    assert unordered.isna().all()
    statistics = read_statistics(raw, read_ingest_record(raw))
    assert statistics["image_id"].tolist() == manifest["image_id"].tolist()
    assert statistics["grey_mean"].between(1, 254).all()


def test_the_counts_add_up_per_source_and_in_all(tmp_path: Path) -> None:
    raw = ingested(
        tmp_path,
        {
            f"{PNEUMONIA}/person1_virus_1.jpeg": image(1),
            f"{PNEUMONIA}/person2_virus_2.jpeg": image(1),
            f"{COVID_NORMAL}/empty.jpeg": b"",
        },
    )
    counts = json.loads((raw / "ingest.json").read_text())
    assert counts["published"] == {"kermany": {"train": 5216, "val": 16, "test": 624}, "covid19": {}}
    assert {name: counts[name] for name in ("total", "kept", "quarantined", "duplicates")} == {
        "total": 5,
        "kept": 3,
        "quarantined": 1,
        "duplicates": 1,
    }
    assert counts["sources"]["kermany"] == {"total": 3, "kept": 2, "quarantined": 0, "duplicates": 1}
    assert counts["sources"]["covid19"] == {"total": 2, "kept": 1, "quarantined": 1, "duplicates": 0}
    assert counts["classes"] == {"normal": 2, "viral": 1, "bacterial": 0, "covid": 0}
    assert counts["synthetic"] is False
    assert counts["layouts"] == {"kermany": "chest_xray", "covid19": "covid19"}
    assert counts["manifest_sha256"] == hashlib.sha256((raw / "manifest.parquet").read_bytes()).hexdigest()


@fault(
    "ingest",
    "a file of the set is truncated, empty, no image, too large, or its class is unknown",
    "it is quarantined, all others are kept",
    "`quarantine.csv` names the file and the reason",
)
def test_each_kind_of_bad_file_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    raw = ingested(
        tmp_path,
        {
            f"{PNEUMONIA}/person1_virus_1.jpeg": image(1)[:-200],
            f"{PNEUMONIA}/person2_virus_1.jpeg": b"",
            f"{NORMAL}/.DS_Store": b"\0\0\0\1Bud1",
            f"{NORMAL}/IM-0001-0001.jpeg": image(2, side=300),
            f"{NORMAL}/IM-0002-0001.jpeg": bytes(2_000_000),
            "chest_xray/train/UNSURE/person3_virus_1.jpeg": image(3),
            f"{PNEUMONIA}/person4_fungus_1.jpeg": image(4),
        },
        max_pixels=40_000,
    )
    found = quarantine(raw)
    assert {path.removeprefix("kermany/train/"): reason for path, (reason, _) in found.items()} == {
        "PNEUMONIA/person1_virus_1.jpeg": "truncated",
        "PNEUMONIA/person2_virus_1.jpeg": "empty",
        "NORMAL/.DS_Store": "not an image",
        "NORMAL/IM-0001-0001.jpeg": "larger than the pixel limit",
        "NORMAL/IM-0002-0001.jpeg": "larger than the pixel limit",
        "UNSURE/person3_virus_1.jpeg": "unknown class folder",
        "PNEUMONIA/person4_fungus_1.jpeg": "unknown class in the file name",
    }
    assert "300 x 300 pixels, allowed 40000" in found["kermany/train/NORMAL/IM-0001-0001.jpeg"][1]
    assert kept_paths(raw) == []


@fault(
    "ingest",
    "a link leads out of the set",
    "it is quarantined and not followed",
    "`quarantine.csv`: link out of the folder",
)
def test_a_link_out_of_the_set_is_rejected_and_one_inside_is_a_duplicate(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpeg"
    secret.write_bytes(image(5))
    lay_out(tmp_path / "sets", {f"{NORMAL}/IM-0001-0001.jpeg": image(1)})
    (tmp_path / "sets" / NORMAL / "IM-0002-0001.jpeg").symlink_to(secret)
    (tmp_path / "sets" / NORMAL / "IM-0003-0001.jpeg").symlink_to("IM-0001-0001.jpeg")
    (tmp_path / "sets" / NORMAL / "IM-0004-0001.jpeg").symlink_to("gone.jpeg")
    (tmp_path / "sets" / "chest_xray" / "val").symlink_to(tmp_path)
    raw = ingested(tmp_path, {})
    assert {path: reason for path, (reason, _) in quarantine(raw).items()} == {
        "kermany/train/NORMAL/IM-0002-0001.jpeg": "link out of the folder",
        "kermany/train/NORMAL/IM-0004-0001.jpeg": "unreadable",
        "kermany/val": "link out of the folder",
    }
    assert pd.read_csv(raw / "duplicates.csv")["path"].tolist() == ["train/NORMAL/IM-0003-0001.jpeg"]


@fault(
    "ingest",
    "links that lead to themselves, and a pipe named like an image",
    "they are quarantined",
    "`quarantine.csv`: unreadable",
)
def test_links_that_lead_back_to_themselves_and_pipes_are_quarantined(tmp_path: Path) -> None:
    lay_out(tmp_path / "sets", {})
    folder = tmp_path / "sets" / NORMAL
    (folder / "IM-0001-0001.jpeg").symlink_to("IM-0002-0001.jpeg")
    (folder / "IM-0002-0001.jpeg").symlink_to("IM-0001-0001.jpeg")
    (folder / "around").symlink_to(".")
    os.mkfifo(folder / "IM-0003-0001.jpeg")
    raw = ingested(tmp_path, {})
    assert {path.rpartition("/")[2]: reason for path, (reason, _) in quarantine(raw).items()} == {
        **dict.fromkeys((f"IM-000{n}-0001.jpeg" for n in (1, 2, 3)), "unreadable"),
        "around": "unreadable",
    }


@fault("ingest", "`labels.csv` is a pipe", "refused before anything is read", "is not a regular file")
def test_a_pipe_in_place_of_the_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    os.mkfifo(tmp_path / "sets" / "labels.csv")
    source = DEFAULTS.ingest.sources[0].model_copy(update={"layout": "labelled", "location": str(tmp_path / "sets")})
    with pytest.raises(SourceError, match=r"labels\.csv is not a regular file"):
        ingest(DEFAULTS.ingest.model_copy(update={"sources": [source]}), paths_in(tmp_path))


@fault(
    "ingest",
    "every image of a source is damaged",
    "nothing is written, the earlier data stay",
    "exit code 3 and the reasons with their numbers",
)
def test_a_source_without_one_usable_image_is_an_error_and_the_earlier_data_stay(tmp_path: Path) -> None:
    raw = ingested(tmp_path, {})
    before = sorted(path.name for path in raw.iterdir())
    (tmp_path / "sets" / f"{NORMAL}/IM-9999-0001.jpeg").write_bytes(b"damaged")
    with pytest.raises(SourceError, match=r"source kermany: none of its 1 files .*\(1 not an image\)"):
        ingest(settings_for(tmp_path / "sets"), paths_in(tmp_path))
    assert sorted(path.name for path in raw.iterdir()) == before
    assert quarantine(raw) == {}


@fault("ingest", "a file may not be read", "it is quarantined", "`quarantine.csv`: unreadable, Permission denied")
def test_a_file_without_read_permission_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.read_bytes

    def locked(path: Path) -> bytes:  # tests may run as a user whom no permission stops
        if path.name == "IM-0001-0001.jpeg":
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", locked)
    raw = ingested(tmp_path, {f"{NORMAL}/IM-0001-0001.jpeg": image(1)})
    reason, detail = quarantine(raw)["kermany/train/NORMAL/IM-0001-0001.jpeg"]
    assert reason == "unreadable"
    assert "Permission denied" in detail


@fault("ingest", "a file name is not UTF-8", "it is quarantined", "`quarantine.csv`: unreadable, rename the file")
def test_a_file_name_that_is_not_utf_8_is_quarantined(tmp_path: Path) -> None:
    lay_out(tmp_path / "sets", {})
    for name in (os.fsdecode(b"IM-\xff.jpeg"), "IM-\r.jpeg"):  # a carriage return would end a line of the table
        (tmp_path / "sets" / NORMAL / name).write_bytes(image(1))
    raw = ingested(tmp_path, {f"{NORMAL}/IM-0001\u202fäöü 肺.jpeg": image(2)})
    assert kept_paths(raw) == ["images/kermany/train/NORMAL/IM-0001\u202fäöü 肺.jpeg"]
    assert [(path, reason) for path, (reason, _) in quarantine(raw).items()] == [
        ("kermany/train/NORMAL/IM-\\r.jpeg", "unreadable"),
        ("kermany/train/NORMAL/IM-\\xff.jpeg", "unreadable"),
    ]


def test_of_equal_files_the_first_is_kept_across_sets_and_nested_copies(tmp_path: Path) -> None:
    raw = ingested(
        tmp_path,
        {
            f"{NORMAL}/IM-0001-0001.jpeg": image(1),
            f"{NORMAL}/IM-0002-0001.jpeg": image(1),
            "chest_xray/chest_xray/train/NORMAL/IM-0001-0001.jpeg": image(1),
            f"{COVID_NORMAL}/01.jpeg": image(1),
        },
    )
    assert kept_paths(raw) == ["images/kermany/chest_xray/train/NORMAL/IM-0001-0001.jpeg"]
    duplicates = pd.read_csv(raw / "duplicates.csv")
    assert list(duplicates.columns) == ["source", "path", "sha256", "kind", "kept_image_id", "correlation"]
    assert (duplicates["source"] + "/" + duplicates["path"]).tolist() == [
        "covid19/train/Normal/01.jpeg",
        "kermany/train/NORMAL/IM-0001-0001.jpeg",
        "kermany/train/NORMAL/IM-0002-0001.jpeg",
    ]
    assert set(duplicates["kind"]) == {"exact"}
    assert set(duplicates["correlation"]) == {1.0}
    assert set(duplicates["kept_image_id"]) == {f"kermany-{hashlib.sha256(image(1)).hexdigest()[:16]}"}


def test_of_near_duplicates_the_larger_is_kept(tmp_path: Path) -> None:
    raw = ingested(
        tmp_path,
        {f"{NORMAL}/IM-0001-0001.jpeg": image(1, quality=60), f"{COVID_NORMAL}/01.jpeg": image(1, side=120)},
    )
    assert kept_paths(raw) == ["images/covid19/train/Normal/01.jpeg"]
    duplicate = pd.read_csv(raw / "duplicates.csv").iloc[0]
    assert (duplicate["path"], duplicate["kind"]) == ("train/NORMAL/IM-0001-0001.jpeg", "near")
    assert 0.995 <= duplicate["correlation"] <= 1
    assert "images/kermany/train/NORMAL/IM-0001-0001.jpeg" not in unpacked(raw)


def test_patients_who_share_an_image_become_one(tmp_path: Path) -> None:
    raw = ingested(
        tmp_path,
        {
            f"{PNEUMONIA}/person1_virus_1.jpeg": image(1),
            f"{PNEUMONIA}/person2_virus_1.jpeg": image(1),
            f"{PNEUMONIA}/person2_virus_2.jpeg": image(2),
            f"{PNEUMONIA}/person3_virus_1.jpeg": image(3),
        },
    )
    patients = read_manifest(raw).set_index("path")["patient_id"]
    assert patients["images/kermany/train/PNEUMONIA/person2_virus_2.jpeg"] == "kermany/train/person1"
    assert patients["images/kermany/train/PNEUMONIA/person3_virus_1.jpeg"] == "kermany/train/person3"


@fault(
    "ingest",
    "copies of one image have different labels",
    "all of them are quarantined",
    "`quarantine.csv`: conflicting labels",
)
def test_copies_with_different_labels_are_all_quarantined(tmp_path: Path) -> None:
    raw = ingested(
        tmp_path,
        {f"{NORMAL}/IM-0001-0001.jpeg": image(1), f"{PNEUMONIA}/person1_virus_1.jpeg": image(1, side=90)},
    )
    found = quarantine(raw)
    for path in ("kermany/train/NORMAL/IM-0001-0001.jpeg", "kermany/train/PNEUMONIA/person1_virus_1.jpeg"):
        reason, detail = found.pop(path)
        assert reason == "conflicting labels"
        assert "NORMAL/IM-0001-0001.jpeg is normal" in detail
    assert found == {}
    assert kept_paths(raw) == []


def test_near_duplicates_are_listed_in_pairs(tmp_path: Path) -> None:
    marked = cv2.imdecode(np.frombuffer(image(1), np.uint8), cv2.IMREAD_GRAYSCALE)
    marked[:6, :6] = 255 - marked[:6, :6]
    files = {
        f"{NORMAL}/IM-0001-0001.jpeg": image(1),
        f"{NORMAL}/IM-0002-0001.jpeg": bytes(cv2.imencode(".png", marked)[1]),
    }
    raw = ingested(tmp_path, files, near_duplicate_correlation=0.9)
    pair = pd.read_csv(raw / "near_duplicates.csv").iloc[0]
    ids = sorted(f"kermany-{hashlib.sha256(content).hexdigest()[:16]}" for content in files.values())
    assert [pair["image_id_a"], pair["image_id_b"]] == ids
    assert 0.9 <= pair["correlation"] < 0.995


def test_files_beside_the_set_in_an_archive_are_accounted_for(tmp_path: Path) -> None:
    lay_out(tmp_path / "sets", {"__MACOSX/chest_xray/._train": b"\0\5\26\7", "README.txt": b"text"})
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "sets")
    ingest(settings_for(tmp_path / "all.zip"), paths_in(tmp_path))
    reasons = {path: reason for path, (reason, _) in quarantine(tmp_path / "raw").items()}
    assert reasons == {
        f"{source}/../{path}": "not an image"
        for source in ("kermany", "covid19")
        for path in ("__MACOSX/chest_xray/._train", "README.txt")
    }


def test_the_number_of_workers_does_not_change_the_bytes(tmp_path: Path) -> None:
    files = {f"{NORMAL}/IM-{n:04d}-0001.jpeg": image(n % 7) for n in range(12)} | {f"{NORMAL}/empty.jpeg": b""}
    first = digest_of(ingested(tmp_path, files, workers=1))
    assert digest_of(ingested(tmp_path, files, workers=4)) == first


def test_an_error_names_the_expected_layout_for_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        ingest(settings_for(tmp_path), paths_in(tmp_path))
    assert "chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}" in str(caught.value)
    assert not (tmp_path / "raw").exists()


def test_an_error_names_the_expected_layout_for_empty_class_folders(tmp_path: Path) -> None:
    lay_out(tmp_path, {})
    (tmp_path / COVID_NORMAL / "9998.jpeg").unlink()
    with pytest.raises(SourceError, match="expected Covid19-dataset/"):
        ingest(settings_for(tmp_path), paths_in(tmp_path))


def hospital(folder: Path, table: str, images: dict[str, bytes]) -> IngestParams:
    """Lay out a folder with labels.csv, and return the parameters that read it alone."""
    folder.mkdir()
    for name, data in images.items():
        (folder / name).write_bytes(data)
    (folder / "labels.csv").write_text(table)
    own = Source(name="hospital", layout="labelled", location=str(folder), sha256=None)
    return DEFAULTS.ingest.model_copy(update={"sources": [own], "workers": 2})


def test_a_labelled_folder_of_dicom_images_is_ingested_without_its_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXR_PATIENT_KEY", "k" * 32)
    caplog.set_level(logging.DEBUG)
    images = {
        "IM1": dicom_image(picture(), PatientID="8675309"),
        "IM2": dicom_image(picture()[::-1], PatientID="8675309"),
        "IM3": dicom_image(picture(64, 64)[:, ::-1], PatientID="55512"),
        "CT1": dicom_image(picture(48, 64), Modality="CT"),
        "extra.png": image(3, suffix=".png"),
    }
    table = "path,label,official_split\nIM1,viral,train\nIM2,viral,test\nIM3,normal,\nCT1,normal,\n"
    ingest(hospital(tmp_path / "ward", table, images), paths_in(tmp_path))
    manifest = read_manifest(tmp_path / "raw").set_index("path")
    assert sorted(manifest.index) == [f"images/hospital/IM{number}" for number in (1, 2, 3)]
    one, two, three = (manifest.loc[f"images/hospital/IM{number}"] for number in (1, 2, 3))
    assert one["patient_id"] == two["patient_id"] != three["patient_id"], "one patient in both parts"
    assert (one["label"], one["official_split"], three["official_split"]) == ("viral", "train", "all")
    reasons = {path: reason for path, (reason, _) in quarantine(tmp_path / "raw").items()}
    assert reasons == {"hospital/CT1": "other modality", "hospital/extra.png": "not in labels.csv"}
    written = b"".join(path.read_bytes() for path in (tmp_path / "raw").rglob("*") if path.is_file())
    assert not [secret for secret in SECRETS if secret.encode() in written or secret in caplog.text]


@fault(
    "ingest",
    "`labels.csv` names a file that is not there",
    "nothing is written",
    "exit code 3 and the first such file",
)
def test_a_label_without_its_image_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_PATIENT_KEY", "k" * 32)
    params = hospital(tmp_path / "ward", "path,label\na.png,viral\ngone.png,normal\n", {"a.png": image(1)})
    with pytest.raises(SourceError, match=r"gone\.png"):
        ingest(params, paths_in(tmp_path))


@fault("ingest", "the key of the patient digests is not set", "nothing is written", "the name of the variable")
def test_a_missing_key_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXR_PATIENT_KEY", raising=False)
    params = hospital(tmp_path / "ward", "path,label\na.png,viral\n", {"a.png": image(1)})
    with pytest.raises(SourceError, match="CXR_PATIENT_KEY"):
        ingest(params, paths_in(tmp_path))


def test_two_sources_with_the_same_name_are_rejected(tmp_path: Path) -> None:
    one: Source = DEFAULTS.ingest.sources[0]
    with pytest.raises(ParamsError) as caught:
        ingest(DEFAULTS.ingest.model_copy(update={"sources": [one, one]}), paths_in(tmp_path))
    assert "kermany, kermany" in str(caught.value)


def test_a_count_that_does_not_add_up_is_an_error(tmp_path: Path) -> None:
    lay_out(tmp_path, {})
    files = list_files("kermany", "chest_xray", tmp_path, is_archive=False)
    lost = Deduplicated(kept=[], duplicates=[], conflicting=[], rejected=[], near_duplicates=[], patients={})
    with pytest.raises(DataError, match=r"source kermany: .* does not add up"):
        _account(files, [], lost, pd.DataFrame(columns=["source"]))


def test_the_log_ends_with_a_table_of_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="cxr.ingest"):
        ingested(tmp_path, {f"{NORMAL}/empty.jpeg": b""})
    assert own_messages(caplog) == [
        "source              total         kept  quarantined   duplicates\n"
        "kermany                 2            1            1            0\n"
        "covid19                 1            1            0            0",
        "kept: 2 normal",
        "quarantined: 1 empty",
        "order of acquisition known for 1 of 2 kept images",
        "near-duplicate pairs of kept images: 0",
    ]


FILE_KINDS = st.tuples(
    st.sampled_from([NORMAL, PNEUMONIA, "chest_xray/test/NORMAL", "chest_xray/train/OTHER", COVID_NORMAL]),
    st.sampled_from(["person1_virus_{}.jpeg", "person2_bacteria_{}.jpeg", "IM-{:04d}-0001.jpeg", "{}.png"]),
    st.one_of(
        st.integers(0, 4).map(image),
        st.integers(0, 4).map(lambda number: image(number, side=70)),
        st.integers(0, 4).map(lambda number: image(number)[:-150]),
        st.sampled_from([b"", b"text", image(0)[:20]]),
    ),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(FILE_KINDS, max_size=12))
def test_every_file_has_exactly_one_result(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[str, str, bytes]]
) -> None:
    tmp_path = tmp_path_factory.mktemp("mix")
    files = {f"{folder}/{name.format(number)}": content for number, (folder, name, content) in enumerate(kinds)}
    raw = ingested(tmp_path, files)
    manifest = read_manifest(raw)
    duplicates, rejected = pd.read_csv(raw / "duplicates.csv"), pd.read_csv(raw / "quarantine.csv")
    kept = manifest["path"].str.removeprefix("images/")
    accounted = [
        *kept,
        *(duplicates["source"] + "/" + duplicates["path"]),
        *(rejected["source"] + "/" + rejected["path"]),
    ]
    given = {name.replace("chest_xray/", "kermany/", 1).replace("Covid19-dataset/", "covid19/", 1) for name in files}
    given |= {"kermany/train/NORMAL/IM-9999-0001.jpeg", "covid19/train/Normal/9998.jpeg"}
    assert sorted(accounted) == sorted(given)
    assert manifest["image_id"].is_unique
    assert manifest["sha256"].is_unique
    assert set(duplicates["kept_image_id"]) <= set(manifest["image_id"])
    packed = {path: hashlib.sha256(data).hexdigest() for path, data in unpacked(raw).items()}
    assert packed == dict(zip(manifest["path"], manifest["sha256"], strict=True))


@fault("ingest", "SIGKILL while images are packed", "the earlier data stay", "the next run gives the same bytes")
def test_a_killed_run_leaves_the_old_folder_and_the_next_run_gives_the_same_bytes(tmp_path: Path) -> None:
    files = {f"{NORMAL}/IM-{n:04d}-0001.jpeg": image(n, side=1000) for n in range(60)}
    expected = digest_of(ingested(tmp_path, files))
    tree = YAML().load(PROJECT / "params.yaml")
    tree["paths"] |= {"raw": str(tmp_path / "raw"), "downloads": str(tmp_path / "downloads")}
    tree["ingest"]["workers"] = 1
    for source in tree["ingest"]["sources"]:
        source["location"] = str(tmp_path / "sets")
    YAML().dump(tree, tmp_path / "params.yaml")
    command = [sys.executable, "-m", "tasks.ingest", "--params", str(tmp_path / "params.yaml")]

    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL)
    half_done = tmp_path / ".raw.partial"
    while process.poll() is None and not half_done.is_dir():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert half_done.is_dir()
    assert digest_of(tmp_path / "raw") == expected

    shutil.rmtree(tmp_path / "raw")
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    assert digest_of(tmp_path / "raw") == expected
    assert not (tmp_path / ".raw.partial").exists()


@fault("ingest", "an image changes while ingest runs", "nothing is written", "exit code 3 and the file")
def test_an_image_that_changes_during_ingest_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, packer = Path.read_bytes, os.getpid()

    def overtaken(path: Path) -> bytes:
        changed = path.name == "IM-0001-0001.jpeg" and os.getpid() == packer  # read before, by the one that decodes
        return image(2) if changed else whole(path)

    monkeypatch.setattr(Path, "read_bytes", overtaken)
    with pytest.raises(SourceError, match=r"IM-0001-0001\.jpeg changed during ingest"):
        ingested(tmp_path, {f"{NORMAL}/IM-0001-0001.jpeg": image(1)})
    assert not (tmp_path / "raw").exists()


def test_the_command_ends_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    tree = YAML().load(PROJECT / "params.yaml")
    tree["ingest"]["sources"][0]["location"] = str(tmp_path / "none")
    YAML().dump(tree, tmp_path / "params.yaml")
    command = [sys.executable, "-m", "tasks.ingest", "--params", str(tmp_path / "params.yaml")]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == SourceError.exit_code
    assert ended.stderr.startswith(f"error: {tmp_path}/none: ")
    assert ended.stderr.count("\n") == 1


@needs_real_images
def test_some_real_images_are_ingested(tmp_path: Path) -> None:
    for folder, count in ((NORMAL, 5), (PNEUMONIA, 8), (COVID_NORMAL, 3), ("Covid19-dataset/test/Covid", 3)):
        (tmp_path / "sets" / folder).mkdir(parents=True)
        for path in sorted((RAW / folder).iterdir())[:count]:
            shutil.copy(path, tmp_path / "sets" / folder)
    ingest(settings_for(tmp_path / "sets"), paths_in(tmp_path))
    counts = json.loads((tmp_path / "raw" / "ingest.json").read_text())
    assert counts["total"] == 19
    assert counts["quarantined"] == 0
    assert counts["classes"]["normal"] > 0
    assert counts["classes"]["covid"] > 0
    manifest = read_manifest(tmp_path / "raw")
    assert (manifest.loc[manifest["source"] == "kermany", ["width", "height"]] == 224).all(axis=None)
