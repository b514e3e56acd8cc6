"""Assign images to training, validation and test: pure functions of the manifest.

`paper`     random by image with the paper's quotas (Pham and Nguyen 2023); patients leak on purpose
`patient`   all images, split by patient in given shares
`official`  the test part of the set itself; all other images are split by patient into training and validation
`cv`        k folds, split by patient; one fold is the test set
`block`     one block of the order of acquisition is the test set; the others are split by patient into training and
            validation, and images without an order only train

Images that `official` and `block` cannot train on, because they share a patient or a near-duplicate with the test set,
are unused (see cxr.dataset.split_summary).

Split by patient means: all images of a patient, and near-duplicates, are in the same split. cxr.dataset.subsample
leaves some of the assigned images out again, for learning curves and comparisons. The result depends on the images,
the near-duplicate pairs and the parameters, and not on the order of rows.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cxr.common.classes import CLASSES, LABELS, Label
from cxr.common.errors import DataError
from cxr.common.params import SplitParams
from cxr.dataset.blocks import NO_BLOCK, acquisition_blocks
from cxr.dataset.subsample import UNUSED, quotas_of, subsample

SPLITS = ("train", "validation", "test")
SPLIT_COLUMNS = ("image_id", "split", "fold", "label", "patient_id")


def assign(manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Assign every image of the manifest to a split.

    Args:
        manifest: rows as in cxr.dataset.manifest.MANIFEST_COLUMNS.
        near_duplicates: pairs of images that must be in the same split, columns `image_id_a`, `image_id_b`.
        params: section `split` of params.yaml.

    Returns:
        One row per image, sorted by `image_id`: `image_id`, `split` (train, validation, test or unused), `fold` (fold
        or block of the image, -1 without), `label`, `patient_id`.

    Raises:
        DataError: a class has no images, fewer than its quota, or fewer patients than splits; the official test part
            or the order of acquisition is absent; or split.train_sources names an unknown source.
    """
    images = manifest.sort_values("image_id", ignore_index=True)
    images["block"] = acquisition_blocks(images, blocks=params.blocks)
    usable = images[images["label"].isin(CLASSES[params.task])].reset_index(drop=True)
    _require_every_class(usable, params)
    usable["group"] = patient_groups(usable, near_duplicates)
    assigned = _PROTOCOLS[params.protocol](usable, params)
    _require_every_class_in_every_split(assigned, params)
    assigned = subsample(assigned, params)
    table = images[["image_id", "label", "patient_id"]].merge(assigned[["image_id", "split", "fold"]], how="left")
    table["split"] = table["split"].fillna(UNUSED)
    table["fold"] = table["fold"].fillna(-1).astype("int64")
    return table[list(SPLIT_COLUMNS)]


def patient_groups(images: pd.DataFrame, near_duplicates: pd.DataFrame) -> NDArray[np.int64]:
    """Return the group number of each row; images of one patient and near-duplicates share a number."""
    patients = images.groupby("patient_id", sort=True).ngroup().to_numpy(np.int64)
    row_of = pd.Series(np.arange(len(images)), index=images["image_id"])
    pairs = near_duplicates[
        near_duplicates["image_id_a"].isin(row_of.index) & near_duplicates["image_id_b"].isin(row_of.index)
    ]
    first = patients[row_of.loc[pairs["image_id_a"]].to_numpy()]
    second = patients[row_of.loc[pairs["image_id_b"]].to_numpy()]
    n_patients = int(patients.max()) + 1
    links = coo_array((np.ones(len(pairs)), (first, second)), shape=(n_patients, n_patients))
    _, component = connected_components(links, directed=False)
    return np.asarray(component[patients], dtype=np.int64)


def distribute(counts: NDArray[np.int64], shares: Sequence[float], rng: np.random.Generator) -> NDArray[np.int64]:
    """Distribute groups so that each part gets its share of every class.

    Groups are assigned one by one, the largest first, groups of equal size in random order. Each goes to the part
    where the sum over the classes of (images - target)² / target increases least. The division by the target fills
    all parts at the same rate, so that large groups do not all go to the largest part. The groups of one image come
    last and even out the differences.

    Args:
        counts: (groups, classes) number of images of each class in each group.
        shares: share of each part, above 0, summing to 1.
        rng: orders groups of equal size.

    Returns:
        (groups,) the part of each group.
    """
    targets = np.outer(shares, counts.sum(axis=0))
    missing = targets.copy()
    part_of = np.empty(len(counts), dtype=np.int64)
    for group in np.lexsort((rng.permutation(len(counts)), -counts.sum(axis=1))):
        images = counts[group]
        rise = (images * (images - 2 * missing) / np.maximum(targets, 1)).sum(axis=1)
        part_of[group] = rise.argmin()
        missing[part_of[group]] -= images
    return part_of


def target_shares(params: SplitParams) -> dict[str, float]:
    """Return the target share of each split, the same for every class; empty for `paper`.

    Shares are of all images of the task; for `official` and `block`, where the test set is given, of the images that
    may be used for validation. The share of training is that before `train_sources` and `train_share` are applied.
    """
    if params.protocol == "paper":
        return {}
    if params.protocol in _GIVEN_TEST:
        return {"train": 1 - params.validation_share, "validation": params.validation_share}
    test = {"patient": params.test_share, "cv": 1 / params.folds}[params.protocol]
    return {"train": 1 - test - params.validation_share, "validation": params.validation_share, "test": test}


def images_to_share(manifest: pd.DataFrame, near_duplicates: pd.DataFrame, params: SplitParams) -> dict[str, int]:
    """Return the number of images of each class that `target_shares` refers to."""
    images = manifest.assign(block=acquisition_blocks(manifest, blocks=params.blocks))
    usable = images[images["label"].isin(CLASSES[params.task])].reset_index(drop=True)
    usable["group"] = patient_groups(usable, near_duplicates)
    if params.protocol in _GIVEN_TEST:
        usable = usable[_may_validate(usable, _GIVEN_TEST[params.protocol](usable, params), params)]
    return {str(label): int(n) for label, n in usable["label"].value_counts().items()}


def _paper(usable: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Draw the quotas of each class at random."""
    quotas = quotas_of(params)
    _require_quotas(usable, params, quotas)
    split = np.full(len(usable), UNUSED, dtype=object)
    for label in CLASSES[params.task]:
        rows = np.flatnonzero(usable["label"] == label)
        # Seeded by the class alone, so that a class has the same images in every task.
        rows = np.random.default_rng([params.seed, LABELS.index(label)]).permutation(rows)
        for name, quota in quotas.items():
            split[rows[: quota[label]]] = name
            rows = rows[quota[label] :]
    return usable.assign(split=split, fold=-1)


def _patient(usable: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    part = _distribute_images(usable, list(target_shares(params).values()), params)
    return usable.assign(split=np.array(SPLITS, dtype=object)[part], fold=-1)


def _official(usable: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    is_test = _is_official_test(usable, params)
    _require_official_test(usable, is_test, params)
    return _around_test(usable, is_test, params).assign(fold=-1)


def _block(usable: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    _require_order(usable)
    return _around_test(usable, _is_in_block(usable, params), params).assign(fold=usable["block"])


def _around_test(usable: pd.DataFrame, is_test: pd.Series, params: SplitParams) -> pd.DataFrame:
    """Use a given test set whole; other images of its patients and near-duplicates of its images are unused."""
    in_test_group = usable["group"].isin(usable.loc[is_test, "group"])
    split = np.where(is_test, "test", np.where(in_test_group, UNUSED, "train")).astype(object)
    pool = _may_validate(usable, is_test, params)
    part = _distribute_images(usable[pool], list(target_shares(params).values()), params)
    split[pool] = np.array(SPLITS, dtype=object)[part]
    return usable.assign(split=split)


def _may_validate(usable: pd.DataFrame, is_test: pd.Series, params: SplitParams) -> pd.Series:
    """Return whether the group of each image is without test images and, for `block`, all of it has an order."""
    barred = is_test | ((usable["block"] == NO_BLOCK) if params.protocol == "block" else False)
    return ~usable["group"].isin(usable.loc[barred, "group"])


def _is_official_test(usable: pd.DataFrame, params: SplitParams) -> pd.Series:
    return (usable["source"] == params.official_source) & (usable["official_split"] == "test")


def _is_in_block(usable: pd.DataFrame, params: SplitParams) -> pd.Series:
    return usable["block"] == params.block


_GIVEN_TEST: dict[str, Callable[[pd.DataFrame, SplitParams], pd.Series]] = {
    "official": _is_official_test,
    "block": _is_in_block,
}
"""Protocols whose test set does not depend on chance -> whether each image is in it."""


def _cv(usable: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Assign folds, which do not depend on `params.fold`, then take validation from the folds that are not test."""
    fold = _distribute_images(usable, [1 / params.folds] * params.folds, params)
    _require_every_class_in_every_fold(usable, fold, params)
    shares = target_shares(params)
    rest = fold != params.fold
    kept = 1 - shares["test"]
    part = _distribute_images(usable[rest], [shares["train"] / kept, shares["validation"] / kept], params)
    split = np.full(len(usable), "test", dtype=object)
    split[rest] = np.array(SPLITS, dtype=object)[part]
    return usable.assign(split=split, fold=fold)


_PROTOCOLS: dict[str, Callable[[pd.DataFrame, SplitParams], pd.DataFrame]] = {
    "paper": _paper,
    "patient": _patient,
    "official": _official,
    "cv": _cv,
    "block": _block,
}


def _distribute_images(images: pd.DataFrame, shares: Sequence[float], params: SplitParams) -> NDArray[np.int64]:
    """Distribute the groups of `images` and return the part of each image."""
    _, group = np.unique(images["group"], return_inverse=True)
    label = pd.Categorical(images["label"], categories=CLASSES[params.task]).codes
    counts = np.zeros((int(group.max(initial=-1)) + 1, len(CLASSES[params.task])), dtype=np.int64)
    np.add.at(counts, (group, label), 1)
    return distribute(counts, shares, np.random.default_rng(params.seed))[group]


def _require_every_class(usable: pd.DataFrame, params: SplitParams) -> None:
    absent = [label for label in CLASSES[params.task] if label not in set(usable["label"])]
    if absent:
        raise DataError(
            f"the manifest has no images of class {', '.join(absent)}, which split.task {params.task} needs; add a "
            "source with them to ingest.sources or choose another task"
        )


def _require_quotas(usable: pd.DataFrame, params: SplitParams, quotas: dict[str, dict[Label, int]]) -> None:
    lines, lacking = [], False
    for label in CLASSES[params.task]:
        there = int((usable["label"] == label).sum())
        needed = sum(quota[label] for quota in quotas.values())
        lacking = lacking or there < needed
        lines.append(f"{label} has {there} and needs {needed}")
    if lacking:
        raise DataError(
            f"too few images for split.protocol paper: {'; '.join(lines)}; add images, lower the quotas "
            "split.paper_train, paper_test and paper_validation, or choose split.protocol patient"
        )


def _require_official_test(usable: pd.DataFrame, is_test: pd.Series, params: SplitParams) -> None:
    absent = [label for label in CLASSES[params.task] if label not in set(usable.loc[is_test, "label"])]
    if absent:
        parts = sorted(set(usable.loc[usable["source"] == params.official_source, "official_split"]))
        raise DataError(
            f"split.protocol official needs the test part of source {params.official_source} with every class, but "
            f"it has no {', '.join(absent)} images there (its parts here: {', '.join(parts) or 'none'}); "
            "add that part (`make data` downloads the whole set) or choose split.protocol patient"
        )


def _require_order(usable: pd.DataFrame) -> None:
    if (usable["block"] == NO_BLOCK).all():
        raise DataError(
            f"split.protocol block needs the order of acquisition, and none of the {len(usable)} images has one; "
            "chest_xray has it in its file names; for a labelled folder add the column acquired to labels.csv and "
            "run `./run dvc repro ingest`, or choose split.protocol patient"
        )


def _require_every_class_in_every_split(assigned: pd.DataFrame, params: SplitParams) -> None:
    _require_every_class_in(assigned, "split", list(SPLITS), params)


def _require_every_class_in_every_fold(usable: pd.DataFrame, fold: NDArray[np.int64], params: SplitParams) -> None:
    _require_every_class_in(usable.assign(fold=fold), "fold", list(range(params.folds)), params)


def _require_every_class_in(
    assigned: pd.DataFrame, column: str, parts: Sequence[str | int], params: SplitParams
) -> None:
    hint = "reduce split.folds" if column == "fold" else "increase the shares of small splits"
    if params.protocol == "block":
        hint = "reduce split.blocks (images without an order are not tested)"
    for label in CLASSES[params.task]:
        images = assigned[assigned["label"] == label]
        empty = [str(part) for part in parts if part not in set(images[column])]
        if empty:
            raise DataError(
                f"no images of class {label} for {column} {', '.join(empty)}: its {len(images)} images are of "
                f"{images['group'].nunique()} patients, and all images of a patient stay together; add images of this "
                f"class or {hint}"
            )
