"""Labels that out-of-fold predictions contradict: confident learning (Northcutt, Jiang and Chuang 2021).

A class's threshold is the mean probability that images labelled so give to it. An image counts as confidently of class
j when its probability of j reaches the threshold of j; of several such classes the most probable. The counts of given
label i by confident class j, scaled so that row i sums to the images labelled i, estimate how many images of each kind
of error there are. Of each kind that many images are flagged, those first whose probability of j exceeds that of i most
("prune by noise rate").

A flag is a question to a reader and no correction: a model that predicts style flags images of another style.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr.evaluation.rates import Floats, Ints

_KNOWN = ("image_id", "source", "path", "label", "acquisition_series", "acquisition_number")
COLUMNS = (*_KNOWN, "suggested", "flagged", "margin")
"""Of label_audit.csv, before `p_<class>` of each class."""


@dataclass(frozen=True)
class LabelAudit:
    """Which labels are doubted.

    thresholds  (C,) probability from which an image is confidently of a class
    joint       (C, C) estimated number of images by given label and confident class; rows sum to the labels
    flagged     (N,)
    suggested   (N,) the most probable class other than the given one
    margin      (N,) probability of `suggested` minus that of the given label, -1 to 1
    """

    thresholds: Floats
    joint: Floats
    flagged: NDArray[np.bool_]
    suggested: Ints
    margin: Floats


def audit_labels(labels: Ints, probabilities: Floats) -> LabelAudit:
    """Return the doubted labels.

    Args:
        labels: (N,) given class indices; every class occurs.
        probabilities: (N, C) out of fold.
    """
    n_classes = probabilities.shape[1]
    rows = np.arange(len(labels))
    thresholds = np.array([probabilities[labels == c, c].mean() for c in range(n_classes)])
    joint = _joint(labels, probabilities, thresholds)
    others = probabilities.copy()
    others[rows, labels] = -1
    suggested = others.argmax(axis=1)
    flagged = np.zeros(len(labels), bool)
    for given in range(n_classes):
        for confident in range(n_classes):
            if given != confident:
                gap = probabilities[:, confident] - probabilities[:, given]
                # As in the paper's code: only images that prefer the other class at all.
                candidates = np.flatnonzero((labels == given) & (suggested == confident) & (gap > 0))
                wanted = round(joint[given, confident])
                flagged[candidates[np.argsort(-gap[candidates], kind="stable")[:wanted]]] = True
    margin = probabilities[rows, suggested] - probabilities[rows, labels]
    return LabelAudit(thresholds, joint, flagged, suggested, margin)


def ranked_table(
    images: pd.DataFrame, audit: LabelAudit, probabilities: Floats, classes: Sequence[str]
) -> pd.DataFrame:
    """Return one row an image, the most doubted first.

    Args:
        images: rows of the manifest.
        audit: of these images.
        probabilities: (N, C) out of fold.
        classes: C names.
    """
    table = images[list(_KNOWN)].assign(
        suggested=np.array(classes)[audit.suggested],
        flagged=audit.flagged,
        margin=audit.margin.round(6),
        **{f"p_{name}": probabilities[:, c].round(6) for c, name in enumerate(classes)},
    )
    return most_doubted_first(table)


def most_doubted_first(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of label_audit.csv in its order; also those of several sources."""
    return table.sort_values(["flagged", "margin", "image_id"], ascending=[False, False, True], ignore_index=True)


def _joint(labels: Ints, probabilities: Floats, thresholds: Floats) -> Floats:
    n_classes = len(thresholds)
    above = np.where(probabilities >= thresholds, probabilities, -1.0)
    counted = above.max(axis=1) >= 0
    counts = np.zeros((n_classes, n_classes))
    np.add.at(counts, (labels[counted], above[counted].argmax(axis=1)), 1.0)
    given = np.bincount(labels, minlength=n_classes).astype(np.float64)
    sums = counts.sum(axis=1)
    # A class without a confident image is taken at its word.
    return np.where(sums[:, None] > 0, counts / np.maximum(sums, 1)[:, None] * given[:, None], np.diag(given))
