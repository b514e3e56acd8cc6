"""Does self-supervised pre-training on X-rays hold better on images of another time than a start from ImageNet?

Run   ./run benchmarks.self_supervised TRAINING_FOLDER --seeds 1 2 3 --epochs 60 --batch 512 --output FOLDER

TRAINING_FOLDER is a packed training (cxr.training.packed); its own outputs are those of the start it is compared with.
Only torch, torchvision, timm, scikit-learn and numpy are needed, so it runs on a rented GPU.

pre-training     SimCLR (Chen et al. 2020) from the weights of the training: two random views of an image shall be more
                 alike than views of different images. It sees training and validation images, never the test's, and
                 no labels. All of the network learns; batch norm uses the statistics of the batch.
fine-tuning      for each seed the training as it is packed, from the pre-trained weights in place of its own
images/s         images of the pre-training; the network sees twice as many, two views of each

OUTPUT gets pretrained.pth (torchvision's names, no head), and for each seed a folder pretrained-SEED with the outputs
for validation and test images, to be compared with those of the same training from its own weights.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional

from cxr.common.errors import DataError, TrainingError
from cxr.common.on_disk import take
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.factory import build, check_image_size, head_of, load_weights, set_head
from cxr.models.forward import choose_device
from cxr.training.augmentation import Augmentation, Draws, augment, draw
from cxr.training.data import TrainingData
from cxr.training.loop import choose_precision
from cxr.training.optimizer import set_learning_rates, warm_cosine
from cxr.training.results import Epoch

if TYPE_CHECKING:
    from cxr.training.packed import PackedTraining

VIEWS = Augmentation(
    rotation_deg=20,
    zoom=(0.9, 1.6),  # the strongest crop keeps 39% of the image: less could leave out what the label is about
    shift=0.15,
    contrast_jitter=0.4,
    brightness_jitter=0.4,
    mirror=0.0,  # the heart's side is anatomy, and fine-tuning does not mirror either
    gamma_jitter=0.4,
    sharpness_jitter=1.0,
    shading=0.3,
    noise=0.04,
    border_wipe=0.1,  # borders and burnt-in marks tell images apart without a look at the lungs
)
"""The views are as different as images of other devices, so that what views share is not the style of a time."""

TEMPERATURE = 0.2
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4
_PROJECTION = (512, 128)
_WARM_UP = 0.1  # share of the steps


@dataclass(frozen=True)
class Pretrained:
    """Backbone weights without the head, the mean loss of each epoch in nats, and how the pre-training ended."""

    state: dict[str, Tensor]
    losses: tuple[float, ...]
    note: str


def nt_xent(projections: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the mean loss, in nats, of telling a view's partner from all other views of the batch.

    Args:
        projections: (2B, D), first views of B images, then second views in the same order.
        temperature: divides the cosine similarities.
    """
    unit = functional.normalize(projections.float(), dim=1)
    similarity = (unit @ unit.T / temperature).fill_diagonal_(-math.inf)  # no view is its own partner
    partner = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
    return functional.cross_entropy(similarity, partner)


def pretrain(
    data: TrainingData,
    rows: NDArray[np.int64],
    config: SimpleNamespace,
    *,
    epochs: int,
    batch: int,
    minutes: float = math.inf,
    views: Augmentation = VIEWS,
) -> Pretrained:
    """Pre-train the network of `config` from its weights on the images `rows`, without labels; print each epoch.

    Args:
        data: images; those of other rows are not read.
        rows: images to learn from.
        config: backbone, weights, seed, device and precision of a training; the rest is not used.
        epochs: passes over the images.
        batch: images in a step, about.
        minutes: after them no further epoch starts.
        views: how the two views of an image are drawn.

    Raises:
        DataError: there are fewer than two images.
        TrainingError: the loss is not finite.
    """
    if len(rows) < 2:
        raise DataError(f"pre-training tells images apart and needs at least 2, got {len(rows)}")
    check_image_size(config.backbone, data.images.shape[1])
    training, started = _Pretraining(data, rows, config, views, total_epochs=epochs, batch=batch), time.perf_counter()
    losses: list[float] = []
    while len(losses) < epochs and (not losses or time.perf_counter() - started < minutes * 60):
        before = time.perf_counter()
        losses.append(training.run_epoch(len(losses)))
        rate = len(rows) / (time.perf_counter() - before)
        print(f"epoch {len(losses):3d} of {epochs}  loss {losses[-1]:.4f}  {rate:8.0f} images/s", flush=True)
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"the loss is {losses[-1]} in epoch {len(losses)}; set train.precision to fp32")
    note = f"all {epochs} epochs"
    if len(losses) < epochs:
        note = (
            f"stopped after {len(losses)} of {epochs} epochs because of --minutes {minutes:g}; this cut the cosine "
            f"schedule short, at a learning rate of {training.optimizer.param_groups[0]['lr']:.2g}"
        )
    return Pretrained(training.backbone_state(), tuple(losses), note)


class _Pretraining:
    """Network, optimizer and images of a pre-training, all on the device.

    What is random in an epoch is drawn on the host before it and sent at once, so that a step does not wait for the
    device.
    """

    def __init__(
        self,
        data: TrainingData,
        rows: NDArray[np.int64],
        config: SimpleNamespace,
        views: Augmentation,
        *,
        total_epochs: int,
        batch: int,
    ) -> None:
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        self.seed, self.views = config.seed, views
        self.steps = max(1, round(len(rows) / batch))
        self.total_steps = total_epochs * self.steps
        torch.manual_seed(config.seed)  # random weights, at least those of the projection
        self.network = build(config.backbone, 1)
        load_weights(self.network, config.weights)
        head = head_of(self.network)
        self._head_name = next(name for name, module in self.network.named_modules() if module is head)
        n_features = next(head.parameters()).shape[1]
        hidden, out = _PROJECTION
        set_head(self.network, nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, out)))
        self.network.to(self.device).train()
        self.optimizer = _optimizer(self.network)
        self._pixels = torch.from_numpy(take(data.images, rows)).to(self.device)
        self._mean = torch.tensor(IMAGENET_MEAN, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=self.device).view(1, 3, 1, 1)

    def run_epoch(self, number: int) -> float:
        """Learn from every image once in epoch `number` (from 0); return the mean loss, in nats."""
        seed, count = self.seed * 100_003 + number, len(self._pixels)
        torch.manual_seed(seed)  # dropout, in networks that have it
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator).to(self.device, non_blocking=True)
        draws = _sent(draw(2 * count, self.views, generator), self.device)
        total = torch.zeros((), device=self.device)
        # Batches of nearly equal size: in a small last one, partners would be easy to tell.
        for index, places in enumerate(torch.arange(count, device=self.device).tensor_split(self.steps)):
            step, warmup_steps = number * self.steps + index, _WARM_UP * self.total_steps
            factor = warm_cosine(step, warmup_steps=warmup_steps, total_steps=self.total_steps)
            set_learning_rates(self.optimizer, factor)
            # The draws of an epoch share the noise's seed; each step has its own.
            own = replace(draws.of(torch.cat((places, places + count))), seed=draws.seed + index)
            total += self._step(order[places], own) * len(places)
        return float(total) / count

    def _step(self, places: Tensor, draws: Draws) -> Tensor:
        """Run one optimizer step on the images at `places`, with draws for their first, then second views."""
        images = self._pixels[places].float() / 255
        views = augment(torch.cat((images, images)), self.views, draws)
        # As `to_input` does, but with mean and deviation that are on the device already.
        inputs = ((views - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            projections = self.network(inputs)
        loss = nt_xent(projections)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def backbone_state(self) -> dict[str, Tensor]:
        """Return all tensors but those of the projection, on the CPU."""
        state = self.network.state_dict()
        return {name: value.cpu() for name, value in state.items() if not name.startswith(f"{self._head_name}.")}


def _sent(draws: Draws, device: torch.device) -> Draws:
    """Return `draws` on `device`; `augment` then has none of them to send."""
    uniform, mirrored, style = (
        value.to(device, non_blocking=True) for value in (draws.uniform, draws.mirrored, draws.style)
    )
    return Draws(uniform, mirrored, style, draws.seed)


def _optimizer(network: nn.Module) -> torch.optim.AdamW:
    """Return AdamW on all of the network, with no weight decay on biases and norms."""
    matrices = [value for value in network.parameters() if value.ndim > 1]
    vectors = [value for value in network.parameters() if value.ndim <= 1]
    groups = [
        {"params": matrices, "base_lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "base_lr": LEARNING_RATE, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)


def write(pretrained: Pretrained, path: Path) -> None:
    """Write the weights; a killed process leaves no part of a file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(pretrained.state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


@dataclass(frozen=True)
class _Printed:
    """A listener that prints each epoch of a training."""

    seed: int

    def on_batch(self, images: int) -> None:
        """Do nothing."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Print the epoch."""
        f1 = epoch.validation_macro_f1
        print(f"seed {self.seed}  epoch {epoch.epoch:3d}  loss {epoch.train_loss:.4f}  macro-F1 {f1:.4f}", flush=True)


def validation_macro_f1(data: TrainingData, logits: NDArray[np.float32]) -> float:
    """Return macro-F1 of uncalibrated logits (V, C) of the validation images, all members together."""
    actual, classes = data.class_of(data.labels[data.validation_rows]), range(len(data.classes))
    weights, predicted = data.validation_weights(), logits.argmax(axis=1)
    return float(f1_score(actual, predicted, average="macro", labels=classes, zero_division=0.0, sample_weight=weights))


def learning_rows(training: PackedTraining) -> NDArray[np.int64]:
    """Return the training and validation rows; raise DataError if a test image is among them."""
    rows = np.concatenate((training.data.train_rows, training.data.validation_rows))
    common = len(np.intersect1d(rows, training.test_rows))
    if common:
        raise DataError(f"{common} test images are also for training or validation; pack the training again")
    return rows


def main() -> None:
    """Pre-train once, then run the packed training from the result for each seed."""
    from cxr.training.packed import OUTPUTS_FILE, fit_and_predict, is_done, read_training

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path, metavar="TRAINING_FOLDER", help="a packed training")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[1, 2, 3],
        help="the first also pre-trains; members count up from it, so leave as many between two seeds",
    )
    parser.add_argument("--epochs", type=int, default=60, help="of the pre-training (%(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="images in a step of the pre-training (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="no epoch of the pre-training starts after them"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args()
    training = read_training(given.training)
    rows, config = learning_rows(training), SimpleNamespace(**vars(training.config) | {"seed": given.seeds[0]})
    weights = given.output / "pretrained.pth"
    if weights.exists():  # seeds that are done there came from them
        print(f"{weights} is there already: no pre-training; name another --output for a new one", flush=True)
    else:
        print(f"pre-training of {config.backbone} on {len(rows)} images from weights {config.weights}", flush=True)
        done = pretrain(training.data, rows, config, epochs=given.epochs, batch=given.batch, minutes=given.minutes)
        print(f"pre-training: {done.note}", flush=True)
        write(done, weights)
    folders = {seed: given.output / f"pretrained-{seed}" for seed in given.seeds}
    for seed, folder in folders.items():
        if not is_done(folder, given.training):
            changes = {"weights": str(weights), "seed": seed}
            tuned = replace(training, config=SimpleNamespace(**vars(training.config) | changes))
            fit_and_predict(tuned, folder, _Printed(seed))
    for seed, folder in folders.items():
        with np.load(folder / OUTPUTS_FILE) as outputs:
            print(f"seed {seed}  validation macro-F1 {validation_macro_f1(training.data, outputs['validation']):.4f}")


if __name__ == "__main__":
    main()
