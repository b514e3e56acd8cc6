"""Training speed in images per second: our loop against torchvision's reference loop, same images, same network.

Run   ./run benchmarks.training FOLDER [--rounds 3] [--images 96]

The peer is the loop of torchvision's references/classification as it runs on a CPU: Pillow decodes the files in a
DataLoader with two workers, torchvision transforms do the same augmentation, and SGD trains all parameters in fp32.
Our loop is measured twice: with all parameters learning, and with the config of profiles/real.yaml (stem and layer 1
frozen, batch-norm statistics kept). Each round measures all of them in turn on the same images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet50
from torchvision.transforms import v2

from cxr.common.params import TrainParams, read_params
from cxr.imaging.decode import SUFFIXES, image_from_bytes
from cxr.imaging.preprocess import Preprocessing
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.factory import build
from cxr.training.data import TrainingData
from cxr.training.loop import fit
from cxr.training.results import Epoch

SIZE_PX = 224
BATCH = 32
CLASSES = ("normal", "viral", "bacterial")
WARM_UP_BATCHES = 1


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files as torchvision's reference reads them: one at a time, by Pillow, then transformed."""

    def __init__(self, images: list[Path]) -> None:
        self._images = images
        self._transform = v2.Compose(
            [
                v2.RandomAffine(20, translate=(0.1, 0.1), scale=(0.9, 1.1)),
                v2.Resize((SIZE_PX, SIZE_PX), antialias=True),
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


def reference(images: list[Path]) -> float:
    """Return the images per second of torchvision's loop."""
    model = resnet50(weights=None, num_classes=len(CLASSES)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    clock = _Clock()
    for pixels, targets in _loader(images):
        loss = criterion(model(pixels), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.on_batch(len(pixels))
    return clock.images_per_second


def _loader(images: list[Path]) -> Iterator[Any]:
    yield from DataLoader(ImageFiles(images), batch_size=BATCH, shuffle=True, num_workers=2)


def ours(data: TrainingData, config: TrainParams) -> float:
    """Return the images per second of cxr.training.loop without checkpoints and validation."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        fit(data, config, checkpoints=Path(folder), listener=clock)
    return clock.images_per_second


def _config(weights: Path, **changes: Any) -> TrainParams:
    plain = {"weights": str(weights), "epochs": 1, "batch_size": BATCH, "head_only_epochs": 0, "device": "cpu"}
    return TrainParams.model_validate(read_params(Path("params.yaml")).train.model_dump() | plain | changes)


def _data(images: list[Path]) -> TrainingData:
    preprocessing = Preprocessing(SIZE_PX, "stretch", "clahe", 2.0, 8, 50_000_000)
    pixels = np.stack([image_from_bytes(image.read_bytes(), preprocessing, name=image.name) for image in images])
    rows = np.arange(len(images))
    return TrainingData(pixels, rows % len(CLASSES), rows, rows[:4], CLASSES)


def main() -> None:
    """Measure all contestants in turn, round by round; print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=96)
    arguments = parser.parse_args()
    found = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    images = found[:: max(1, len(found) // arguments.images)][: arguments.images]
    data = _data(images)
    with tempfile.TemporaryDirectory() as folder:
        # Frozen parts must be loaded from a file; the values do not change the time.
        weights = Path(folder) / "random.pth"
        torch.save(build("resnet50", len(CLASSES)).state_dict(), weights)
        _compare(images, data, weights, arguments.rounds)


def _compare(images: list[Path], data: TrainingData, weights: Path, rounds: int) -> None:
    config = _config(weights, frozen=["stem", "layer1"], freeze_batchnorm_statistics=True)
    contestants: dict[str, Callable[[], float]] = {
        "torchvision reference loop, fp32": lambda: reference(images),
        "ours, all parameters learn": lambda: ours(data, _config(weights)),
        "ours, config of profiles/real.yaml": lambda: ours(data, config),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            speeds[name].append(run())
    peer = next(iter(speeds.values()))
    print(
        f"{len(images)} images of {SIZE_PX} px, batch {BATCH}, {os.cpu_count()} cores, {rounds} rounds in turn; medians"
    )
    for name, measured in speeds.items():
        ratios = [now / peer_now for now, peer_now in zip(measured, peer, strict=True)]
        print(
            f"{name:36s} {statistics.median(measured):6.1f} images/s   against torchvision "
            f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
