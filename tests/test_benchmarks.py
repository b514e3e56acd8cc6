"""Benchmarks are run rarely, and the code they measure moves on: here they run on few small images."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).parent.parent
RATIO = r"against torchvision\s+(\d+\.\d+)"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for number in range(64):
        Image.fromarray(noise.integers(0, 255, (48, 48), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_training_prints_the_speed_of_each_loop_against_torchvision(images: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.training", images, "--rounds", "1", "--images", "64", "--px", "32"]
    done = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    ratios = [float(ratio) for ratio in re.findall(RATIO, done.stdout)]
    assert len(ratios) == 4  # torchvision's loop as it is and with kept memory, ours with all parameters and as shipped
    assert ratios[0] == 1
    assert min(ratios) > 0


def test_the_benchmark_of_a_gpu_runs_without_one(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    few = ["--images", "64", "--px", "32", "--batch", "8", "--at-once", "2"]
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", *few, "--json", found], cwd=PROJECT, check=True)
    measured = json.loads(found.read_text())
    assert {"our loop", "our loop, 2 at once", "evaluation", "Grad-CAM"} < {rate["what"] for rate in measured["rates"]}
    assert min(rate["images_per_second"] for rate in measured["rates"]) > 0
    assert measured["largest_difference"] == {"again": 0, "resumed": 0}
