"""Build a data/raw folder like ingest, from tiny files with plausible grey levels."""

import hashlib
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxr.common.classes import LABELS
from cxr.common.files import sha256_of, write_json
from cxr.common.params import Params, Paths, read_params
from cxr.dataset.ingest_record import CORRECTIONS_FILE, QUARANTINE_FILE, STATISTICS_FILE, TABLES
from cxr.dataset.manifest import MANIFEST_COLUMNS, STATISTICS_COLUMNS, write_table
from cxr.dataset.shards import write_shards
from tests.support.project import PROJECT


@dataclass
class RawFolder:
    """The tables of ingest; tests change them before they are written."""

    manifest: pd.DataFrame
    statistics: pd.DataFrame
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[dict[str, str]] = field(default_factory=list)
    quarantined: int = 2
    synthetic: bool = True

    def write(self, raw: Path) -> None:
        """Write the tables; `raw_folder` has written the images."""
        write_table(self.manifest, MANIFEST_COLUMNS, raw / "manifest.parquet")
        write_table(self.statistics, STATISTICS_COLUMNS, raw / "statistics.parquet")
        pairs = pd.DataFrame(self.near_duplicates, columns=["image_id_a", "image_id_b"]).assign(correlation=0.99)
        pairs.to_csv(raw / "near_duplicates.csv", index=False)
        columns = ["source", "path", "sha256", "kind", "kept_image_id", "correlation"]
        pd.DataFrame(self.duplicates, columns=columns).to_csv(raw / "duplicates.csv", index=False)
        for name in (QUARANTINE_FILE, CORRECTIONS_FILE):
            pd.DataFrame(columns=list(TABLES[name])).to_csv(raw / name, index=False)
        sources = {name: len(images) for name, images in self.manifest.groupby("source")}
        counts = {name: self._counts(n, self.quarantined if name == "kermany" else 0) for name, n in sources.items()}
        labels = self.manifest["label"].value_counts()
        write_json(
            raw / "ingest.json",
            {
                **self._counts(len(self.manifest), self.quarantined),
                "sources": counts,
                "synthetic": self.synthetic,
                "layouts": dict.fromkeys(counts, "chest_xray"),
                "published": {"kermany": {} if self.synthetic else {"train": 5216, "val": 16, "test": 624}},
                "classes": {label: int(labels.get(label, 0)) for label in LABELS},
                "manifest_sha256": sha256_of(raw / "manifest.parquet"),
                "tables_sha256": {name: sha256_of(raw / name) for name in (STATISTICS_FILE, *TABLES)},
            },
        )

    @staticmethod
    def _counts(kept: int, quarantined: int) -> dict[str, int]:
        return {"total": kept + quarantined, "kept": kept, "quarantined": quarantined, "duplicates": 0}


def raw_folder(raw: Path, patients_per_class: int = 30) -> RawFolder:
    """Write the packed images into `raw` and return the tables that go with them, not yet written.

    Each patient has two images; the second source has a third as many, of other patients.
    """
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    images: dict[str, bytes] = {}
    for source, n, labels in (
        ("kermany", patients_per_class, LABELS[:3]),
        ("covid19", patients_per_class // 3, LABELS),
    ):
        for label in labels:
            for image in range(2 * n):
                path = f"images/{source}/{label}-{image}.png"
                images[path] = rng.bytes(40)
                sha256 = hashlib.sha256(images[path]).hexdigest()
                rows.append(
                    {
                        "image_id": f"{source}-{sha256[:16]}",
                        "source": source,
                        "official_split": "test" if image < n // 4 * 2 else "train",
                        "path": path,
                        "label": label,
                        "patient_id": f"{source}/train/{label}{image // 2}",
                        "sha256": sha256,
                        "phash": "0" * 16,
                        "width": 400,
                        "height": 320,
                        "mode": "L",
                        "bytes": 40,
                        "acquisition_series": label if source == "kermany" else None,
                        "acquisition_number": image // 2 if source == "kermany" else None,
                    }
                )
    pack(raw, images)
    manifest = pd.DataFrame(rows).sort_values("image_id", ignore_index=True)
    statistics = manifest[["image_id"]].assign(
        grey_mean=rng.uniform(110, 130, len(rows)), grey_std=50, grey_p01=5, grey_p99=240, saturated_share=0.01
    )
    return RawFolder(manifest, statistics)


def pack(raw: Path, images: dict[str, bytes]) -> None:
    """Replace the shards in `raw` by shards of `images`, path -> bytes."""
    raw.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(raw / "images", ignore_errors=True)
    sizes = {path: len(data) for path, data in images.items()}
    assert sum(write_shards(raw / "images", sizes, images.__getitem__, workers=1)) == len(images)


def unpacked(raw: Path) -> dict[str, bytes]:
    """Return the images in the shards of `raw`, path -> bytes, read like any zip tool."""
    images = {}
    for shard in sorted((raw / "images").iterdir()):
        with zipfile.ZipFile(shard) as opened:
            images |= {name: opened.read(name) for name in opened.namelist()}
    return images


def project_params() -> Params:
    """Return the default parameters of the project."""
    return read_params(PROJECT / "params.yaml")


def paths_below(folder: Path) -> Paths:
    """Return the project's own paths, moved below `folder`."""
    paths = project_params().paths
    return paths.model_copy(update={name: folder / getattr(paths, name) for name in Paths.model_fields})
