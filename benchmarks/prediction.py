"""Images answered a second: by the exported network, by torch, by an eager fp32 loop, and by MLflow's server.

    ./run benchmarks.prediction PROJECT IMAGES [--rounds 5] [--sizes 1 16 32 96]

PROJECT is a project folder with a champion (its store, its cache); IMAGES a folder of image files. All
contestants answer the same images with the same network in turn, round by round. Ratios are taken within a round and
shown with the smallest and the largest. `network` starts from prepared images, `file` from a file's bytes. Processor
time is that of this process, which a busy machine changes less than the clock; it leaves out MLflow's server.

The eager loop is plain torch code: the network in its usual memory layout, fp32, batches of any size.
"""

import argparse
import copy
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.mlflow_served import served
from benchmarks.projects import enter_project
from cxr.common.cli import configure_process
from cxr.imaging.decode import is_image_file
from cxr.inference.classifier import Classifier, load_classifier
from cxr.inference.pipeline import prepared_batches
from cxr.models.forward import BATCH_SIZE
from cxr.registry.versions import fetch_bundle, get_version

Contest = dict[str, Callable[[], object]]

_EAGER_BATCH = 32  # images at most that the loop computes together


def main() -> None:
    """Read the command line, measure, print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 32, 96])
    parser.add_argument("--no-server", action="store_true", help="leave MLflow's server out")
    given = parser.parse_args()
    configure_process()
    files = [file.resolve() for file in sorted(given.images.rglob("*")) if file.is_file() and is_image_file(file)]
    enter_project(given.project)
    version = get_version("champion")
    bundle = fetch_bundle(version)
    exported = load_classifier(bundle, number=version.number, engine="openvino")
    plain = load_classifier(bundle, number=version.number)
    print(f"{exported.engine}; load average {os.getloadavg()[0]:.1f}; {given.rounds} rounds\n")
    with served(version.number, on=not given.no_server) as ask_server:
        for size in given.sizes:
            data = [file.read_bytes() for file in files[:size]]
            images = np.stack([plain.read(one, name="image") for one in data])
            _compare(f"network alone, {size} a time", _networks(exported, plain, images), size, given.rounds)
            whole = _whole(exported, plain, data)
            if ask_server is not None:
                whole["mlflow models serve (HTTP)"] = lambda data=data: ask_server(data)
            _compare(f"file to answer, {size} a time", whole, size, given.rounds)
    _cold_starts(files[0], given.rounds)


def _networks(exported: Classifier, plain: Classifier, images: NDArray[np.uint8]) -> Contest:
    eager = _eager(plain)
    return {
        f"ours, {exported.engine}": lambda: exported.answer(images),
        "ours, torch": lambda: plain.answer(images),
        "eager fp32 torch": lambda: eager(images),
    }


def _whole(exported: Classifier, plain: Classifier, data: list[bytes]) -> Contest:
    """Ours reads ahead in threads, as `predict` and `score` do; the loop reads, then computes."""
    eager = _eager(plain)

    def ours(model: Classifier) -> object:
        read = partial(model.read, name="image")
        batches = prepared_batches(data, read, batch_size=BATCH_SIZE, workers=os.cpu_count() or 1)
        return [model.answer(np.stack(batch)) for batch in batches]

    def loop() -> object:
        batches = [data[start : start + _EAGER_BATCH] for start in range(0, len(data), _EAGER_BATCH)]
        return [eager(np.stack([plain.read(one, name="image") for one in batch])) for batch in batches]

    return {
        f"ours, {exported.engine}": lambda: ours(exported),
        "ours, torch": lambda: ours(plain),
        "eager fp32 torch": loop,
    }


def _eager(model: Classifier) -> Callable[[NDArray[np.uint8]], object]:
    network = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.spec.mean, model.spec.std))

    def answer(images: NDArray[np.uint8]) -> object:
        with torch.inference_mode():
            return torch.softmax(network((torch.from_numpy(images)[:, None] / 255 - mean) / std), dim=1).numpy()

    return answer


def _compare(title: str, contest: Contest, images: int, rounds: int) -> None:
    """Print the images a second and the processor time of each, and the ratios of the first to it, round by round."""
    for ask in contest.values():
        ask()
    wall: dict[str, list[float]] = {name: [] for name in contest}
    processor: dict[str, list[float]] = {name: [] for name in contest}
    for _ in range(rounds):
        for name, ask in contest.items():
            started, used = time.perf_counter(), _processor_seconds()
            ask()
            wall[name].append(time.perf_counter() - started)
            processor[name].append(_processor_seconds() - used)
    first = next(iter(contest))
    print(f"| {title} | images/s | the first against it | processor ms an image | the first against it |")
    print("|---|---|---|---|---|")
    for name in contest:
        speed = images / statistics.median(wall[name])
        cost = 1000 * statistics.median(processor[name]) / images
        print(
            f"| {name} | {speed:.2f} | {_spread(wall[name], wall[first])} | {cost:.1f} | "
            f"{_spread(processor[name], processor[first])} |",
            flush=True,
        )
    print()


def _processor_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _spread(theirs: list[float], ours: list[float]) -> str:
    ratios = [other / mine for other, mine in zip(theirs, ours, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _cold_starts(image: Path, rounds: int) -> None:
    """Print the seconds from the command to its first answer."""
    command = [sys.executable, "-m", "tasks.predict", "--json", str(image)]
    contest: Contest = {
        name: lambda extra=extra: subprocess.run([*command, *extra], check=True, capture_output=True)
        for name, extra in (("tasks.predict --engine openvino", ["--engine", "openvino"]), ("tasks.predict", []))
    }
    _compare("command to answer", contest, 1, rounds)


if __name__ == "__main__":
    main()
