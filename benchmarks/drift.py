"""False alarms and detection rate of `monitor` on images that were not trained on.

Run   ./run benchmarks.drift PROJECT [--images 200] [--splits 60] [--keep FOLDER]

PROJECT is a project after `make run`: its prepared images, split, trained model and evaluation artifacts are read,
nothing is changed. Validation and test images are split by patient many times: half of the patients are the reference,
and windows are drawn by patient from the others. Shifts are applied after resizing and before the contrast step. Their
windows come from 220 test images, so they share most of their images and the intervals of their rows are not
informative; their reference comes from all other patients.
KEEP stores the outputs of the network for another run.
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
from cxr.dataset.manifest import read_manifest, read_split
from cxr.dataset.shards import Shards
from cxr.imaging.decode import decode_grey
from cxr.imaging.preprocess import Preprocessing, prepare
from cxr.models.bundle import ModelSpec, read_bundle
from cxr.models.forward import BATCH_SIZE, calibrated, predict_with_features
from cxr.models.reference import MEASURES, Reference, image_measures, make_reference
from cxr.monitoring.drift import Rules, Window, compare_window, find_limits, is_drift

Pixels = NDArray[np.uint8]
SHIFTED_IMAGES = 220
ALARM_WINDOWS, RECENT_WINDOWS = 2, 5
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
    """N images: measures (N, M), features (N, D), probabilities (N, C), patients, labels and sources (N,)."""

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
    """A project after `make run`: its calibrated model and its images."""

    def __init__(self, root: Path) -> None:
        # Read only the paths: the parameters of another version may differ.
        paths = {name: root / path for name, path in YAML(typ="safe").load(root / "params.yaml")["paths"].items()}
        self.shards = Shards(paths["raw"] / "images")
        self.model, spec = read_bundle(paths["model"])
        found = read_json(paths["evaluation"] / "calibration.json")
        self.spec: ModelSpec = replace(spec, temperature=found["temperature"], bias=tuple(found["bias"]))
        manifest = read_manifest(paths["raw"])[["image_id", "source", "path"]]
        self.images = read_split(paths["split"]).table.merge(manifest, on="image_id", validate="one_to_one")

    def measure(self, table: pd.DataFrame, shift: Callable[[Pixels], Pixels], name: str) -> MeasuredImages:
        """Read, shift, prepare and classify the images of `table` in batches."""
        images, features, probabilities = [], [], []
        paths = table["path"].tolist()
        for start in tqdm(range(0, len(paths), BATCH_SIZE), desc=name, mininterval=10):
            batch = np.stack([self._image(path, shift) for path in paths[start : start + BATCH_SIZE]])
            measured = image_measures(batch)
            logits, of_batch = predict_with_features(self.model, batch, mean=self.spec.mean, std=self.spec.std)
            images.append(np.column_stack([measured[name] for name in MEASURES if name in measured]))
            features.append(of_batch)
            probabilities.append(calibrated(logits, self.spec))
        return MeasuredImages(
            np.concatenate(images),
            np.concatenate(features),
            np.concatenate(probabilities),
            *(table[name].to_numpy(str) for name in ("patient_id", "label", "source")),
        )

    def _image(self, path: str, shift: Callable[[Pixels], Pixels]) -> Pixels:
        whole: Preprocessing = self.spec.preprocessing
        grey = decode_grey(
            self.shards.read(path), name=path, max_pixels=whole.max_pixels, min_side_px=2 * whole.image_size_px
        )
        sized = prepare(grey, replace(whole, contrast="none"))
        return prepare(shift(sized), replace(whole, border_crop=0.0))


def _kept(folder: Path | None, name: str, make: Callable[[], MeasuredImages]) -> MeasuredImages:
    """Return the images that `folder` holds under `name`; make and store them if it has none."""
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
    """Return the columns of scored images that a window is compared by."""
    columns = {f"m_{name}": images.images[:, c] for c, name in enumerate(MEASURES[:-1])}
    columns["m_feature_distance"] = reference.space.distance(images.features)
    columns |= {f"p_{name}": images.probabilities[:, c].astype(np.float32) for c, name in enumerate(reference.classes)}
    predicted = np.array(reference.classes)[images.probabilities.argmax(axis=1)]
    return pd.DataFrame(columns).assign(
        predicted_class=predicted, error=None, path=images.patients, scored_at=pd.Timestamp("2026-01-01", tz="UTC")
    )


def draw(images: MeasuredImages, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of `count` distinct images, with the patients in random order."""
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
    """One row of the table: runs of windows, their alarms and the signals that exceeded their limits."""

    name: str
    windows: list[list[Window]]

    def row(self) -> str:
        """Return the row as markdown."""
        alarms = np.array([[window.alarm for window in run] for run in self.windows])
        drift = [is_drift(run, alarm_windows=ALARM_WINDOWS, recent_windows=RECENT_WINDOWS) for run in self.windows]
        each = alarms.mean(axis=1)
        error = 1.96 * each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else 0.0
        low, high = wilson(sum(drift), len(drift))
        exceeded = pd.Series([name for run in self.windows for window in run for name in window.exceeded], dtype=object)
        counts = (exceeded.value_counts() / alarms.size).head(4)
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


def unshifted(measured: MeasuredImages, classes: tuple[str, ...], rules: Rules, splits: int) -> list[Outcome]:
    """Return the alarms of windows like the reference and of windows with other class shares, over random halves."""
    generator = np.random.default_rng(0)
    same: list[list[Window]] = []
    mixed: list[list[Window]] = []
    _, numbers = np.unique(measured.patients, return_inverse=True)
    other_mix = dict(zip(classes, (0.6, 0.2, 0.2), strict=False))
    for _ in tqdm(range(splits), desc="splits", disable=None):
        is_reference = (generator.permutation(int(numbers.max()) + 1) % 2 == 0)[numbers]
        reference, others = reference_of(measured.where(is_reference), classes), measured.where(~is_reference)
        limits = find_limits(reference, rules)
        for found, rows in (
            (same, [draw(others, rules.images, generator) for _ in range(RECENT_WINDOWS)]),
            (
                mixed,
                [draw_shares(others, others.labels, other_mix, rules.images, generator) for _ in range(RECENT_WINDOWS)],
            ),
        ):
            table = scored(others, reference)
            found.append(
                [compare_window(table.iloc[part], reference, limits, number=i + 1) for i, part in enumerate(rows)]
            )
    return [Outcome("none: the same images", same), Outcome(f"classes {_shares_text(other_mix)}", mixed)]


def _shares_text(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


@dataclass(frozen=True)
class Pool:
    """Images that windows are drawn from, with the given `shares` of their `groups` if there are any."""

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
        windows = [
            [
                compare_window(table.iloc[pool.draw(rules.images, generator)], reference, limits, number=number)
                for number in range(1, RECENT_WINDOWS + 1)
            ]
            for _ in range(runs)
        ]
        outcomes.append(Outcome(name, windows))
    return outcomes


def _measure_all(
    project: Project, keep: Path | None
) -> tuple[MeasuredImages, MeasuredImages, dict[str, MeasuredImages]]:
    """Return validation and test images, images of the second set and of untrained classes, and shifted images."""
    images = project.images
    is_held_out = images["split"].isin(("validation", "test"))
    second = images["source"].value_counts().index[-1]
    is_extra = (images["split"] == "unused") | ((images["split"] == "train") & (images["source"] == second))
    held_out = _kept(keep, "held-out", lambda: project.measure(images[is_held_out], _unchanged, "held-out"))
    extra = _kept(keep, "extra", lambda: project.measure(images[is_extra], _unchanged, "extra"))
    test = images[images["split"] == "test"]
    _, numbers = np.unique(test["patient_id"].to_numpy(str), return_inverse=True)
    order = np.argsort(np.random.default_rng(2).permutation(int(numbers.max()) + 1)[numbers], kind="stable")
    chosen = test.iloc[order[:SHIFTED_IMAGES]]
    by_shift = {"none": held_out.where(np.isin(held_out.patients, chosen["patient_id"].to_numpy(str)))}
    for name, shift in SHIFTS.items():
        by_shift[name] = _kept(keep, name, partial(project.measure, chosen, shift, name))
    return held_out, extra, by_shift


def _unchanged(image: Pixels) -> Pixels:
    return image


def _pools(by_shift: dict[str, MeasuredImages], extra: MeasuredImages) -> dict[str, Pool]:
    pools = {"none: the images that are shifted below": Pool(by_shift["none"])}
    pools |= {name: Pool(images) for name, images in by_shift.items() if name != "none"}
    is_unused = ~np.isin(extra.labels, np.unique(by_shift["none"].labels))
    for name, added, share in (
        ("half of the second set", extra.where(~is_unused), 0.5),
        ("a quarter of the second set", extra.where(~is_unused), 0.25),
        ("a fifth of a class that was not trained", extra.where(is_unused), 0.2),
    ):
        if len(added.labels):
            both = _merged(by_shift["none"], added)
            groups = np.repeat(np.array(["usual", "added"]), (len(by_shift["none"].labels), len(added.labels)))
            pools[name] = Pool(both, groups, {"usual": 1 - share, "added": share})
    return pools


def _merged(*parts: MeasuredImages) -> MeasuredImages:
    return MeasuredImages(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def main() -> None:
    """Measure the images once, then draw windows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--images", type=int, default=200, help="in a window (%(default)s)")
    parser.add_argument("--splits", type=int, default=60, help="random halves, each with five windows (%(default)s)")
    parser.add_argument("--keep", type=Path, help="folder for the outputs of the network")
    arguments = parser.parse_args()
    project, rules = Project(arguments.project), Rules(arguments.images, FALSE_ALARM_SHARE, 1000, 0, 0.05)
    classes = project.spec.classes
    held_out, extra, shifted_images = _measure_all(project, arguments.keep)
    used = np.isin(held_out.patients, shifted_images["none"].patients)
    reference = reference_of(held_out.where(~used), classes)
    outcomes = unshifted(held_out, classes, rules, arguments.splits)
    outcomes += shifted(_pools(shifted_images, extra), reference, rules, arguments.splits)
    print(f"{len(held_out.labels)} validation and test images of {len(np.unique(held_out.patients))} patients,")
    print(f"windows of {rules.images}, {arguments.splits} runs of {RECENT_WINDOWS} windows a row, limits for ", end="")
    print(f"{rules.false_alarm_share:.0%} false alarms a window; intervals 95%, over draws and not over hospitals.\n")
    print(
        f"| shift | alarms of windows | {ALARM_WINDOWS} of {RECENT_WINDOWS}: drift | median score | signals exceeded |"
    )
    print("|---|---|---|---|---|")
    print("\n".join(outcome.row() for outcome in outcomes))


if __name__ == "__main__":
    main()
