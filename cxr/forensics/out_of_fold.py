"""Predictions for every image by a model that saw no image of its person."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr.evaluation.rates import Floats, Ints

Kind = Literal["linear", "boosting"]
"""A logistic regression, for many features of a network; gradient boosting, for the few of style."""

FOLDS = 5
_REGULARISATION = 0.0005  # scikit-learn's C: there are about as many features as persons
_BOOSTING = {"max_iter": 60, "max_leaf_nodes": 15, "max_bins": 63, "early_stopping": False}


def out_of_fold(features: Floats, labels: Ints, groups: Ints, *, n_classes: int, kind: Kind, seed: int) -> Floats:
    """Return probabilities (N, C) of each image from a model trained on the other folds.

    Args:
        features: (N, D).
        labels: (N,) class indices; each class has images of at least FOLDS groups.
        groups: (N,) images of a group are in one fold.
        n_classes: C.
        kind: of the model.
        seed: of the folds and the model.
    """
    probabilities = np.zeros((len(labels), n_classes))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, held_out in folds.split(features, labels, groups=groups):
        fitted = fit(features[train], labels[train], kind=kind, seed=seed)
        probabilities[np.ix_(held_out, fitted.classes_)] = fitted.predict_proba(features[held_out])
    return probabilities


def fit(features: Floats, labels: Ints, *, kind: Kind, seed: int) -> Any:
    """Return a fitted scikit-learn classifier."""
    if kind == "linear":
        model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=_REGULARISATION, max_iter=1000))
    else:
        model = HistGradientBoostingClassifier(**_BOOSTING, random_state=seed)
    return model.fit(features, labels)


def classes_with_groups(labels: Sequence[str] | NDArray[Any], groups: Ints) -> list[str]:
    """Return the classes with images of at least FOLDS groups, sorted."""
    labels = np.asarray(labels, dtype=str)
    return [str(name) for name in np.unique(labels) if len(np.unique(groups[labels == name])) >= FOLDS]
