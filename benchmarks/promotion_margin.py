"""How small a loss the gate can detect: the width of the paired interval between good models on the same test images.

Run   ./run benchmarks.promotion_margin [--at-least 0.8]

Reads the study's runs in the tracking store and compares every pair of models that were tested on the same images and
reach the accuracy AT_LEAST. `promote.non_inferiority_margin` must be wider than the printed half-width, or the gate
holds an equally good model.
"""

from __future__ import annotations

import argparse
import io
from collections import defaultdict
from itertools import combinations

import numpy as np
import pandas as pd
from tqdm import tqdm

from cxr.evaluation.comparison import compare
from cxr.registry.tracked_runs import read_artifacts, runs_with_tag_prefix
from cxr.study.spec import TAG_PREFIX

_PREDICTIONS = "evaluation/predictions.csv"
_METRICS = ("accuracy", "macro_f1")
_MOST_MODELS = 7  # of a test set: 21 pairs


def _tested_models(at_least: float) -> list[list[pd.DataFrame]]:
    """Return the test images' predictions of good models, grouped by their test set."""
    groups: dict[frozenset[str], list[pd.DataFrame]] = defaultdict(list)
    for run in runs_with_tag_prefix(TAG_PREFIX):
        for content in read_artifacts(run.run_id, [_PREDICTIONS]).values():
            images = pd.read_csv(io.BytesIO(content), dtype={"image_id": str, "patient_id": str, "label": str})
            images = images[images["split"] == "test"].reset_index(drop=True)
            if (images["label"] == images["predicted_class"]).mean() >= at_least:
                groups[frozenset(images["image_id"])].append(images)
    return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


def main() -> None:
    """Read the command line and print one line for each test set and metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-least", type=float, default=0.8, help="accuracy of the models compared (%(default)s)")
    parser.add_argument("--resamples", type=int, default=1000, help="(%(default)s)")
    given = parser.parse_args()
    for models in _tested_models(given.at_least):
        pairs = list(combinations(models[:_MOST_MODELS], 2))
        found = [compare(*pair, resamples=given.resamples, seed=2023) for pair in tqdm(pairs, disable=None)]
        print(f"{found[0].images} images of {found[0].patients} patients, {len(pairs)} pairs of models")
        for name in _METRICS:
            intervals = [comparison.differences[name].interval for comparison in found]
            widths = [(interval.high - interval.low) / 2 for interval in intervals if interval is not None]
            if widths:
                print(f"  {name:<9} +-{np.median(widths):.3f} ({min(widths):.3f} to {max(widths):.3f})")


if __name__ == "__main__":
    main()
