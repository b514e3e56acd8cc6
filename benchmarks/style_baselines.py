"""What the border alone, and the grey histogram alone, reach on the test images of the split at hand.

Run   ./run benchmarks.style_baselines [--json FILE]      after `./run dvc repro split`

Gradient boosting learns the classes of the training images from nothing but one kind of style (cxr.forensics.measure):
the outer tenth of the image, 144 numbers, or the 32 shares of its grey levels, without their places. A network whose
figure on the same test images is no better may read nothing else. Intervals are 95% bootstraps of the patients.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from cxr.common.files import write_json
from cxr.common.params import Params, read_params
from cxr.dataset.manifest import read_divided_manifest, read_split
from cxr.dataset.shards import Shards
from cxr.evaluation.bootstrap import headline_scores
from cxr.forensics.measure import measure_each
from cxr.forensics.out_of_fold import fit

FAMILIES = ("border", "histogram")


def baselines(params: Params) -> dict[str, Any]:
    """Return the headline scores of each family of FAMILIES on the test images, and their number."""
    split = read_split(params.paths.split)
    used = split.part("train", "test").merge(
        read_divided_manifest(params.paths.raw, split)[["image_id", "path"]], on="image_id", validate="one_to_one"
    )
    shards = Shards(params.paths.raw / "images")
    limits = {"max_pixels": params.preprocess.max_pixels, "workers": params.preprocess.workers}
    measured = list(measure_each(shards, used["path"].tolist(), **limits))
    classes = list(split.record["classes"])
    labels = np.array([classes.index(label) for label in used["label"]], np.int64)
    is_test = (used["split"] == "test").to_numpy()
    patients = used.loc[is_test, "patient_id"].tolist()
    evaluate, found = params.evaluate, {}
    for family in FAMILIES:
        features = np.stack([getattr(image, family) for image in measured]).astype(np.float64)
        model = fit(features[~is_test], labels[~is_test], kind="boosting", seed=evaluate.seed)
        found[family] = headline_scores(
            labels[is_test],
            model.predict_proba(features[is_test]),
            patients,
            classes,
            resamples=evaluate.bootstrap_resamples,
            seed=evaluate.seed,
        )
    return {"protocol": split.record["protocol"], "n_test": int(is_test.sum()), "families": found}


def main() -> None:
    """Measure, print a line for each family, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = baselines(read_params(Path("params.yaml")))
    for family, scores in found["families"].items():
        figures = [
            f"{name} {scores[name]:.3f} ({scores['ci95'][name][0]:.3f} to {scores['ci95'][name][1]:.3f})"
            for name in ("accuracy", "macro_f1", "macro_auroc")
        ]
        print(f"{found['protocol']}, {found['n_test']:,} test images, {family} alone: {', '.join(figures)}", flush=True)
    if arguments.json:
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
