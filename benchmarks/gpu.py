"""The whole CUDA path in one command: speed and memory of training, repeatability, resume, evaluation, Grad-CAM.

Run   ./run benchmarks.gpu [--images 2048] [--px 112 224] [--compile] [--at-once 15] [--json FILE]

It needs no data set and no weights: the images are noise and the network starts from random weights, which changes no
time. Without a GPU the same command runs on the CPU, with fewer images. Rates are images per second of a ResNet-50.

pure compute     forward, backward and optimizer step of one batch that is already on the device: the floor of a step
our loop         cxr.training.loop.fit, augmentation, moving average and checks of the loss included
share            our loop against pure compute of the same precision, batch and size
N at once        N trainings in as many processes, all together, as tasks.packed.train runs them with --workers N

Published for comparison, both at 224 px with mixed precision: 2,470 images per second on an A100 (NVIDIA
DeepLearningExamples), about 7,000 on an H100 (derived from MLPerf 3.0), both with far larger batches.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cxr.common.errors import TrainingError
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.factory import build
from cxr.models.forward import choose_device, images_to_input, predict_logits
from cxr.models.grad_cam import grad_cam
from cxr.training.data import TrainingData
from cxr.training.loop import fit
from cxr.training.results import Epoch, Listener, Trained

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Barrier

CLASSES = ("normal", "viral", "bacterial")
_TIMED_STEPS = 20
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Rate:
    """One row of the table: what was measured, images per second, and peak memory of the device in MiB."""

    what: str
    px: int
    batch: int
    precision: str
    images_per_second: float
    peak_mib: float


def config(**changes: Any) -> SimpleNamespace:
    """Return a training config in which everything learns, with the attributes of TrainParams.

    It is built without pydantic, so that the benchmark runs where only torch, torchvision and scikit-learn are.
    """
    rates = dict.fromkeys(("head", "layer4", "layer3", "layer2", "layer1", "stem"), 1e-4)
    values = {
        "backbone": "resnet50", "weights": "none", "seed": 1, "epochs": 2, "batch_size": 32, "frozen": [],
        "freeze_batchnorm_statistics": False, "head_only_epochs": 0, "learning_rates": rates, "weight_decay": 0.02,
        "warmup_epochs": 1, "label_smoothing": 0.05, "class_balance": "weights", "ema_decay": 0.99,
        "early_stopping_patience": 0, "rotation_deg": 20, "zoom": [0.9, 1.1], "shift": 0.1, "contrast_jitter": 0.1,
        "brightness_jitter": 0.1, "mirror": 0.0, "gamma_jitter": 0.3, "sharpness_jitter": 0.6, "shading": 0.2,
        "noise": 0.03, "border_wipe": 0.05, "mixup": 0.0, "device": "auto", "precision": "auto", "compile": False,
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


def noise(count: int, px: int) -> TrainingData:
    """Return `count` images of noise with labels in turn; the last 32 are for validation."""
    pixels = np.random.default_rng(1).integers(0, 256, (count, px, px), np.uint8)
    rows = np.arange(count)
    return TrainingData(pixels, rows % len(CLASSES), rows[:-32], rows[-32:], CLASSES)


class _Silent:
    """A listener that only ends the training after `epochs`, as a kill would."""

    def __init__(self, epochs: int = 10**6) -> None:
        self._left = epochs

    def on_batch(self, images: int) -> None:
        """Do nothing."""

    def on_epoch(self, _epoch: Epoch) -> None:
        """Stop when the epochs are used up."""
        self._left -= 1
        if not self._left:
            raise TrainingError("stopped by the benchmark")


def pure_compute(device: torch.device, px: int, batch: int, precision: str, layout: torch.memory_format) -> Rate:
    """Time forward, backward and AdamW on one batch that stays on the device."""
    model = build("resnet50", len(CLASSES)).to(device).train().to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(batch, 3, px, px, device=device).to(memory_format=layout)
    labels = torch.arange(batch, device=device) % len(CLASSES)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            scores = model(images)
        loss = torch.nn.functional.cross_entropy(scores.float(), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    seconds, peak = _timed(device, step)
    name = "channels last" if layout == torch.channels_last else "channels first"
    return Rate(f"pure compute, {name}", px, batch, precision, batch / seconds, peak)


def our_loop(data: TrainingData, batch: int, precision: str, *, compiled: bool) -> Rate:
    """Time the second epoch of `fit`; the first compiles, allocates and selects algorithms."""
    device = choose_device("auto")
    _reset_peak(device)
    trained = train(data, config(batch_size=batch, precision=precision, compile=compiled))
    px = data.images.shape[1]
    what = "our loop, compiled" if compiled else "our loop"
    return Rate(what, px, batch, precision, trained.history[-1].images_per_second, _peak(device))


class _Together:
    """A listener that waits for the other trainings after the first epoch, which compiles, and then reads the clock."""

    def __init__(self, barrier: Barrier) -> None:
        self._barrier, self.started = barrier, 0.0

    def on_batch(self, images: int) -> None:
        """Do nothing."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Wait for the others, once."""
        if epoch.epoch == 1:
            self._barrier.wait()
            self.started = time.perf_counter()


def at_once(count: int, px: int, batch: int, images: int) -> Rate:
    """Time two epochs of `count` trainings at once; the memory is that of one."""
    context = multiprocessing.get_context("spawn")  # a GPU in use does not survive a fork
    barrier, found = context.Barrier(count), context.SimpleQueue()
    arguments = (barrier, found, px, batch, images, max(1, (os.cpu_count() or 1) // count))
    trainings = [context.Process(target=_train_at_once, args=arguments) for _ in range(count)]
    for training in trainings:
        training.start()
    each = [found.get() for _ in trainings]
    for training in trainings:
        training.join()
    trained = 2 * count * len(noise(images, 1).train_rows)
    return Rate(f"our loop, {count} at once", px, batch, "auto", trained / max(s for s, _ in each), each[0][1])


def _train_at_once(
    barrier: Barrier, found: SimpleQueue[tuple[float, float]], px: int, batch: int, images: int, threads: int
) -> None:
    """Put the seconds of two epochs, and the peak memory in MiB, into `found`."""
    torch.set_num_threads(threads)
    listener = _Together(barrier)
    train(noise(images, px), config(batch_size=batch, epochs=3), listener)
    found.put((time.perf_counter() - listener.started, _peak(choose_device("auto"))))


def train(data: TrainingData, settings: SimpleNamespace, listener: Listener | None = None, folder: str = "") -> Trained:
    """Train with checkpoints in `folder`, by default a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        return fit(data, settings, checkpoints=Path(folder or temporary), listener=listener or _Silent())  # type: ignore[arg-type]


def repeatability(data: TrainingData) -> dict[str, float]:
    """Return the largest difference of a weight between two equal trainings, and between one and a resumed one."""
    settings = config()
    first, second = train(data, settings), train(data, settings)
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(data, settings, _Silent(epochs=1), folder)
        except TrainingError:
            resumed = train(data, settings, folder=folder)
    return {"again": _difference(first.state, second.state), "resumed": _difference(first.state, resumed.state)}


def evaluation(device: torch.device, data: TrainingData) -> list[Rate]:
    """Time the fp32 forward pass of an evaluation, and Grad-CAM."""
    model, px = build("resnet50", len(CLASSES)).to(device).eval(), data.images.shape[1]
    normalisation = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    pixels = data.images[:256]
    inputs = images_to_input(pixels[:64], device, **normalisation)
    rates = []
    for what, count, call in (
        ("evaluation", len(pixels), lambda: predict_logits(model, pixels, **normalisation)),
        ("Grad-CAM", len(inputs), lambda: grad_cam(model, inputs, np.zeros(len(inputs), np.int64))),
    ):
        call()
        _synchronise(device)
        _reset_peak(device)
        started = time.perf_counter()
        call()
        _synchronise(device)
        rates.append(Rate(what, px, 0, "fp32", count / (time.perf_counter() - started), _peak(device)))
    return rates


def _timed(device: torch.device, step: Callable[[], None]) -> tuple[float, float]:
    """Return the mean seconds of a step after a warm-up, and the peak memory in MiB."""
    steps = _TIMED_STEPS if device.type == "cuda" else 2
    for _ in range(_WARM_UP_STEPS if device.type == "cuda" else 1):
        step()
    _synchronise(device)
    _reset_peak(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    _synchronise(device)
    return (time.perf_counter() - started) / steps, _peak(device)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def _measure(arguments: argparse.Namespace, device: torch.device) -> list[Rate]:
    rates: list[Rate] = []

    def add(rate: Rate) -> None:
        rates.append(rate)
        print(
            f"{rate.what:30s} {rate.px:4d} px  batch {rate.batch:4d}  {rate.precision}  "
            f"{rate.images_per_second:8.0f} images/s  {rate.peak_mib:7.0f} MiB",
            flush=True,
        )

    for px in arguments.px:
        data = noise(arguments.images, px)
        for batch in arguments.batch:
            for precision in ("fp32", "bf16"):
                for layout in (torch.contiguous_format, torch.channels_last):
                    add(pure_compute(device, px, batch, precision, layout))
            add(our_loop(data, batch, "bf16", compiled=False))
            if arguments.compile:
                add(our_loop(data, batch, "bf16", compiled=True))
            for count in arguments.at_once:
                add(at_once(count, px, batch, arguments.images))
        for rate in evaluation(device, data):
            add(rate)
    return rates


def main() -> None:
    """Measure everything; print it line by line and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="images of noise; 2048 on a GPU, 96 on a CPU")
    parser.add_argument("--px", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--batch", type=int, nargs="+", help="32 and 256 on a GPU, 32 on a CPU")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which takes a minute")
    parser.add_argument("--at-once", type=int, nargs="+", default=[], metavar="N", help="also N trainings at once")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    device = choose_device("auto")
    on_gpu = device.type == "cuda"
    arguments.images = arguments.images or (2048 if on_gpu else 96)
    arguments.batch = arguments.batch or ([32, 256] if on_gpu else [32])
    name = torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}, torch {torch.__version__}", flush=True)
    rates = _measure(arguments, device)
    repeated = repeatability(noise(arguments.images // 4 if on_gpu else 64, arguments.px[0]))
    print(f"largest difference of a weight: trained again {repeated['again']:.2g}, resumed {repeated['resumed']:.2g}")
    if arguments.json:
        found = {"device": name, "rates": [asdict(rate) for rate in rates], "largest_difference": repeated}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
