"""A training learns, stops early, resumes bit-identically after a kill, and imports nothing of the platform."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cxr.common.errors import DataError, ParamsError, TrainingError, WeightsError
from cxr.common.params import TrainParams, read_params
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.factory import build
from cxr.models.forward import choose_device, predict_logits, softmax_with_temperature
from cxr.models.populations import Population
from cxr.training.data import TrainingData
from cxr.training.loop import _Training, choose_precision, fit
from cxr.training.results import Epoch, Trained
from cxr.training.sampler import epoch_order
from tests.support.faults import fault
from tests.support.project import PROJECT

CLASSES = ("normal", "viral", "bacterial")
TINY: dict[str, Any] = {
    "backbone": "small_cnn",  # its checkpoint is a twentieth of a ResNet-50's
    "weights": "none",
    "epochs": 2,
    "batch_size": 12,
    "frozen": [],
    "freeze_batchnorm_statistics": False,
    "head_only_epochs": 0,
    "warmup_epochs": 0,
    "early_stopping_patience": 0,
    "device": "cpu",
    "precision": "fp32",
    "compile": False,
}


@dataclass
class Quiet:
    """A listener that interrupts the training, as Ctrl-C does, after `die_after` images."""

    die_after: int = 10**9

    def on_batch(self, images: int) -> None:
        self.die_after -= images
        if self.die_after <= 0:
            raise KeyboardInterrupt

    def on_epoch(self, epoch: Epoch) -> None:
        pass


def config(**changes: Any) -> TrainParams:
    values = read_params(PROJECT / "params.yaml").train.model_dump() | TINY | changes
    return TrainParams.model_validate(values)


def images(per_class: int = 16, size: int = 32) -> TrainingData:
    """Plain images, horizontal and vertical stripes: easy to distinguish."""
    rng = np.random.default_rng(0)
    stripes = np.tile([[0.0], [120.0]], (size // 2, size))
    patterns = (np.full((size, size), 60.0), stripes, stripes.T)
    pixels = np.stack([pattern + rng.normal(60, 20, (size, size)) for pattern in patterns for _ in range(per_class)])
    labels = np.repeat(np.arange(3), per_class)
    rows = np.arange(len(labels))
    held = rows % 4 == 0
    return TrainingData(pixels.clip(0, 255).astype(np.uint8), labels, rows[~held], rows[held], CLASSES)


def run(tmp_path: Path, data: TrainingData | None = None, listener: Quiet | None = None, **changes: Any) -> Trained:
    return fit(data or images(), config(**changes), checkpoints=tmp_path / "ck", listener=listener or Quiet())


def same(one: Trained, other: Trained) -> bool:
    return all(torch.equal(value, other.state[name]) for name, value in one.state.items())


def test_network_learns_an_easy_task(tmp_path: Path) -> None:
    trained = run(tmp_path, images(per_class=32), epochs=6, rotation_deg=0, ema_decay=0.5)
    best = trained.history[trained.best_epoch - 1]
    assert best.validation_macro_f1 > 0.9
    assert trained.history[-1].train_loss < trained.history[0].train_loss
    assert 0 <= trained.history[0].train_accuracy < trained.history[-1].train_accuracy <= 1


def test_weights_are_bit_identical_for_the_same_seed_only(tmp_path: Path) -> None:
    first, again = run(tmp_path / "a", epochs=1), run(tmp_path / "b", epochs=1)
    assert same(first, again)
    assert not same(first, run(tmp_path / "c", epochs=1, seed=1))


def test_resumed_training_ends_with_bit_identical_weights(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", epochs=3, listener=Quiet(die_after=60))  # in the middle of the second epoch
    resumed = run(tmp_path / "cut", epochs=3)
    assert same(whole, resumed)
    assert [epoch.train_loss for epoch in resumed.history] == [epoch.train_loss for epoch in whole.history]


def test_a_resumed_training_returns_the_weights_of_the_epoch_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it writes a checkpoint; then, as on a GPU, the epoch that it repeats does not score the same."""
    save = torch.save
    scores = iter([0.5, 0.4, 0.3])
    monkeypatch.setattr(_Training, "_validate", lambda _self: (1.0, 1.0, next(scores)))
    whole = run(tmp_path / "whole", epochs=3)

    def save_until_killed(content: Any, path: Path) -> None:
        save(content, path)
        if len(content.get("history", ())) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save_until_killed)
    monkeypatch.setattr("cxr.training.checkpoint.MOST_SHARE", 1e9)  # after every epoch
    scores = iter([0.5, 0.4, 0.9])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", epochs=3)
    monkeypatch.setattr(torch, "save", save)
    scores = iter([0.3])
    resumed = run(tmp_path / "cut", epochs=3)
    assert resumed.best_epoch == 1
    assert same(whole, resumed)


def test_checkpoints_are_rarer_than_epochs_where_they_take_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxr.training.checkpoint.MOST_SHARE", 1e-9)  # as if one took hours
    kept = tmp_path / "cut" / "ck" / "last.pt"
    whole = run(tmp_path / "whole", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", epochs=3, listener=Quiet(die_after=100))  # in the middle of the third epoch
    assert len(torch.load(kept, weights_only=True)["history"]) == 1
    assert same(whole, run(tmp_path / "cut", epochs=3))
    assert len(torch.load(kept, weights_only=True)["history"]) == 3


def test_infinite_loss_stops_the_training_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    kept = (tmp_path / "ck" / "last.pt").read_bytes()
    exploding = dict.fromkeys(("head", "layer4", "layer3", "layer2", "layer1", "stem"), 1e30)
    checkpoint = torch.load(tmp_path / "ck" / "last.pt", weights_only=True)
    for group in checkpoint["optimizer"]["param_groups"]:
        group["base_lr"] = exploding["head"]
    torch.save(checkpoint, tmp_path / "ck" / "last.pt")
    kept = (tmp_path / "ck" / "last.pt").read_bytes()
    with pytest.raises(TrainingError, match="nan in epoch 2"):
        run(tmp_path, epochs=3)
    assert (tmp_path / "ck" / "last.pt").read_bytes() == kept


def test_training_stops_early_when_validation_stalls(tmp_path: Path) -> None:
    frozen_rates = dict.fromkeys(("head", "layer4", "layer3", "layer2", "layer1", "stem"), 1e-12)
    trained = run(tmp_path, epochs=8, early_stopping_patience=2, learning_rates=frozen_rates)
    assert len(trained.history) == trained.best_epoch + 2


def test_frozen_parts_keep_weights_and_statistics(tmp_path: Path) -> None:
    start = whole_weights(tmp_path / "start.pth")
    trained = run(tmp_path, epochs=1, weights=str(tmp_path / "start.pth"), frozen=["stem", "layer1"])
    for name, value in trained.state.items():
        if name.startswith(("stem", "layer1")) and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, start[name]), name
    assert not torch.equal(trained.state["layer2.0.weight"], start["layer2.0.weight"])
    assert not torch.equal(trained.state["layer2.1.running_mean"], start["layer2.1.running_mean"])


def test_statistics_are_frozen_only_in_completely_loaded_parts(tmp_path: Path) -> None:
    start = whole_weights(tmp_path / "whole.pth")
    partial = {name: value for name, value in start.items() if name != "layer4.0.weight"}
    torch.save(partial, tmp_path / "partial.pth")
    trained = run(tmp_path, epochs=1, weights=str(tmp_path / "partial.pth"), freeze_batchnorm_statistics=True)
    assert torch.equal(trained.state["layer3.1.running_mean"], start["layer3.1.running_mean"])
    assert not torch.equal(trained.state["layer4.1.running_mean"], start["layer4.1.running_mean"])
    assert trained.weights.partial == ("layer4",)


def test_head_only_epochs_leave_the_backbone_unchanged(tmp_path: Path) -> None:
    start = whole_weights(tmp_path / "start.pth")
    trained = run(tmp_path, epochs=1, head_only_epochs=1, weights=str(tmp_path / "start.pth"))
    assert torch.equal(trained.state["layer4.0.weight"], start["layer4.0.weight"])


def test_freezing_random_weights_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"train\.frozen holds layer4"):
        run(tmp_path, frozen=["layer4"])


def test_a_population_has_an_output_of_its_own_and_is_validated_as_its_class(tmp_path: Path) -> None:
    data = images(per_class=32)
    labels = data.labels.copy()
    labels[labels == 2] += np.arange(32) % 2  # half of the bacterial images
    split = replace(data, labels=labels, populations=(Population("other", "bacterial", 1.0),))
    trained = run(tmp_path, split, epochs=6, rotation_deg=0, ema_decay=0.5)
    assert len(trained.state["fc.bias"]) == 4
    assert max(epoch.validation_accuracy for epoch in trained.history) > 0.9


def test_an_image_counts_in_validation_as_its_population_does_in_an_answer(tmp_path: Path) -> None:
    """Otherwise the epoch is kept that has learned least what its answers disregard."""
    data = images(per_class=32)
    labels = data.labels.copy()
    labels[np.flatnonzero(labels == 1)[:16]] = 3  # half of the images that look viral have the label bacterial
    split = replace(data, labels=labels, populations=(Population("late", "bacterial", 0.0),))
    trained = run(tmp_path, split, epochs=6, rotation_deg=0, ema_decay=0.5)
    assert max(epoch.validation_accuracy for epoch in trained.history) > 0.95
    assert max(epoch.validation_macro_f1 for epoch in trained.history) > 0.95


def test_a_population_without_a_training_image_is_not_answered(tmp_path: Path) -> None:
    """As where all of its images are in the test set. Label smoothing spread over it by its weight, the largest."""
    data = replace(images(per_class=64), populations=(Population("late", "bacterial", 1.0),))
    trained = run(tmp_path, data, epochs=4, rotation_deg=0, ema_decay=0.5, label_smoothing=0.2)
    network = build("small_cnn", 4).eval()
    network.load_state_dict(trained.state)
    logits = predict_logits(network, data.images[data.train_rows], mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert softmax_with_temperature(logits, 1.0, (0.0,) * 4)[:, 3].mean() < 0.25


@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
def test_every_class_balance_trains(tmp_path: Path, balance: str) -> None:
    data = images()
    few = TrainingData(data.images, data.labels, data.train_rows[:20], data.validation_rows, CLASSES)
    assert np.isfinite(run(tmp_path, few, epochs=1, class_balance=balance).history[0].train_loss)


def test_sampling_by_source_draws_each_source_of_a_class_equally_often(tmp_path: Path) -> None:
    labels = np.array([0] * 90 + [0] * 10 + [1] * 40 + [2] * 60)
    sources = np.array([0] * 90 + [1] * 10 + [0] * 40 + [1] * 60)
    rows = np.arange(200)
    images = np.zeros((200, 32, 32), np.uint8)
    data = TrainingData(images, labels, rows, rows[:3], CLASSES, sources)
    drawn = np.concatenate(
        [
            epoch_order(data, config(class_balance="sampling_by_source"), torch.Generator().manual_seed(seed))
            for seed in range(20)
        ]
    )
    counts = [np.mean((labels[drawn] == c) & (sources[drawn] == s)) for c, s in ((0, 0), (0, 1), (1, 0), (2, 1))]
    assert counts == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3], abs=0.03)
    unknown = TrainingData(images, labels, rows, rows[:3], CLASSES)
    with pytest.raises(DataError, match="needs the source of each image"):
        run(tmp_path, unknown, class_balance="sampling_by_source")


def test_mixup_changes_the_weights_reproducibly(tmp_path: Path) -> None:
    first, again = (run(tmp_path / name, epochs=1, mixup=0.4) for name in ("a", "b"))
    assert same(first, again)
    assert not same(first, run(tmp_path / "c", epochs=1))


def test_missing_validation_images_are_an_error(tmp_path: Path) -> None:
    data = images()
    empty = TrainingData(data.images, data.labels, data.train_rows, data.validation_rows[:0], CLASSES)
    with pytest.raises(DataError, match="36 and 0"):
        run(tmp_path, empty)


def test_images_too_small_for_the_network_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="inception_v3"):
        run(tmp_path, backbone="inception_v3")


@fault("train", "a checkpoint is damaged", "training does not start", "the folder to remove")
def test_damaged_checkpoint_names_its_folder(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    (tmp_path / "ck" / "last.pt").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"ck is damaged"):
        run(tmp_path)


def test_precision_and_device_are_as_configured_or_detected() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == "fp32"
    assert choose_precision("auto", cpu) in {"fp32", "bf16"}
    assert choose_device("cpu") == cpu
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}


def test_loop_runs_with_only_torch_numpy_and_sklearn_installed(tmp_path: Path) -> None:
    # A rented GPU machine has torch, torchvision, numpy and scikit-learn, and none of the other dependencies.
    script = f"""
import sys
from importlib.machinery import ModuleSpec
class Absent:
    def create_module(self, spec):
        raise ModuleNotFoundError(spec.name)
    def exec_module(self, module):
        pass
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"pandas", "pydantic", "mlflow", "cv2", "dvc", "prefect", "tqdm", "safetensors",
                                 "ruamel", "great_expectations", "boto3", "pyarrow", "matplotlib"}}:
            return ModuleSpec(name, self)
sys.meta_path.insert(0, Absent())
import numpy as np
from pathlib import Path
from types import SimpleNamespace
from cxr.training.data import TrainingData
from cxr.training.loop import fit
class Quiet:
    def on_batch(self, images): pass
    def on_epoch(self, epoch): pass
images = np.random.default_rng(0).integers(0, 255, (12, 32, 32), np.uint8)
rows = np.arange(12)
data = TrainingData(images, rows % 3, rows[:9], rows[9:], ("normal", "viral", "bacterial"))
config = SimpleNamespace(**{config(epochs=1).model_dump()!r})
print(fit(data, config, checkpoints=Path({str(tmp_path)!r}), listener=Quiet()).best_epoch)
"""
    answer = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == "1", answer.stderr


def whole_weights(path: Path) -> dict[str, torch.Tensor]:
    """Write random weights, in place of trained ones, of everything but the head of the network."""
    torch.manual_seed(5)
    state = {
        name: value for name, value in build(TINY["backbone"], 3).state_dict().items() if not name.startswith("fc.")
    }
    torch.save(state, path)
    return state
