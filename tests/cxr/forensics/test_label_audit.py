"""Confident learning: planted label errors are flagged, and hardly any other label."""

import numpy as np
import pandas as pd

from cxr.forensics.label_audit import audit_labels, ranked_table

CLASSES = ("normal", "viral", "bacterial")


def predictions(truth: np.ndarray, seed: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 0.7, (len(truth), 3))
    logits[np.arange(len(truth)), truth] += 3
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_planted_errors_are_flagged_with_their_true_class() -> None:
    truth = np.repeat([0, 1, 2], 200)
    given = truth.copy()
    wrong = np.arange(400, 440)
    given[wrong] = 1
    audit = audit_labels(given, predictions(truth))
    assert audit.flagged[wrong].mean() > 0.5  # the method is cautious: the errors lower the threshold of their class
    assert np.delete(audit.flagged, wrong).mean() < 0.02
    assert set(audit.suggested[wrong]) == {2}
    assert np.allclose(audit.joint.sum(axis=1), np.bincount(given))
    assert 20 < audit.joint[1, 2] <= 40


def test_right_labels_are_left_alone() -> None:
    truth = np.repeat([0, 1, 2], 200)
    assert audit_labels(truth, predictions(truth)).flagged.mean() < 0.01


def test_the_table_ranks_the_most_doubted_first() -> None:
    given = np.array([0, 1, 2, 1])
    probabilities = np.array([[0.9, 0.05, 0.05], [0.1, 0.3, 0.6], [0.1, 0.1, 0.8], [0.05, 0.0, 0.95]])
    audit = audit_labels(given, probabilities)
    images = pd.DataFrame(
        {"image_id": list("abcd"), "source": "s", "path": "p", "label": [CLASSES[c] for c in given]}
    ).assign(acquisition_series="x", acquisition_number=1)
    ranked = ranked_table(images, audit, probabilities, CLASSES)
    assert ranked["image_id"].tolist()[:2] == ["d", "b"]
    assert ranked.loc[0, "suggested"] == "bacterial"
    assert ranked.loc[0, "p_bacterial"] == 0.95
