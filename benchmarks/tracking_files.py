"""Seconds that DVC needs for raw images tracked as a tree of files, as packed shards, and as one archive.

Run   ./run benchmarks.tracking_files [--images 6000] [--rounds 3] [--folder /tmp]

Images are 8 KB of random bytes. Each layout has its own repository and store on a real S3 server on loopback. Layouts
alternate in each round. `pack` is the cost before DVC runs: nothing for the tree, which exists already. `change` is
the cost of one replaced image: pack, add and push.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cxr.dataset.shards import SHARD_BYTES, write_shards
from tests.support.services.servers import ACCESS_KEY, SECRET_KEY, serve_s3

IMAGE_BYTES = 8 * 1024
IMAGES_PER_FOLDER = 1000
BUCKET = "images"
CORES = os.cpu_count() or 1
OPERATIONS = ("pack", "add", "status", "push", "pull", "change")

Images = dict[str, bytes]


def plain_tree(images: Images, folder: Path, changed: str | None) -> None:
    """Write each image as a file; in an existing tree, only the changed one."""
    for path in images if changed is None else [changed]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(images[path])


def _packed(images: Images, folder: Path, shard_bytes: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    sizes = {path: len(data) for path, data in images.items()}
    for _ in write_shards(folder, sizes, images.__getitem__, workers=CORES, shard_bytes=shard_bytes):
        pass


def shards(images: Images, folder: Path, _changed: str | None) -> None:
    """Pack the images as ingest does: all of them, even when one has changed."""
    _packed(images, folder, SHARD_BYTES)


def one_archive(images: Images, folder: Path, _changed: str | None) -> None:
    """Pack all images into one zip."""
    _packed(images, folder, len(images) * IMAGE_BYTES)


LAYOUTS: dict[str, Callable[[Images, Path, str | None], None]] = {
    "packed shards": shards,
    "plain tree": plain_tree,
    "one archive": one_archive,
}


class Repository:
    """A git and DVC repository with its own remote."""

    def __init__(self, root: Path, endpoint: str, prefix: str) -> None:
        root.mkdir(parents=True)
        self._root = root
        self.images = root / "images"
        self._environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "DVC_NO_ANALYTICS": "1",
        }
        self._run("git", "init", "--quiet")
        self.dvc("init", "--quiet")
        self.dvc("config", "cache.type", "reflink,copy")
        self.dvc("remote", "add", "--default", "store", f"s3://{BUCKET}/{prefix}")

    def dvc(self, *arguments: str) -> None:
        """Run DVC here."""
        self._run(sys.executable, "-m", "dvc", *arguments)

    def forget(self) -> None:
        """Delete images and cache, as on another machine."""
        shutil.rmtree(self.images)
        shutil.rmtree(self._root / ".dvc" / "cache")

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=self._root, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-1000:]}")


def measure(name: str, images: Images, repository: Repository) -> dict[str, float]:
    """Return the seconds of each operation."""
    write = LAYOUTS[name]
    seconds = {}

    def timed(operation: str, *steps: Callable[[], object]) -> None:
        started = time.perf_counter()
        for step in steps:
            step()
        seconds[operation] = time.perf_counter() - started
        print(f"  {name}: {operation} {seconds[operation]:.1f} s", flush=True)

    def add() -> None:
        repository.dvc("add", "--quiet", "images")

    def push() -> None:
        repository.dvc("push", "--quiet")

    timed("pack", lambda: write(images, repository.images, None))
    timed("add", add)
    timed("status", lambda: repository.dvc("status", "--quiet"))
    timed("push", push)
    repository.forget()
    timed("pull", lambda: repository.dvc("pull", "--quiet"))
    changed = sorted(images)[len(images) // 2]
    replaced = images | {changed: images[changed][::-1]}
    timed("change", lambda: write(replaced, repository.images, changed), add, push)
    return seconds


def main() -> None:
    """Measure the layouts alternately, round by round; print medians and their ratio to the shards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for repositories and store (the system's temporary folder)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(2023)
    images = {
        f"{row // IMAGES_PER_FOLDER:03d}/{row:06d}.jpeg": rng.bytes(IMAGE_BYTES) for row in range(arguments.images)
    }
    seconds_of: dict[str, dict[str, list[float]]] = {name: {step: [] for step in OPERATIONS} for name in LAYOUTS}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        store = Path(scratch) / "store"
        store.mkdir()
        with serve_s3(store, BUCKET) as endpoint:
            for turn in range(arguments.rounds):
                for name in LAYOUTS:
                    root = Path(scratch) / "repository"
                    seconds = measure(name, images, Repository(root, endpoint, f"{turn}-{name.replace(' ', '-')}"))
                    shutil.rmtree(root)
                    for operation, value in seconds.items():
                        seconds_of[name][operation].append(value)
    _print(seconds_of, arguments.images, arguments.rounds)


def _print(seconds_of: dict[str, dict[str, list[float]]], images: int, rounds: int) -> None:
    print(f"{images} images of {IMAGE_BYTES} bytes, {CORES} cores, {rounds} alternating rounds; medians in seconds,")
    print("in brackets the ratio to the packed shards, round by round (smallest to largest)")
    for name, operations in seconds_of.items():
        for operation, values in operations.items():
            base = seconds_of["packed shards"][operation]
            ratios = [value / of_shards for value, of_shards in zip(values, base, strict=True)]
            print(
                f"{name:14s} {operation:7s} {statistics.median(values):8.1f} s   "
                f"{statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
