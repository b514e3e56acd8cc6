"""Source probe: can the source of an image be predicted from a model's features, or from simple pixel statistics?

A logistic regression, cross-validated over patients, on images of the classes that both sides have. Weights balance the
sides within each class, so that the label alone gives an AUROC of 0.5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr.audit.occlusion import border_mask
from cxr.evaluation.bootstrap import MIN_PATIENTS, Interval, pair, patient_draws, percentile_interval
from cxr.evaluation.rates import Floats, weighted_auroc

FOLDS = 5
MIN_IMAGES = 5  # of a class, from either side
_REGULARISATION = 0.01  # scikit-learn's C; there are more features than images

Strings = NDArray[np.str_]


@dataclass(frozen=True)
class ProbeSet:
    """The images that a probe may use.

    rows        (K,) row numbers among the images given
    positive    (K,) whether an image is of the largest source
    labels      (K,) the class of each
    classes     the classes that both sides have
    """

    rows: NDArray[np.int64]
    positive: NDArray[np.bool_]
    labels: Strings
    classes: tuple[str, ...]


def probe_set(sources: Strings, labels: Strings, patients: Strings) -> tuple[ProbeSet | None, str]:
    """Choose the images that probe the largest source against all others; None with a reason if there are too few."""
    names, counts = np.unique(sources, return_counts=True)
    if len(names) < 2:
        return None, f"all images come from one source ({', '.join(names)}): there is nothing to compare"
    positive = sources == names[counts.argmax()]
    sides = (positive, ~positive)
    classes = tuple(
        str(name)
        for name in np.unique(labels)
        if min(int((side & (labels == name)).sum()) for side in sides) >= MIN_IMAGES
    )
    rows = np.flatnonzero(np.isin(labels, classes))
    patients_of_sides = [len(np.unique(patients[rows][side[rows]])) for side in sides]
    if min(patients_of_sides) < MIN_PATIENTS:
        return None, (
            f"of the classes that both sides have, one side has {min(patients_of_sides)} patients; "
            f"a probe needs {MIN_PATIENTS}"
        )
    return ProbeSet(rows, positive[rows], labels[rows], classes), ""


def probe(features: Floats, images: ProbeSet, patients: Strings, *, seed: int, resamples: int) -> dict[str, Any]:
    """Return the AUROC of predicting the source from `features` (K, D), with a 95% interval over patients (K,)."""
    scores = _out_of_fold(features, images, patients, seed=seed)
    auroc = weighted_auroc(scores, images.positive, _balance(images.positive, images.labels)[None])
    interval = _interval(scores, images, patients, resamples=resamples, seed=seed)
    return {"auroc": min(float(auroc[0]), 1.0), "ci95": pair(interval), "n_features": features.shape[1]}


def image_statistics(images: NDArray[np.uint8]) -> Floats:
    """Return five statistics of each image (N, H, W): mean, spread, mean and spread of the border, sharpness."""
    rim = border_mask(*images.shape[1:])
    statistics = np.zeros((len(images), 5))
    for row, pixels in enumerate(images):
        image = np.asarray(pixels, np.float64)
        border = image[rim]
        statistics[row] = image.mean(), image.std(), border.mean(), border.std(), np.abs(np.diff(image, axis=1)).mean()
    return statistics


def _balance(positive: NDArray[np.bool_], labels: Strings) -> Floats:
    """Return weights that balance the sides within each class; a class that one side lacks gets weight 0."""
    weights = np.zeros(len(labels))
    for name in np.unique(labels):
        cells = [side & (labels == name) for side in (positive, ~positive)]
        if all(cell.any() for cell in cells):
            for cell in cells:
                weights[cell] = (labels == name).sum() / 2 / cell.sum()
    return weights


def _out_of_fold(features: Floats, images: ProbeSet, patients: Strings, *, seed: int) -> Floats:
    """Return the score of each image from a probe that saw no image of its patient."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    scores = np.zeros(len(images.rows))
    for train, held_out in folds.split(features, images.positive, groups=patients):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_REGULARISATION, max_iter=2000))
        # Balanced again: an imbalance within the training part would shift the held-out scores.
        weights = _balance(images.positive[train], images.labels[train])
        model.fit(features[train], images.positive[train], logisticregression__sample_weight=weights)
        scores[held_out] = model.decision_function(features[held_out])
    return scores


def _interval(scores: Floats, images: ProbeSet, patients: Strings, *, resamples: int, seed: int) -> Interval | None:
    names, patient = np.unique(patients, return_inverse=True)
    draws = patient_draws(len(names), resamples, seed=seed, width=len(scores))
    balance = _balance(images.positive, images.labels)
    values = [weighted_auroc(scores, images.positive, counts[:, patient] * balance) for counts in draws]
    return percentile_interval(np.minimum(np.concatenate(values), 1.0))  # sums of weights may round above it
