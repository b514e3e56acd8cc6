"""Images a second with decoding in threads of the program, and in processes that can be killed.

    ./run benchmarks.decoding PROJECT IMAGES [--images 128] [--rounds 4]

PROJECT is a project folder with a champion; IMAGES a folder of image files. Both ways read, decode and prepare the same
bytes, a batch ahead of the exported network, in turn and round by round; ratios are taken within a round. The pixels
are compared first: they are equal bit for bit.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.projects import enter_project
from cxr.common.cli import configure_process
from cxr.imaging.decode import is_image_file
from cxr.inference.classifier import Classifier, load_classifier
from cxr.inference.decoding.decoders import Decoders
from cxr.inference.pipeline import prepared_batches
from cxr.models.forward import BATCH_SIZE
from cxr.registry.versions import fetch_bundle, get_version

Read = Callable[[bytes], NDArray[np.uint8]]


def main() -> None:
    """Read the command line, measure, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--images", type=int, default=128, dest="count")
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    configure_process()
    files = [file for file in sorted(given.images.rglob("*")) if file.is_file() and is_image_file(file)][: given.count]
    data = [file.read_bytes() for file in files]
    enter_project(given.project)
    version = get_version("champion")
    model = load_classifier(fetch_bundle(version), number=version.number, engine="openvino")
    with Decoders(os.cpu_count() or 1, seconds=60) as decoders:
        ways: dict[str, Read] = {
            "threads": partial(model.read, name="image"),
            "processes": lambda one: decoders.model_input(one, model, name="image").pixels,
        }
        if not all(np.array_equal(*(read(one) for read in ways.values())) for one in data):
            raise SystemExit("the pixels differ")
        print(f"{model.engine}; {len(data)} images; load average {os.getloadavg()[0]:.1f}; {given.rounds} rounds\n")
        print("| | threads, images/s | processes, images/s | processes / threads |\n|---|---|---|---|")
        _compare("decoded", ways, data, lambda _: None, given.rounds)
        _compare("answered", ways, data, partial(_answer, model), given.rounds)


def _answer(model: Classifier, batch: list[NDArray[np.uint8]]) -> None:
    model.answer(np.stack(batch))


def _compare(
    title: str,
    ways: dict[str, Read],
    data: list[bytes],
    use: Callable[[list[NDArray[np.uint8]]], None],
    rounds: int,
) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in sorted(ways, reverse=number % 2 == 0):  # neither is always the first
            started = time.perf_counter()
            for batch in prepared_batches(data, ways[name], batch_size=BATCH_SIZE, workers=os.cpu_count() or 1):
                use(batch)
            seconds[name].append(time.perf_counter() - started)
    ratios = [threads / processes for threads, processes in zip(seconds["threads"], seconds["processes"], strict=True)]
    threads, processes = (len(data) / statistics.median(seconds[name]) for name in ("threads", "processes"))
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {title} | {threads:.1f} | {processes:.1f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
