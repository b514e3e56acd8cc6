"""Training speed in images per second: our loop against torchvision's reference loop, same images, same network.

Run   ./run benchmarks.training FOLDER [--rounds 3] [--images 96] [--px 224]

The peer is the loop of torchvision's references/classification as it runs on a CPU: Pillow decodes the files in a
DataLoader with two workers, torchvision transforms do the same augmentation, and SGD trains all parameters in fp32.
It runs once as it is, and once in a process that keeps freed memory as ours do. Our loop runs with all parameters
learning, and with one network as profiles/real.yaml configures it (stem and layer 1 frozen, batch-norm statistics
kept). Each round measures all of them in turn on the same images, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet50
from torchvision.transforms import v2

from cxr.common.params import TrainParams, with_overrides
from cxr.imaging.decode import SUFFIXES, image_from_bytes
from cxr.imaging.preprocess import Preprocessing
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.factory import build
from cxr.models.freed_memory import keep_freed_memory
from cxr.training.data import TrainingData
from cxr.training.loop import fit
from cxr.training.results import Epoch
from tasks.configure import read_profile

BATCH = 32
CLASSES = ("normal", "viral", "bacterial")
WARM_UP_BATCHES = 1


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files as torchvision's reference reads them: one at a time, by Pillow, then transformed."""

    def __init__(self, images: list[Path], size_px: int) -> None:
        self._images = images
        self._transform = v2.Compose(
            [
                v2.RandomAffine(20, translate=(0.1, 0.1), scale=(0.9, 1.1)),
                v2.Resize((size_px, size_px), antialias=True),
                v2.PILToTensor(),
                v2.ToDtype(torch.float, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self._images[index]) as image:
            return self._transform(image.convert("RGB")), index % len(CLASSES)


class _Clock:
    """Images per second after the warm-up batches."""

    def __init__(self) -> None:
        self._batches = self._images = 0
        self._started = 0.0

    def on_batch(self, images: int) -> None:
        """Count a batch; the clock starts after the warm-up."""
        self._batches += 1
        if self._batches == WARM_UP_BATCHES:
            self._started = time.perf_counter()
        elif self._batches > WARM_UP_BATCHES:
            self._images += images
            self._stopped = time.perf_counter()

    def on_epoch(self, epoch: Epoch) -> None:
        """Do nothing: validation is not timed."""

    @property
    def images_per_second(self) -> float:
        """Return the rate."""
        return self._images / (self._stopped - self._started)


def reference(images: list[Path], size_px: int) -> float:
    """Return the images per second of torchvision's loop."""
    model = resnet50(weights=None, num_classes=len(CLASSES)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    clock = _Clock()
    for pixels, targets in _loader(images, size_px):
        loss = criterion(model(pixels), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.on_batch(len(pixels))
    return clock.images_per_second


def _loader(images: list[Path], size_px: int) -> Iterator[Any]:
    yield from DataLoader(ImageFiles(images, size_px), batch_size=BATCH, shuffle=True, num_workers=2)


def reference_with_kept_memory(images: list[Path], size_px: int) -> float:
    """Return the images per second of torchvision's loop where the process keeps freed memory, as ours does."""
    keep_freed_memory()
    return reference(images, size_px)


def all_parameters_learn(images: list[Path], size_px: int) -> float:
    """Return the images per second of our loop when nothing is frozen."""
    return _ours(images, size_px, frozen=[], freeze_batchnorm_statistics=False)


def as_in_the_real_profile(images: list[Path], size_px: int) -> float:
    """Return the images per second of our loop with one network as profiles/real.yaml configures it."""
    return _ours(images, size_px)


def _ours(images: list[Path], size_px: int, **changes: Any) -> float:
    """Return the images per second of cxr.training.loop without checkpoints and validation."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        # Frozen parts must be loaded from a file; the values do not change the time.
        weights = Path(folder) / "random.pth"
        torch.save(build("resnet50", len(CLASSES)).state_dict(), weights)
        fit(_data(images, size_px), _config(weights, **changes), checkpoints=Path(folder), listener=clock)
    return clock.images_per_second


def _config(weights: Path, **changes: Any) -> TrainParams:
    profile = with_overrides(Path("params.yaml"), read_profile(Path("profiles/real.yaml"))).train
    # These few images have no order of acquisition, and so no late ones with an output of their own.
    plain = {"populations": [], "members": 1, "weights": str(weights), "epochs": 1, "batch_size": BATCH}
    return TrainParams.model_validate(profile.model_dump() | plain | {"device": "cpu"} | changes)


def _data(images: list[Path], size_px: int) -> TrainingData:
    preprocessing = Preprocessing(size_px, "stretch", "clahe", 2.0, 8, 50_000_000)
    pixels = np.stack([image_from_bytes(image.read_bytes(), preprocessing, name=image.name) for image in images])
    rows = np.arange(len(images))
    return TrainingData(pixels, rows % len(CLASSES), rows, rows[:4], CLASSES)


CONTESTANTS: dict[str, Callable[[list[Path], int], float]] = {
    "torchvision reference loop, fp32": reference,
    "the same, freed memory kept": reference_with_kept_memory,
    "ours, all parameters learn": all_parameters_learn,
    "ours, config of profiles/real.yaml": as_in_the_real_profile,
}


def main() -> None:
    """Measure all contestants in turn, round by round; print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--px", type=int, default=224)
    arguments = parser.parse_args()
    found = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    images = found[:: max(1, len(found) // arguments.images)][: arguments.images]
    speeds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as alone:
        for _ in range(arguments.rounds):
            for name, run in CONTESTANTS.items():
                speeds[name].append(alone.submit(run, images, arguments.px).result())
    print(f"{len(images)} images of {arguments.px} px, batch {BATCH}, {os.cpu_count()} cores; medians")
    _print_table(speeds)


def _print_table(speeds: dict[str, list[float]]) -> None:
    peer = next(iter(speeds.values()))
    for name, measured in speeds.items():
        ratios = [now / peer_now for now, peer_now in zip(measured, peer, strict=True)]
        print(
            f"{name:36s} {statistics.median(measured):6.1f} images/s   against torchvision "
            f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
