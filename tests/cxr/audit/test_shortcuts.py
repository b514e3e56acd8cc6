"""The audit on models of known behaviour: one uses only the border, one only the middle of the image."""

import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr.audit.shortcuts import N_EXAMPLES, AuditSettings, audit
from cxr.audit.verdict import verdict
from cxr.dataset.image_array import ImageArray
from cxr.evaluation.headline import SCORES
from cxr.imaging.preprocess import Preprocessing
from cxr.models.bundle import ModelSpec
from cxr.reporting.report_figures import audit_figures
from cxr.reporting.templating import render

SIDE, N_PATIENTS = 48, 60
CLASSES = ("normal", "viral", "bacterial")
GREYS = (60, 120, 180)


class Reader(nn.Module):
    """Answers the class whose grey level is nearest to the mean of one window of the image."""

    def __init__(self, window: tuple[slice, slice]) -> None:
        super().__init__()
        self.window = window
        self.fc = nn.Linear(3, len(CLASSES), bias=False)
        self.fc.weight.data = torch.eye(len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.window
        mean = x[:, 0, rows, columns].mean(dim=(1, 2))
        greys = torch.tensor(GREYS, dtype=torch.float32) / 255
        logits: Tensor = self.fc(-((mean[:, None] - greys) ** 2) * 400)
        return logits


CORNER, MIDDLE = (slice(0, 3), slice(0, 3)), (slice(18, 24), slice(10, 16))


def spec() -> ModelSpec:
    preprocessing = Preprocessing(SIDE, "stretch", "none", 2.0, 8, 10_000)
    return ModelSpec(
        backbone="resnet50",
        classes=CLASSES,
        preprocessing=preprocessing,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        temperature=1.0,
        synthetic=True,
        head="linear",
        members=1,
        bias=(0.0,) * len(CLASSES),
    )


def images(
    mark: Callable[[NDArray[np.uint8], int], None], sources: tuple[str, ...] = ("here", "there")
) -> tuple[ImageArray, pd.DataFrame]:
    """Return an image a patient, a noisy body with two lungs and what `mark` adds for the class; sources take turns."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    body = np.where(np.abs(x) < 0.85, 170, 60)
    for side in (-1, 1):
        body[np.square((x - side * 0.4) / 0.25) + np.square((y + 0.1) / 0.6) < 1] = 90
    noise = np.random.default_rng(1).integers(-10, 10, (N_PATIENTS, SIDE, SIDE))
    pixels = (body + noise).astype(np.uint8)
    labels = [n % len(CLASSES) for n in range(N_PATIENTS)]
    for image, label in zip(pixels, labels, strict=True):
        mark(image, label)
    ids = [f"image-{n}" for n in range(N_PATIENTS)]
    table = pd.DataFrame(
        {
            "image_id": ids,
            "split": "test",
            "source": [sources[n // len(CLASSES) % len(sources)] for n in range(N_PATIENTS)],
            "patient_id": [f"patient-{n}" for n in range(N_PATIENTS)],
            "label": [CLASSES[label] for label in labels],
        }
    )
    return ImageArray(pixels, ids, spec().preprocessing), table


def in_corner(image: NDArray[np.uint8], label: int) -> None:
    image[CORNER] = GREYS[label]


def in_middle(image: NDArray[np.uint8], label: int) -> None:
    image[MIDDLE] = GREYS[label]


def audited(model: nn.Module, packed: ImageArray, table: pd.DataFrame, *, max_images: int = 1000) -> dict[str, Any]:
    found = audit(model.eval(), spec(), packed, table, AuditSettings(max_images, resamples=200, seed=1))
    through_json: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    return through_json


@cache
def border_reader() -> dict[str, Any]:
    return audited(Reader(CORNER), *images(in_corner))


def levels(found: dict[str, Any]) -> list[str]:
    return [finding["level"] for finding in found["verdict"]]


def test_a_border_model_keeps_its_score_without_the_thorax_and_is_bad() -> None:
    found = deepcopy(border_reader())
    scores = {name: view["accuracy"] for name, view in found["views"].items()}
    assert scores["whole"] == scores["thorax_blanked"] == scores["thorax_black"] == scores["border_only"] == 1
    assert scores["thorax_only"] < 0.6
    assert levels(found)[:3] == ["bad", "bad", "doubt"]


def test_a_lung_model_loses_its_score_without_the_thorax_and_is_good() -> None:
    found = audited(Reader(MIDDLE), *images(in_middle))
    scores = {name: view["accuracy"] for name, view in found["views"].items()}
    assert scores["whole"] == scores["thorax_only"] == 1
    assert max(scores["thorax_blanked"], scores["thorax_black"], scores["border_only"]) < 0.6
    assert found["views"]["thorax_black"]["macro_auroc"] == 0.5
    assert levels(found)[1:3] == ["good", "good"]
    assert levels(found)[0] != "bad"


def test_the_same_images_and_seed_give_the_same_audit() -> None:
    assert audited(Reader(CORNER), *images(in_corner)) == border_reader()


def test_more_images_than_the_limit_are_sampled_and_counted() -> None:
    found = audited(Reader(CORNER), *images(in_corner), max_images=24)
    assert (found["images"], found["test_images"]) == (24, N_PATIENTS)


def test_one_source_is_not_probed_with_a_reason() -> None:
    found = audited(Reader(CORNER), *images(in_corner, sources=("here",)))
    assert "one source (here)" in found["probe"]["unavailable_because"]
    assert levels(found)[3] == "unknown"


def test_a_source_visible_in_the_features_is_found_with_balanced_labels() -> None:
    packed, table = images(in_middle)
    there = (table["source"] == "there").to_numpy()
    packed.images[there, :3, :3] = 250
    packed.images[~there, :3, :3] = 10
    marked = audited(Reader(CORNER), packed, table)
    assert marked["probe"]["features"]["auroc"] > 0.95
    assert levels(marked)[3] == "doubt"  # both sources have all classes
    unmarked = audited(Reader(MIDDLE), *images(in_middle))
    low, high = unmarked["probe"]["features"]["ci95"]
    assert low <= 0.5 <= high


def test_too_few_patients_give_no_interval_and_no_judgement() -> None:
    packed, table = images(in_corner)
    found = audited(Reader(CORNER), packed, table.iloc[:8])
    assert found["views"]["whole"]["ci95"]["macro_auroc"] is None
    assert levels(found)[:2] == ["unknown", "unknown"]


def test_examples_show_each_class_in_each_view() -> None:
    found = deepcopy(border_reader())
    assert len(found["examples"]) == N_EXAMPLES
    assert {example["label"] for example in found["examples"]} == set(CLASSES)
    for example in found["examples"]:
        assert set(example["pictures"]) == set(found["views"])
        assert all(address.startswith("data:image/jpeg;base64,") for address in example["pictures"].values())


def test_the_figure_and_the_part_of_the_report_show_every_view_and_finding() -> None:
    found = deepcopy(border_reader())
    drawn = audit_figures(found)
    html = render("audit.html.j2", {"audit": found, "figures": drawn, "scores": SCORES})
    for view in found["views"].values():
        assert view["title"] in html
        assert view["title"] in drawn["audit_views"]
    for finding in found["verdict"]:
        assert finding["sentence"] in html


@pytest.mark.parametrize(
    ("auroc", "expected"), [(0.95, "bad"), (0.8, "doubt"), (0.55, "good")], ids=["told", "in part", "hardly"]
)
def test_a_known_source_is_bad_only_where_it_reveals_a_class(auroc: float, expected: str) -> None:
    found = deepcopy(border_reader())
    found["probe"]["features"]["auroc"] = auroc
    found["sources"]["there"].pop("bacterial")
    assert verdict(found)[3]["level"] == expected
