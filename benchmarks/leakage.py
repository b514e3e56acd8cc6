"""How much does it help to have trained on other images of the same patient? The paired experiment.

Run   ./run benchmarks.leakage PROJECT WEIGHTS [--draws 60] [--state leakage.jsonl]

Reads   PROJECT/data/images and PROJECT/data/raw of a project that was run on the real images; WEIGHTS, a state dict of
        a MobileNetV2
Writes  --state: a line for each draw. A killed run goes on after the last one

Each draw takes half of the patients at random. Of each with two or more images one image is a test image, the others
are its siblings. Two classifiers are trained and asked about the same test images:

with siblings      on the siblings and on images of the other half of the patients
without siblings   on the same images of the other half, and in place of the siblings on as many images of each class of
                   further patients of that half

So both have the same number of images of each class, and differ in nothing but whose images they are. The classifier
is a logistic regression on frozen features, which costs seconds where a network costs minutes. A network that is
fine-tuned can memorise more, so this is a lower limit of its leakage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from cxr.common.files import sha256_of
from cxr.dataset.image_array import read_image_array
from cxr.dataset.manifest import read_manifest
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.factory import build, load_weights
from cxr.models.forward import BATCH_SIZE, predict_with_features

SOURCE, CLASSES = "kermany", ("normal", "viral", "bacterial")
_C = 0.01  # of the regression on standardised features


@dataclass(frozen=True)
class Images:
    """N images: features (N, D), class indices (N,) and patient numbers (N,)."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    patients: NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """Rows of the images: the test images, their siblings, the common training images, and the siblings' stand-ins."""

    test: NDArray[np.int64]
    siblings: NDArray[np.int64]
    common: NDArray[np.int64]
    stand_ins: NDArray[np.int64]


def draw(labels: NDArray[np.int64], patients: NDArray[np.int64], *, seed: int) -> Draw:
    """Return one draw; see the module. No patient of a test image has an image among common or stand-ins."""
    generator = np.random.default_rng(seed)
    names = generator.permutation(np.unique(patients))
    ours = np.isin(patients, names[: len(names) // 2])
    order = generator.permutation(len(patients))
    first = pd.Series(patients[order]).duplicated().to_numpy()
    test = np.sort(order[~first])
    several = np.bincount(patients)[patients] > 1
    test = test[(ours & several)[test]]
    siblings = np.setdiff1d(np.flatnonzero(ours & several), test)
    others = np.flatnonzero(~ours)[
        np.argsort(generator.permutation(patients.max() + 1)[patients[~ours]], kind="stable")
    ]
    needed = np.bincount(labels[siblings], minlength=len(CLASSES))
    stand_ins = np.concatenate([others[labels[others] == c][: needed[c]] for c in range(len(CLASSES))])
    if len(stand_ins) < len(siblings):
        raise SystemExit("a class has too few images to stand in for the siblings")
    # Whole patients stand in, as the siblings' patients have no image in common either.
    common = others[~np.isin(patients[others], patients[stand_ins])]
    return Draw(test, siblings, np.sort(common), np.sort(stand_ins))


def right_answers(images: Images, train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether a classifier of the rows `train` is right on each of the rows `test`."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_C, max_iter=200))
    model.fit(images.features[train], images.labels[train])
    return np.asarray(model.predict(images.features[test]) == images.labels[test])


def summarise(lines: Sequence[dict[str, list[int]]]) -> dict[str, float]:
    """Return the mean difference of accuracy, with siblings minus without, and its 95% interval over patients.

    Args:
        lines: of each draw the patients of its test images, and whether each was right with and without siblings.
    """
    table = pd.concat([pd.DataFrame(line) for line in lines])
    table["difference"] = table["with"] - table["without"]
    of_patient = table.groupby("patient")["difference"].agg(["sum", "count"])
    mean = of_patient["sum"].sum() / of_patient["count"].sum()
    # A ratio of sums over patients: each patient is one observation, however many draws tested it.
    residual = of_patient["sum"] - mean * of_patient["count"]
    error = np.sqrt((residual**2).sum()) / of_patient["count"].sum()
    half = float(norm.ppf(0.975) * error)
    return {
        "with_siblings": float(table["with"].mean()),
        "without_siblings": float(table["without"].mean()),
        "difference": float(mean),
        "low": float(mean - half),
        "high": float(mean + half),
        "detectable": float((norm.ppf(0.975) + norm.ppf(0.8)) * error),
        "draws": len(lines),
        "patients": len(of_patient),
    }


def _images(project: Path, weights: Path, cache: Path) -> Images:
    packed = read_image_array(project / "data/images")
    manifest = read_manifest(project / "data/raw")
    rows = manifest[(manifest["source"] == SOURCE) & manifest["label"].isin(CLASSES)]
    rows = rows[rows["image_id"].isin(packed.image_ids)].reset_index(drop=True)
    digest = f"{sha256_of(weights)[:16]}-{sha256_of(project / 'data/raw/manifest.parquet')[:16]}"
    file = cache.with_name(f"{cache.stem}-{digest}.npy")
    if not file.is_file():
        np.save(file, _features(packed.images[packed.rows(rows["image_id"].tolist())], weights), allow_pickle=False)
    labels = np.array([CLASSES.index(label) for label in rows["label"]], np.int64)
    return Images(np.load(file, allow_pickle=False), labels, pd.factorize(rows["patient_id"])[0].astype(np.int64))


def _features(pixels: NDArray[np.uint8], weights: Path) -> NDArray[np.float32]:
    network = build("mobilenet_v2", len(CLASSES))
    load_weights(network, str(weights))
    network.eval()
    found = [
        predict_with_features(network, pixels[start : start + BATCH_SIZE], mean=IMAGENET_MEAN, std=IMAGENET_STD)[1]
        for start in tqdm(range(0, len(pixels), BATCH_SIZE), desc="features", disable=None)
    ]
    return np.concatenate(found)


def _run(images: Images, seed: int) -> dict[str, list[int]]:
    rows = draw(images.labels, images.patients, seed=seed)
    arms = {"with": rows.siblings, "without": rows.stand_ins}
    right = {name: right_answers(images, np.concatenate([rows.common, own]), rows.test) for name, own in arms.items()}
    return {"patient": images.patients[rows.test].tolist()} | {n: r.astype(int).tolist() for n, r in right.items()}


def main() -> None:
    """Read the command line, run the draws that are missing, and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--draws", type=int, default=60, help="(%(default)s)")
    parser.add_argument("--state", type=Path, default=Path("leakage.jsonl"), help="(%(default)s)")
    given = parser.parse_args()
    images = _images(given.project, given.weights, given.state)
    lines = [json.loads(line) for line in given.state.read_text().splitlines()] if given.state.is_file() else []
    with given.state.open("a") as state:
        for seed in tqdm(range(len(lines), given.draws), desc="draws", disable=None):
            lines.append(_run(images, seed))
            state.write(json.dumps(lines[-1]) + "\n")
            state.flush()
    found = summarise(lines[: given.draws])
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
