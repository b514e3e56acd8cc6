"""Stages that read all images name one that its decoder does not survive; ingest goes on without it."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from cxr.common.cli import run_command
from cxr.common.errors import DecoderError
from cxr.common.params import override
from cxr.dataset import ingest as examining
from cxr.dataset import prepare
from cxr.dataset.manifest import read_manifest
from cxr.forensics import measure
from tests.e2e.test_damaged_inputs import outputs
from tests.support.faults import fault
from tests.support.images.planted_decoder import CRASHES, HANGS, planted
from tests.support.moments import in_child
from tests.support.project import PROJECT
from tests.support.projects.sample_project import run_stage
from tests.support.projects.stage_files import write_verdict

NORMAL = Path("sets/chest_xray/train/NORMAL")
CRASH, HANG = "IM-0004-0001.jpeg", "IM-0005-0001.jpeg"
DECODERS: dict[str, tuple[Any, str]] = {
    "ingest": (examining, "inspect_image"),
    "preprocess": (prepare, "image_from_bytes"),
    "forensics": (measure, "measure_image"),
}


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter a project with six images, one of which crashes a planted decoder, and another one hangs it."""
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "labels-corrected.csv"):
        shutil.copy2(PROJECT / name, name)
    source = {"name": "kermany", "layout": "chest_xray", "location": "sets", "sha256": None}
    override(Path("params.yaml"), {"ingest.sources": [source], "preprocess.image_size_px": 32})
    NORMAL.mkdir(parents=True)
    for number in range(1, 7):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 80), np.uint8)
        (NORMAL / f"IM-{number:04d}-0001.jpeg").write_bytes(cv2.imencode(".jpeg", pixels)[1].tobytes())
    for name, ending in ((CRASH, CRASHES), (HANG, HANGS)):
        (NORMAL / name).write_bytes((NORMAL / name).read_bytes() + ending)
    monkeypatch.setattr("cxr.imaging.unattended.UNATTENDED_SECONDS", 2.0)


def plant(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = DECODERS[stage]
    monkeypatch.setattr(module, name, planted(getattr(module, name)))


@fault("ingest", "an image crashes its decoder, another one never ends decoding",
       "both are quarantined; all others are kept, and the next run gives the same bytes",
       "`quarantine.csv`: `crashes its decoder`, `took more than 30 s`")  # fmt: skip
def test_ingest_quarantines_an_image_that_its_decoder_does_not_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    plant("ingest", monkeypatch)
    run_stage("ingest")
    assert len(read_manifest(Path("data/raw"))) == 4
    rejected = pd.read_csv("data/raw/quarantine.csv").set_index("path")
    found = {Path(path).name: (row["reason"], row["detail"]) for path, row in rejected.iterrows()}
    assert found == {
        CRASH: ("not an image", f"train/NORMAL/{CRASH} crashes its decoder; export it again"),
        HANG: ("too slow", f"train/NORMAL/{HANG} took more than 2 s to decode; export it uncompressed"),
    }
    first = outputs("ingest")
    run_stage("ingest")
    assert outputs("ingest") == first
    for name in (CRASH, HANG):
        (NORMAL / name).unlink()
    run_stage("ingest")
    others = outputs("ingest")
    assert {name for name in first if first[name] != others[name]} == {
        "data/raw/quarantine.csv",
        "data/raw/ingest.json",
    }


@pytest.mark.parametrize(("stage", "output"), [("preprocess", "data/images"), ("forensics", "reports/forensics")])
@fault("preprocess, forensics", "an image that ingest kept crashes its decoder, another one never ends decoding",
       "nothing is written; after the two are replaced it runs", "exit code 15, the image, what to do")  # fmt: skip
def test_a_stage_names_an_image_that_its_decoder_does_not_survive(
    stage: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage("ingest")
    write_verdict(Path("reports/validation.json"), Path("data/raw"))
    plant(stage, monkeypatch)
    said = Path("said")
    code = in_child(lambda: run_command(lambda: run_stage(stage)), lambda: None, said=said)
    line = said.read_text().splitlines()[-1]
    assert code == DecoderError.exit_code == 15, line
    assert line.startswith("error: ")
    assert "Traceback" not in said.read_text()
    assert f"{CRASH} crashes its decoder; export it again" in line
    assert f"{HANG} took more than 2 s to decode; export it uncompressed" in line
    assert "Replace or remove what is named in its source, run `./run dvc repro ingest`, then this" in line
    assert not Path(output).exists()
    for name in (CRASH, HANG):
        (NORMAL / name).unlink()
    run_stage("ingest")
    write_verdict(Path("reports/validation.json"), Path("data/raw"))
    run_stage(stage)
    assert Path(output).is_dir()
