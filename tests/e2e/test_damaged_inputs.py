"""Each stage, with each of its inputs damaged in each way: one clear error, and outputs that are whole or as before.

The stages run in this process on copies of one small project; what is copied are hard links.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cxr.common.errors import CxrError
from cxr.common.params import read_params
from tests.support.projects.sample_project import STAGES, run_stage

DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _data: None,
    "half": lambda data: data[: len(data) // 2],
    "garbage": lambda data: np.random.default_rng(len(data)).bytes(min(len(data), 4096) or 64),
    "empty": lambda _data: b"",
    "[]": lambda _data: b"[]",
    "{}": lambda _data: b"{}",
}

RAW, SPLIT, IMAGES, MODEL = "data/raw", "data/split", "data/images", "models/trained"
MANIFEST, SHARD = f"{RAW}/manifest.parquet", f"{RAW}/images/0000.zip"
PACKED = [f"{IMAGES}/{name}" for name in ("images.npy", "index.csv", "preprocessing.json")]
DIVIDED = [f"{SPLIT}/{name}" for name in ("splits.csv", "split.json")]
BUNDLE = [f"{MODEL}/{name}" for name in ("model.json", "model.safetensors", "training.json", "curves.csv")]
TABLES = [f"{RAW}/{name}.csv" for name in ("duplicates", "near_duplicates", "quarantine", "corrections")]

INPUTS: dict[str, list[str]] = {
    "ingest": ["labels-corrected.csv"],
    "validate": [MANIFEST, f"{RAW}/statistics.parquet", f"{RAW}/ingest.json", *TABLES, SHARD],
    "split": [MANIFEST, f"{RAW}/duplicates.csv", f"{RAW}/near_duplicates.csv", f"{RAW}/ingest.json",
              "reports/validation.json"],
    "preprocess": [MANIFEST, SHARD, "reports/validation.json"],
    "train": [MANIFEST, *PACKED, *DIVIDED],
    "evaluate": [MANIFEST, SHARD, f"{RAW}/ingest.json", *DIVIDED, *PACKED, *BUNDLE],
    "register": [*BUNDLE, "reports/metrics.json", "reports/report.html", *DIVIDED,
                 *(f"reports/evaluation/{name}" for name in
                   ("predictions.csv", "calibration.json", "reference.safetensors", "model_card.md"))],
}  # fmt: skip

HARMLESS = {
    ("ingest", "labels-corrected.csv", "missing"),  # nothing is corrected then
    ("register", "reports/evaluation/model_card.md", "half"),  # the registered summary is in the first half
}
CASES = [
    (stage, file, damage)
    for stage, files in INPUTS.items()
    for file in files
    for damage in DAMAGE
    if (stage, file, damage) not in HARMLESS
]


def writer(file: str) -> str:
    """Return the stage that writes a file."""
    folders = {"data/raw": "ingest", "data/split": "split", "data/images": "preprocess", "models": "train"}
    found = [stage for folder, stage in folders.items() if file.startswith(folder)]
    return found[0] if found else "validate" if "validation" in file else "evaluate"


def outputs(stage: str) -> dict[str, str]:
    """Return the digest of every file that a stage has written."""
    paths = read_params(Path("params.yaml")).paths
    outs = {
        "ingest": [paths.raw], "validate": [paths.validation, paths.data_docs], "split": [paths.split],
        "preprocess": [paths.images], "train": [paths.model], "register": [paths.registration],
        "evaluate": [paths.metrics, paths.report, paths.evaluation],
    }[stage]  # fmt: skip
    files = [file for out in outs for file in ([out] if out.is_file() else out.rglob("*")) if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def break_file(path: Path, damage: str) -> None:
    """Damage a file, in a copy of its own."""
    data = DAMAGE[damage](path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)


@pytest.mark.parametrize(("stage", "file", "damage"), CASES, ids=[f"{s}-{Path(f).name}-{d}" for s, f, d in CASES])
def test_a_damaged_input_is_refused_by_name(sample: Path, stage: str, file: str, damage: str) -> None:
    break_file(sample / file, damage)
    before = outputs(stage)
    with pytest.raises(CxrError) as raised:
        run_stage(stage)
    message = str(raised.value)
    assert "\n" not in message
    assert (str(Path(file).parent) if file == SHARD else file) in message
    if stage != "ingest":
        assert re.search(rf"`\./run dvc repro (-f -s |--force )?{writer(file)}`", message), message
    after = outputs(stage)
    assert after == before or not after, "whole, as before, or gone"
    assert not list(sample.rglob("*.partial"))


def test_the_table_has_every_stage() -> None:
    assert tuple(INPUTS) == STAGES
