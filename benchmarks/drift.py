"""How often `monitor` cries wolf, and what it notices: false alarms and detection on images that no training has seen.

Run   python -m benchmarks.drift PROJECT [--images 200] [--splits 60] [--keep FOLDER]

PROJECT is a project after `make run`: its prepared images, split, trained model and evidence are read, nothing is
changed. Validation and test images are divided by patient, again and again: half of the patients are the reference,
windows are drawn from the others, patient by patient. The shifts are made on the image as it is after resizing and
before the contrast step; their windows come from 220 test images, so they share most of their images and the intervals
of their rows say little; the reference comes from all other patients.
KEEP holds what the network said, for a second run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ruamel.yaml import YAML
from tqdm import tqdm

from cxr.common.files import read_json
from cxr.dataset.manifest import read_manifest, read_splits
from cxr.dataset.shards import Shards
from cxr.imaging.decode import decode_grey
from cxr.imaging.preprocess import Preprocessing, prepare
from cxr.models.bundle import ModelSpec, read_bundle
from cxr.models.forward import BATCH_SIZE, calibrated, predict_with_features
from cxr.models.reference import MEASURES, Reference, image_measures, make_reference
from cxr.monitoring.drift import Rules, Window, find_limits, is_drift, judge

Pixels = NDArray[np.uint8]
SHIFTED_IMAGES = 220
ALARM_WINDOWS, OF_WINDOWS = 2, 5
FALSE_ALARM_SHARE = 0.01


def _by_table(change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Callable[[Pixels], Pixels]:
    levels = np.clip(np.rint(255 * change(np.arange(256) / 255)), 0, 255).astype(np.uint8)
    return lambda image: levels[image]


SHIFTS: dict[str, Callable[[Pixels], Pixels]] = {
    "exposure x 0.8": _by_table(lambda grey: 0.8 * grey),
    "exposure x 1.2": _by_table(lambda grey: 1.2 * grey),
    "gamma 0.8": _by_table(lambda grey: grey**0.8),
    "inverted": _by_table(lambda grey: 1 - grey),
    "blurred, sigma 0.7 px": lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), 0.7), np.uint8),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
}


@dataclass(frozen=True)
class MeasuredImages:
    """N images as the model sees them: image measures (N, M), features (N, D), probabilities (N, C), who and what."""

    images: NDArray[np.float32]
    features: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    patients: NDArray[np.str_]
    labels: NDArray[np.str_]
    sources: NDArray[np.str_]

    def where(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> MeasuredImages:
        """Return the images that `rows` selects."""
        return MeasuredImages(**{name: array[rows] for name, array in vars(self).items()})


class Project:
    """A project after `make run`: its model as calibrated, and its images."""

    def __init__(self, root: Path) -> None:
        # Only the paths: a project of another version may lack parameters that this one has.
        paths = {name: root / path for name, path in YAML(typ="safe").load(root / "params.yaml")["paths"].items()}
        self.shards = Shards(paths["raw"] / "images")
        self.model, spec = read_bundle(paths["model"])
        found = read_json(paths["evaluation"] / "calibration.json")
        self.spec: ModelSpec = replace(spec, temperature=found["temperature"], bias=tuple(found["bias"]))
        manifest = read_manifest(paths["raw"])[["image_id", "source", "path"]]
        self.images = read_splits(paths["split"]).merge(manifest, on="image_id", validate="one_to_one")

    def see(self, images: pd.DataFrame, shift: Callable[[Pixels], Pixels], name: str) -> MeasuredImages:
        """Read, shift, prepare and classify images, a batch at a time."""
        images, features, probabilities = [], [], []
        paths = images["path"].tolist()
        for start in tqdm(range(0, len(paths), BATCH_SIZE), desc=name, mininterval=10):
            batch = np.stack([self._image(path, shift) for path in paths[start : start + BATCH_SIZE]])
            measured = image_measures(batch)
            logits, seen = predict_with_features(self.model, batch, mean=self.spec.mean, std=self.spec.std)
            images.append(np.column_stack([measured[name] for name in MEASURES if name in measured]))
            features.append(seen)
            probabilities.append(calibrated(logits, self.spec))
        return MeasuredImages(
            np.concatenate(images),
            np.concatenate(features),
            np.concatenate(probabilities),
            *(images[name].to_numpy(str) for name in ("patient_id", "label", "source")),
        )

    def _image(self, path: str, shift: Callable[[Pixels], Pixels]) -> Pixels:
        whole: Preprocessing = self.spec.preprocessing
        grey = decode_grey(
            self.shards.read(path), name=path, max_pixels=whole.max_pixels, min_side_px=2 * whole.image_size_px
        )
        sized = prepare(grey, replace(whole, contrast="none"))
        return prepare(shift(sized), replace(whole, border_crop=0.0))


def _kept(folder: Path | None, name: str, make: Callable[[], MeasuredImages]) -> MeasuredImages:
    """Return the images that `folder` holds under `name`, or make and keep them."""
    if folder is None:
        return make()
    path = folder / f"{name.replace(' ', '-').replace(',', '')}.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, **vars(make()))
    with np.load(path, allow_pickle=False) as file:
        return MeasuredImages(**{key: file[key] for key in file})


def reference_of(images: MeasuredImages, classes: tuple[str, ...]) -> Reference:
    """Make the reference of images."""
    return make_reference(
        classes=classes,
        images=images.images,
        features=images.features,
        probabilities=images.probabilities,
        patients=images.patients.astype(object),
    )


def scored(images: MeasuredImages, reference: Reference) -> pd.DataFrame:
    """Return the columns of scored images that a window is judged by."""
    columns = {f"m_{name}": images.images[:, c] for c, name in enumerate(MEASURES[:-1])}
    columns["m_feature_distance"] = reference.space.distance(images.features)
    columns |= {f"p_{name}": images.probabilities[:, c].astype(np.float32) for c, name in enumerate(reference.classes)}
    predicted = np.array(reference.classes)[images.probabilities.argmax(axis=1)]
    return pd.DataFrame(columns).assign(
        predicted_class=predicted, error=None, path=images.patients, scored_at=pd.Timestamp("2026-01-01", tz="UTC")
    )


def draw(images: MeasuredImages, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of `count` images of patients in random order, no image twice."""
    _, numbers = np.unique(images.patients, return_inverse=True)
    rank = generator.permutation(int(numbers.max()) + 1)[numbers]
    return np.argsort(rank, kind="stable")[:count]


def draw_shares(
    images: MeasuredImages, by: NDArray[np.str_], shares: dict[str, float], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return rows of images drawn as `draw` does, with the given shares of the groups `by`."""
    rows = []
    for name, share in shares.items():
        group = np.flatnonzero(by == name)
        rows.append(group[draw(images.where(group), round(share * count), generator)])
    return np.concatenate(rows)


@dataclass(frozen=True)
class Outcome:
    """One row of the table: of how many windows and runs of windows, the alarms, and which signals spoke how often."""

    name: str
    windows: list[list[Window]]

    def row(self) -> str:
        """Return the row as markdown."""
        alarms = np.array([[window.alarm for window in run] for run in self.windows])
        drift = [is_drift(run, alarm_windows=ALARM_WINDOWS, of_windows=OF_WINDOWS) for run in self.windows]
        each = alarms.mean(axis=1)
        error = 1.96 * each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else 0.0
        low, high = wilson(sum(drift), len(drift))
        spoke = pd.Series([name for run in self.windows for window in run for name in window.speaking], dtype=object)
        counts = (spoke.value_counts() / alarms.size).head(4)
        score = np.median([window.score for run in self.windows for window in run])
        return (
            f"| {self.name} | {each.mean():.1%} ± {error:.1%} | {sum(drift)} of {len(drift)} ({low:.1%} to {high:.1%}) "
            f"| {score:.2f} | {', '.join(f'{name} {share:.0%}' for name, share in counts.items())} |"
        )


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Return the 95% interval of a share."""
    z, share = 1.96, hits / total
    middle, width = share + z * z / (2 * total), z * np.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    return max(0.0, float((middle - width) / (1 + z * z / total))), float((middle + width) / (1 + z * z / total))


def unshifted(judged: MeasuredImages, classes: tuple[str, ...], rules: Rules, splits: int) -> list[Outcome]:
    """Return false alarms of windows like the reference, and of windows of another class mix, over random halves."""
    generator = np.random.default_rng(0)
    same: list[list[Window]] = []
    mixed: list[list[Window]] = []
    _, numbers = np.unique(judged.patients, return_inverse=True)
    other_mix = dict(zip(classes, (0.6, 0.2, 0.2), strict=False))
    for _ in tqdm(range(splits), desc="splits", disable=None):
        is_reference = (generator.permutation(int(numbers.max()) + 1) % 2 == 0)[numbers]
        reference, others = reference_of(judged.where(is_reference), classes), judged.where(~is_reference)
        limits = find_limits(reference, rules)
        for found, rows in (
            (same, [draw(others, rules.images, generator) for _ in range(OF_WINDOWS)]),
            (
                mixed,
                [draw_shares(others, others.labels, other_mix, rules.images, generator) for _ in range(OF_WINDOWS)],
            ),
        ):
            table = scored(others, reference)
            found.append([judge(table.iloc[part], reference, limits, number=i + 1) for i, part in enumerate(rows)])
    return [Outcome("none: the same images", same), Outcome(f"classes {_shares_text(other_mix)}", mixed)]


def _shares_text(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


@dataclass(frozen=True)
class Pool:
    """MeasuredImages that windows are drawn from; where `shares` are given, by them from the images' groups."""

    images: MeasuredImages
    groups: NDArray[np.str_] | None = None
    shares: dict[str, float] | None = None

    def draw(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return the rows of one window."""
        if self.groups is None or self.shares is None:
            return draw(self.images, count, generator)
        return draw_shares(self.images, self.groups, self.shares, count, generator)


def shifted(pools: dict[str, Pool], reference: Reference, rules: Rules, runs: int) -> list[Outcome]:
    """Return the alarms of windows drawn from each pool."""
    generator, limits = np.random.default_rng(1), find_limits(reference, rules)
    outcomes = []
    for name, pool in tqdm(pools.items(), desc="shifts", disable=None):
        table = scored(pool.images, reference)
        judged = [
            [
                judge(table.iloc[pool.draw(rules.images, generator)], reference, limits, number=number)
                for number in range(1, OF_WINDOWS + 1)
            ]
            for _ in range(runs)
        ]
        outcomes.append(Outcome(name, judged))
    return outcomes


def _see_all(project: Project, keep: Path | None) -> tuple[MeasuredImages, MeasuredImages, dict[str, MeasuredImages]]:
    """Return validation and test images, images of the second set and of a class that no training saw, shifted images."""
    images = project.images
    is_judged = images["split"].isin(("validation", "test"))
    second = images["source"].value_counts().index[-1]
    is_extra = (images["split"] == "unused") | ((images["split"] == "train") & (images["source"] == second))
    judged = _kept(keep, "judged", lambda: project.see(images[is_judged], _as_it_is, "judged"))
    extra = _kept(keep, "extra", lambda: project.see(images[is_extra], _as_it_is, "extra"))
    test = images[images["split"] == "test"]
    _, numbers = np.unique(test["patient_id"].to_numpy(str), return_inverse=True)
    order = np.argsort(np.random.default_rng(2).permutation(int(numbers.max()) + 1)[numbers], kind="stable")
    chosen = test.iloc[order[:SHIFTED_IMAGES]]
    seen = {"none": judged.where(np.isin(judged.patients, chosen["patient_id"].to_numpy(str)))}
    for name, shift in SHIFTS.items():
        seen[name] = _kept(keep, name, partial(project.see, chosen, shift, name))
    return judged, extra, seen


def _as_it_is(image: Pixels) -> Pixels:
    return image


def _pools(seen: dict[str, MeasuredImages], extra: MeasuredImages) -> dict[str, Pool]:
    pools = {"none: the images that are shifted below": Pool(seen["none"])}
    pools |= {name: Pool(images) for name, images in seen.items() if name != "none"}
    is_unused = ~np.isin(extra.labels, np.unique(seen["none"].labels))
    for name, added, share in (
        ("half of the second set", extra.where(~is_unused), 0.5),
        ("a quarter of the second set", extra.where(~is_unused), 0.25),
        ("a fifth of a class it was not taught", extra.where(is_unused), 0.2),
    ):
        if len(added.labels):
            both = _merged(seen["none"], added)
            groups = np.repeat(np.array(["usual", "added"]), (len(seen["none"].labels), len(added.labels)))
            pools[name] = Pool(both, groups, {"usual": 1 - share, "added": share})
    return pools


def _merged(*parts: MeasuredImages) -> MeasuredImages:
    return MeasuredImages(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def main() -> None:
    """See the images once, then draw windows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--images", type=int, default=200, help="in a window (%(default)s)")
    parser.add_argument("--splits", type=int, default=60, help="random halves, each with five windows (%(default)s)")
    parser.add_argument("--keep", type=Path, help="folder for what the network said")
    arguments = parser.parse_args()
    project, rules = Project(arguments.project), Rules(arguments.images, FALSE_ALARM_SHARE, 1000, 0, 0.05)
    classes = project.spec.classes
    judged, extra, shifted_images = _see_all(project, arguments.keep)
    taken = np.isin(judged.patients, shifted_images["none"].patients)
    reference = reference_of(judged.where(~taken), classes)
    outcomes = unshifted(judged, classes, rules, arguments.splits)
    outcomes += shifted(_pools(shifted_images, extra), reference, rules, arguments.splits)
    print(f"{len(judged.labels)} validation and test images of {len(np.unique(judged.patients))} patients,")
    print(f"windows of {rules.images}, {arguments.splits} runs of {OF_WINDOWS} windows a row, limits for ", end="")
    print(f"{rules.false_alarm_share:.0%} false alarms a window; intervals 95%, over draws and not over hospitals.\n")
    print(f"| shift | alarms of windows | {ALARM_WINDOWS} of {OF_WINDOWS}: drift | median score | what spoke |")
    print("|---|---|---|---|---|")
    print("\n".join(outcome.row() for outcome in outcomes))


if __name__ == "__main__":
    main()
