"""The metrics equal those of scikit-learn; undefined values are None."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from cxr.common.errors import DataError
from cxr.evaluation.metrics import measure, roc_curves
from cxr.evaluation.rates import weighted_auroc

CLASSES = ("normal", "viral", "bacterial")


def predictions(seed: int, n: int = 60, *, decimals: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Labels with every class, and probabilities that know something; few decimals make ties."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(3), generator.integers(0, 3, n - 3)])
    scores = generator.random((n, 3))
    scores[np.arange(n), labels] += 0.5
    scores = np.round(scores, decimals) + 1e-3
    return labels, scores / scores.sum(axis=1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), decimals=st.sampled_from([1, 8]))
def test_every_value_equals_scikit_learn(seed: int, decimals: int) -> None:
    labels, probabilities = predictions(seed, decimals=decimals)
    predicted = probabilities.argmax(axis=1)
    measured = measure(labels, probabilities, CLASSES)
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, zero_division=0)

    assert measured.overall["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert measured.overall["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert measured.overall["macro_auroc"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert np.array_equal(measured.confusion_matrix, confusion_matrix(labels, predicted))
    for c, values in enumerate(measured.per_class.values()):
        assert (values.precision, values.recall, values.f1) == pytest.approx((precision[c], recall[c], f1[c]))
        assert values.support == support[c]
        assert values.specificity == pytest.approx(np.mean(predicted[labels != c] != c))
        assert values.auroc == pytest.approx(roc_auc_score(labels == c, probabilities[:, c]))


def test_weighted_auroc_equals_repeated_images() -> None:
    labels, probabilities = predictions(1, decimals=1)
    weights = np.random.default_rng(0).integers(0, 4, (5, len(labels))).astype(float)
    positive = labels == 1
    expected = [roc_auc_score(positive, probabilities[:, 1], sample_weight=row) for row in weights]
    assert weighted_auroc(probabilities[:, 1], positive, weights) == pytest.approx(expected)


def test_a_class_without_images_is_undefined_and_left_out_of_averages() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    measured = measure(labels, probabilities, CLASSES)
    bacterial = measured.per_class["bacterial"]
    assert (bacterial.precision, bacterial.recall, bacterial.f1, bacterial.auroc) == (None, None, None, None)
    assert bacterial.specificity == 0.75
    assert measured.overall["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert measured.overall["macro_auroc"] is not None
    assert measured.missing_classes == ("bacterial",)
    json.dumps(measured.to_json(), allow_nan=False)


def test_one_class_alone_has_no_auroc_and_no_specificity() -> None:
    measured = measure(np.zeros(3, np.int64), np.tile([0.6, 0.3, 0.1], (3, 1)), CLASSES)
    assert measured.overall["accuracy"] == 1.0
    assert measured.overall["macro_auroc"] is None
    assert measured.per_class["normal"].specificity is None
    assert '"macro_auroc": null' in json.dumps(measured.to_json(), allow_nan=False)


def test_a_class_that_is_never_predicted_has_precision_0_as_in_scikit_learn() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1]])
    assert measure(np.array([0, 1]), probabilities, CLASSES[:2]).per_class["viral"].precision == 0.0


def test_roc_curves_leave_out_a_class_without_images() -> None:
    labels, probabilities = predictions(2)
    labels[labels == 2] = 0
    curves = roc_curves(labels, probabilities, CLASSES)
    assert list(curves) == ["normal", "viral"]
    assert (curves["viral"].true_positive_rate[0], curves["viral"].true_positive_rate[-1]) == (0, 1)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], np.zeros((0, 3)), "there are no images to measure; the split must give at least one"),
        ([0], np.ones((1, 2)), "expected probabilities of shape (1, 3), got (1, 2)"),
        ([3], np.ones((1, 3)), "expected labels from 0 to 2, got 3 to 3"),
        ([0], np.full((1, 3), np.nan), "a predicted probability is not a finite number; the weights are damaged: "
                                       "train again"),
    ],
)  # fmt: skip
def test_invalid_predictions_are_rejected(labels: list[int], probabilities: np.ndarray, message: str) -> None:
    with pytest.raises(DataError) as error:
        measure(np.array(labels, dtype=np.int64), probabilities, CLASSES)
    assert str(error.value) == message
