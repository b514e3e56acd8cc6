"""An evaluation of every task: metrics, figures and tables for two, three and four classes."""

import numpy as np
import pandas as pd
import pytest

from cxr.audit.trust import TrustSettings, decisions, operating_points, referral
from cxr.common.classes import CLASSES, Task
from cxr.evaluation.predictions import Predictions
from cxr.evaluation.summary import Settings, calibration_summary, plot_tables, summarize
from cxr.reporting.paper import compare_with_paper, reasons_not_comparable
from cxr.reporting.report_figures import draw_figures

SETTINGS = Settings(resamples=100, seed=1, bins=10)
CURVES = pd.DataFrame(
    {
        "epoch": [1, 2],
        "train_loss": [1.0, 0.5],
        "validation_loss": [1.0, 0.6],
        "train_accuracy": [0.6, 0.9],
        "validation_accuracy": [0.5, 0.8],
        "validation_macro_f1": [0.4, 0.7],
    }
)


def predictions(classes: tuple[str, ...], images: int = 80) -> Predictions:
    rng = np.random.default_rng(0)
    labels = np.arange(images) % len(classes)
    scores = np.exp(3 * np.eye(len(classes))[labels] + rng.normal(size=(images, len(classes))))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    names = [np.array([f"{kind}{n // 2}" for n in range(images)], dtype=object) for kind in ("image", "patient")]
    sources = np.array(["kermany"] * images, dtype=object)
    blocks = np.arange(images) // 30 - 1
    return Predictions(classes, names[0], sources, names[1], blocks, labels, probabilities, probabilities)


@pytest.mark.parametrize("task", list(CLASSES))
def test_every_task_is_measured_drawn_and_tabled(task: Task) -> None:
    classes = CLASSES[task]
    images = predictions(classes)
    calibration = calibration_summary(images, images, temperature=1.0, bias=(0.0,) * len(classes), settings=SETTINGS)
    split = {
        "protocol": "paper",
        "task": task,
        "classes": list(classes),
        "synthetic": True,
        "test_set_sha256": "0" * 64,
        "blocks": 2,
    }
    metrics = summarize(images, calibration=calibration, split=split, settings=SETTINGS)
    assert metrics["accuracy"] > 0.7
    assert list(metrics["per_class"]) == list(classes)
    assert np.shape(metrics["confusion_matrix"]) == (len(classes), len(classes))
    assert all(svg.startswith("<svg") for svg in draw_figures(images, metrics, curves=CURVES, best_epoch=2).values())
    assert set(plot_tables(images, bins=10)["roc"]["class"]) == set(classes)
    assert {block: found["n"] for block, found in metrics["per_block"].items()} == {"none": 30, "0": 30, "1": 20}
    assert len(metrics["per_pair"]) == len(classes) * (len(classes) - 1) // 2
    assert [row.name for row in compare_with_paper(metrics)] == [name for name in classes if name != "covid"]
    assert any("classes" in reason for reason in reasons_not_comparable(metrics)) == (task != "three_way")


def test_a_pair_of_classes_is_measured_on_its_images_with_the_other_class_left_out() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.2, 0.3], [0.7, 0.1, 0.2], [0.9, 0.05, 0.05]])
    names = np.array(list("abcd"), dtype=object)
    images = Predictions(
        CLASSES["three_way"],
        names,
        names,
        names,
        np.zeros(4, int),
        np.array([1, 2, 2, 0]),
        probabilities,
        probabilities,
    )
    pair = images.between(1, 2)
    assert pair.classes == ("viral", "bacterial")
    assert pair.labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(pair.calibrated, [[0.75, 0.25], [0.4, 0.6], [1 / 3, 2 / 3]])
    found = summarize(
        images,
        calibration={"test": {"after": {}}, "temperature": 1.0, "bias": []},
        split=dict.fromkeys(("protocol", "task", "classes", "synthetic", "test_set_sha256", "blocks")),
        settings=SETTINGS,
    )["per_pair"]["viral/bacterial"]
    assert (found["n"], found["accuracy"], found["macro_auroc"]) == (3, 1.0, 1.0)


@pytest.mark.parametrize("task", list(CLASSES))
def test_every_task_has_operating_points_where_it_has_normal_images_and_a_referral_in_any_case(task: Task) -> None:
    images = predictions(CLASSES[task])
    settings = TrustSettings((0.9,), 0.9, attention_images=0, sanity_images=0, resamples=100, seed=1)
    points = operating_points(images, images, settings)
    assert bool(points["points"]) == ("normal" in CLASSES[task])
    assert referral(images, images, settings)
    assert bool(decisions(images, settings)) == bool({"normal", "bacterial"} & set(CLASSES[task]))
