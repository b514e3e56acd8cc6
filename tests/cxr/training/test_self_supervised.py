"""Pre-training without labels: the loss falls, a training starts from its weights, other images have no influence."""

import math
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.self_supervised import VIEWS as STRONG
from benchmarks.self_supervised import Pretrained, nt_xent, pretrain, write
from cxr.common.errors import DataError
from cxr.models.factory import PARTS, build, load_weights
from cxr.training.data import TrainingData
from tests.support.project import PROJECT

CONFIG = SimpleNamespace(backbone="small_cnn", weights="none", seed=3, device="cpu", precision="fp32")
ROWS = np.arange(8, 40)
EPOCHS = 8

VIEWS = replace(STRONG, rotation_deg=5, zoom=(0.95, 1.05), shift=0.02, brightness_jitter=0.1, border_wipe=0.0)
"""Weaker than the benchmark's: a small network learns to tell them in seconds."""


def noise() -> TrainingData:
    """Coarse noise: fine noise would not survive the views' rotation."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 4, 4), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    return TrainingData(pixels, np.zeros(48, np.int64), ROWS[:24], ROWS[24:], ("normal", "viral"))


def trained(data: TrainingData | None = None, minutes: float = math.inf) -> Pretrained:
    return pretrain(data or noise(), ROWS, CONFIG, epochs=EPOCHS, batch=16, minutes=minutes, views=VIEWS)


@cache
def pretrained() -> Pretrained:
    return trained()


def test_the_loss_falls() -> None:
    losses = pretrained().losses
    assert len(losses) == EPOCHS
    assert losses[0] < 1.2 * math.log(31)  # of a guess among the 31 other views
    assert losses[-1] < 0.8 * losses[0], losses


def test_views_that_agree_cost_less_than_views_that_do_not() -> None:
    views = torch.eye(4)
    agreeing, swapped = torch.cat((views, views)), torch.cat((views, views.roll(1, 0)))
    # A partner with similarity 1 and six other views with 0.
    assert float(nt_xent(agreeing, 0.5)) == pytest.approx(math.log(math.exp(2) + 6) - 2)
    assert float(nt_xent(swapped, 0.5)) == pytest.approx(math.log(math.exp(2) + 6))


def test_a_network_of_the_same_backbone_loads_all_but_the_head(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pretrained.pth"
    write(pretrained(), path)
    network = build("small_cnn", 3)
    report = load_weights(network, str(path))
    assert (report.loaded, report.partial, report.random) == (PARTS[:-1], (), ("head",))
    state = network.state_dict()
    assert set(pretrained().state) == {name for name in state if not name.startswith("fc.")}
    assert all(torch.equal(value, state[name]) for name, value in pretrained().state.items())


def test_other_images_have_no_influence() -> None:
    data = noise()
    changed = data.images.copy()
    changed[:8], changed[40:] = 255 - changed[:8], 0
    other = trained(replace(data, images=changed, labels=data.labels + 1))
    assert all(torch.equal(value, other.state[name]) for name, value in pretrained().state.items())
    changed[ROWS[0]] //= 2
    other = trained(replace(data, images=changed))
    assert not all(torch.equal(value, other.state[name]) for name, value in pretrained().state.items())


def test_time_ends_it_after_an_epoch_and_the_note_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = trained(minutes=0)
    assert stopped.losses == pretrained().losses[:1]
    assert "stopped after 1 of 8 epochs" in stopped.note
    assert "cosine schedule short" in stopped.note
    assert "epoch   1 of 8" in capsys.readouterr().out


def test_one_image_is_too_few() -> None:
    with pytest.raises(DataError, match="needs at least 2, got 1"):
        pretrain(noise(), ROWS[:1], CONFIG, epochs=1, batch=16)


def test_it_needs_nothing_of_the_platform() -> None:
    script = (
        "import sys; sys.modules |= dict.fromkeys(('pydantic', 'pandas', 'mlflow', 'cv2')); "
        "import benchmarks.self_supervised; print(1)"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == "1", answer.stderr
