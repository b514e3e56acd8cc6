"""A year of nightly runs: what 1,000 versions and 1,000,000 scored images cost each command.

Run   ./run benchmarks.long_life [--versions 1000] [--rows 1000000] [--nights 365] [--postgresql | --keep FOLDER]

Makes a project with a real MLflow store, on sqlite or PostgreSQL: versions as `register` and `promote` write them, half
of them champions once, a DVC cache with the objects of each, and the parts that scoring leaves
(tests/support/projects/grown_*).
Each command then runs alone, in a process of its own: seconds of the wall clock and of the processor, peak memory. The
pages are requests to MLflow's own server. `--keep` makes the project in FOLDER and leaves it there, or measures the one
that is there already.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import sqlalchemy

from benchmarks.processes import measure
from cxr.common.params import override
from cxr.registry import tracking_store
from cxr.registry.stored_names import MODEL
from cxr.registry.versions import Version
from tests.support.project import PROJECT
from tests.support.projects.clones import make_clone
from tests.support.projects.grown_scores import write_scores
from tests.support.projects.grown_store import grow, register_one
from tests.support.projects.tiny_model import write_image
from tests.support.services.mlflow_server import serve_mlflow
from tests.support.services.prefect_servers import clean_environment
from tests.support.services.team import serve_team

LOCATION, IMAGES = "incoming", 40
NEW_IMAGES = 20
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "doctor": ("flows.doctor",),
    "history": ("tasks.history",),
    "monitor": ("tasks.monitor",),
    f"score: {NEW_IMAGES} of {IMAGES} images are new": ("tasks.score", LOCATION),
    "clean --dry-run": ("tasks.clean", "--dry-run"),
    "promote --dry-run": ("tasks.promote", "--dry-run"),
    "promote": ("tasks.promote", "--approve-held", "--approved-by", "ann", "--reason", "measured again"),
    "rollback": ("tasks.rollback",),
}
PAGES = {
    "page of the model: first 25 versions": ("model-versions/search", {"max_results": "25"}),
    "page of the model: its tags and aliases": ("registered-models/get", {"name": MODEL}),
    "page of the runs: first 100": ("runs/search", {"experiment_ids": ["1"], "max_results": 100}),
}
LIMIT_S = 3600
CODES = {0, 1, 11}
"""The doctor has something to say; a version that was rolled back before is held."""
FOLDERS = ("mlruns/mlflow.db", "mlruns/artifacts", "data/scores", ".dvc/cache")


@contextmanager
def _store(folder: Path, *, postgresql: bool) -> Iterator[dict[str, str]]:
    """Yield the variables that lead to the store."""
    local = {tracking_store.FOLDER_VARIABLE: str(folder / "mlruns")}
    if not postgresql:
        yield local
        return
    with serve_team(only=("postgresql",)) as team:
        yield local | {tracking_store.STORE_VARIABLE: team.database("mlflow", driver="pg8000")}


def _make(folder: Path, *, versions: int, rows: int, nights: int) -> None:
    """Make the project in the current directory."""
    register_one(1)
    grow(register_one(2), until=versions - 2, days=nights)
    champion = register_one(versions - 1, network=True)
    register_one(versions, network=True, judge=False)
    for number in range(IMAGES):
        write_image(folder / LOCATION / f"{number}.png", seed=number)
    write_scores(folder / "data/scores", champion, location="earlier", rows=rows, nights=nights)
    _score_half(folder, champion)


def _score_half(folder: Path, champion: Version) -> None:
    """Score all but NEW_IMAGES of the images, as the night before did."""
    later = sorted((folder / LOCATION).iterdir())[-NEW_IMAGES:]
    for image in later:
        image.rename(folder / f"later-{image.name}")
    subprocess.run([sys.executable, "-m", "tasks.score", LOCATION, "--model", champion.number], check=True)
    for image in later:
        (folder / f"later-{image.name}").rename(image)


def _measure_pages(folder: Path) -> None:
    """Ask MLflow's server for what its pages show."""
    with (
        serve_mlflow(folder / "mlruns", store=tracking_store.tracking_uri()) as address,
        httpx.Client(base_url=address, timeout=LIMIT_S) as client,
    ):
        for name, (path, query) in PAGES.items():
            method = "POST" if path == "runs/search" else "GET"
            given = {"json": query} if method == "POST" else {"params": query}
            times = []
            for _ in range(3):
                started = time.perf_counter()
                answer = client.request(method, f"/api/2.0/mlflow/{path}", **given)  # type: ignore[arg-type]
                answer.raise_for_status()
                times.append(time.perf_counter() - started)
            print(f"| {name} | {sorted(times)[1]:.2f} | | | {len(answer.content) / 1e6:.2f} MB |", flush=True)


def _print_sizes(folder: Path) -> None:
    """Print what each store takes; hard links count once."""
    if tracking_store.tracking_uri().startswith("postgresql"):
        engine = sqlalchemy.create_engine(tracking_store.tracking_uri())
        with engine.connect() as connection:
            size = connection.execute(sqlalchemy.text("SELECT pg_database_size(current_database())")).scalar_one()
        print(f"PostgreSQL: {size / 1e6:.0f} MB", flush=True)
    for name in FOLDERS:
        if (folder / name).exists():
            done = subprocess.run(["du", "-sm", str(folder / name)], capture_output=True, text=True, check=True)
            print(f"{name}: {done.stdout.split()[0]} MB", flush=True)


def main() -> None:
    """Read the command line, make the project or take the one that is there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--nights", type=int, default=365, help="(%(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--postgresql", action="store_true", help="MLflow's tables in PostgreSQL in place of sqlite")
    where.add_argument("--keep", metavar="FOLDER", type=Path, help="where the project is made and left")
    parser.add_argument("--only", metavar="NAME", default="", help="measure the commands whose name begins so")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        is_made = (folder / "data/scores").is_dir()
        if not is_made:
            make_clone(folder)
        for name in ("cxr", "flows", "tasks"):  # what is measured is this checkout's code
            shutil.copytree(PROJECT / name, folder / name, dirs_exist_ok=True)
        variables = stack.enter_context(_store(folder.resolve(), postgresql=given.postgresql))
        os.environ.clear()
        os.environ.update(clean_environment(PYTHONPATH=str(PROJECT), **variables))
        os.chdir(folder)
        if not is_made:
            override(Path("params.yaml"), {"monitor.window_images": 200})
            started = time.perf_counter()
            _make(folder.resolve(), versions=given.versions, rows=given.rows, nights=given.nights)
            print(f"made in {time.perf_counter() - started:.0f} s", flush=True)
        _print_sizes(Path())
        print("| | seconds | processor seconds | peak MiB | |\n|---|---|---|---|---|")
        for name, command in COMMANDS.items():
            if name.startswith(given.only):
                before = set(Path("data/scores").rglob("*.parquet"))
                found = measure(command, output=Path("command.log"), codes=CODES)
                for part in set(Path("data/scores").rglob("*.parquet")) - before:  # so that the next time is like this
                    part.unlink()
                each = f"{found.seconds:.1f} | {found.processor_seconds:.1f} | {found.peak_mib:.0f}"
                print(f"| {name} | {each} | exit code {found.code} |", flush=True)
        if not given.only:
            _measure_pages(Path().resolve())


if __name__ == "__main__":
    main()
