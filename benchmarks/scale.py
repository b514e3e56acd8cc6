"""Tens of thousands of images from ingest to prediction: what grows with their number, in time and in memory.

Run   ./run benchmarks.scale --images 6000 60000 [--from FOLDER] [--keep FOLDER] [--ray]

Makes a labelled folder of each number of distinct images (benchmarks/scale_images.py, 20 to 50 kB each) from a set laid
out as chest_xray, by default the synthetic sample. Then each step runs alone, in a process of its own: seconds of the
wall clock, milliseconds of the processor an image, peak resident memory. Training is one epoch of a small network at
64 px, so that it is not training that is measured. With `--ray` the largest number is also scored by shards on two
local Ray nodes, one of which is killed in the middle.

With `--keep` a finished step is not run again, so an interrupted measurement goes on where it ended. 60,000 images take
about 5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.processes import Measured, measure
from benchmarks.scale_images import Base, read_bases, write_images
from cxr.common.files import write_json
from cxr.common.params import override
from cxr.dicom.deidentify import KEY_VARIABLE
from cxr.inference.score_store import parts_below, read_scores
from cxr.registry import tracking_store
from tests.support.project import PROJECT
from tests.support.services.prefect_servers import clean_environment, serve_prefect
from tests.support.services.ray_nodes import start_two_nodes

_IMAGES_PER_PART = 500
MODEL = ("--model", "challenger")
STEPS: Mapping[str, tuple[str, ...]] = {
    "ingest": ("tasks.ingest",),
    "validate": ("tasks.validate",),
    "split": ("tasks.split",),
    "preprocess": ("tasks.preprocess",),
    "train": ("tasks.train",),
    "evaluate": ("tasks.evaluate",),
    "register": ("tasks.register",),
    "predict --json": ("tasks.predict", "--json", *MODEL, "incoming"),
    "score": ("tasks.score", "incoming", *MODEL),
}
PARAMS: Mapping[str, Any] = {
    "ingest.sources": [{"name": "hospital", "layout": "labelled", "location": "incoming", "sha256": None}],
    "preprocess.image_size_px": 64,
    "score.images_per_part": _IMAGES_PER_PART,
    "train.backbone": "small_cnn",
    "train.epochs": 1,
    "train.batch_size": 64,
    "evaluate.attention_images": 16,
    "evaluate.sanity_images": 4,
    "evaluate.audit_images": 32,
}
_BASES = 600


class Project:
    """A folder with parameters, images and a store of its own, and what was measured there."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder, self.images = folder / f"{images}", images
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / "params.yaml", self.folder)
        override(self.folder / "params.yaml", dict(PARAMS))

    @property
    def measured(self) -> dict[str, Measured]:
        """Step -> what it took."""
        if not self._record.is_file():
            return {}
        return {name: Measured(**values) for name, values in json.loads(self._record.read_text()).items()}

    def run(self, name: str, command: Sequence[str]) -> None:
        """Run a step that is not measured yet."""
        known = self.measured
        if name not in known:
            log = self.folder / f"{name.partition(' ')[0]}.log"
            found = measure(command, output=log, folder=self.folder, environment=self.environment)
            write_json(self._record, {step: asdict(one) for step, one in (known | {name: found}).items()})
            print(f"{self.images} images, {name}: {found}", flush=True)

    @property
    def _record(self) -> Path:
        return self.folder / "measured.json"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which its commands run: a store of its own, the code of this checkout."""
        own = {tracking_store.FOLDER_VARIABLE: str(self.folder.resolve() / "mlruns"), KEY_VARIABLE: "k" * 32}
        return clean_environment(PYTHONPATH=str(PROJECT), **own)


def _table(projects: Sequence[Project]) -> str:
    """Return the figures as Markdown: a row a step, and the largest number of images against the smallest."""
    numbers = [f"{project.images:,}" for project in projects]
    heads = [f"{n}: s | processor, ms an image | peak, MiB" for n in numbers]
    lines = [f"| | {' | '.join(heads)} | peak, ratio | ms, ratio |", "|---" * (3 * len(projects) + 3) + "|"]
    for name in STEPS:
        found = [project.measured[name] for project in projects]
        each = [1000 * one.processor_seconds / project.images for one, project in zip(found, projects, strict=True)]
        cells = [f"{one.seconds:.0f} | {ms:.2f} | {one.peak_mib:.0f}" for one, ms in zip(found, each, strict=True)]
        ratio = f"{found[-1].peak_mib / found[0].peak_mib:.2f} | {each[-1] / each[0]:.2f}"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def _score_on_ray(project: Project) -> str:
    """Score by two shards on two nodes, kill one when half of the images are scored; return what came out."""
    scores = project.folder / "scores-ray"
    command = ["-m", "flows.score", "incoming", "--output", scores.name, "--shards", "2", *MODEL]
    with serve_prefect(project.folder) as server, start_two_nodes() as nodes:
        environment = project.environment | {name: server[name] for name in ("PREFECT_HOME", "PREFECT_API_URL")}
        environment |= nodes.settings
        started = time.monotonic()
        with subprocess.Popen([sys.executable, *command], cwd=project.folder, env=environment) as flow:
            while len(parts_below(scores)) * _IMAGES_PER_PART < project.images / 2:
                if flow.poll() is not None:
                    raise SystemExit("the flow ended before a node was killed")
                time.sleep(0.5)
            nodes.kill_second()
            before = len(read_scores(scores))
        seconds = time.monotonic() - started
    paths = read_scores(scores)["path"]
    return (
        f"{project.images} images on two Ray nodes, one killed after {before}: exit code {flow.returncode} after "
        f"{seconds:.0f} s, {len(paths)} rows of {paths.nunique()} images"
    )


def main() -> None:
    """Read the command line, make the images and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="N", type=int, nargs="+", default=[6000, 60000], help="(%(default)s)")
    parser.add_argument("--from", dest="location", default="sample", help="set to make them from (%(default)s)")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="where all of it is made and left")
    parser.add_argument("--ray", action="store_true", help="score the largest number on two Ray nodes, and kill one")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        projects = [Project(folder, images) for images in sorted(given.images)]
        bases: list[Base] = []
        for project in projects:
            incoming = project.folder / "incoming"
            if not incoming.is_dir():
                bases = bases or read_bases(given.location, folder / "downloads", at_most=_BASES)
                write_images(incoming, bases, project.images, workers=os.cpu_count() or 1)
            for name, command in STEPS.items():
                project.run(name, command)
        print(_table(projects))
        if given.ray:
            print(_score_on_ray(projects[-1]))


if __name__ == "__main__":
    main()
