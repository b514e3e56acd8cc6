"""Subsampled splits: exact quotas, nested shares, the same test set, no overlap of patients."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr.common.classes import CLASSES, LABELS
from cxr.common.errors import DataError
from cxr.dataset.manifest import sha256_of_test_set
from cxr.dataset.split_summary import count_images, leakage, patient_overlap
from cxr.dataset.splits import assign
from tests.support.projects.split_params import split_params

NO_PAIRS = pd.DataFrame({"image_id_a": [], "image_id_b": []}, dtype=str)
SEEDS = st.integers(0, 2**31)
PROTOCOLS = st.sampled_from(["paper", "patient", "official", "cv", "block"])


params = partial(
    split_params,
    validation_share=0.2,
    folds=4,
    paper_train={"normal": 9, "viral": 8, "bacterial": 10, "covid": 6},
    paper_test={"normal": 2, "viral": 1, "bacterial": 2, "covid": 1},
    paper_validation={"normal": 1, "viral": 1, "bacterial": 1, "covid": 1},
)


def cohort(seed: int, patients: int = 30) -> pd.DataFrame:
    """Return images of two sources; patients have from one to six images, each class is in both sources."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "source": source,
            "label": label,
            "patient_id": f"{source}/{label}{patient}",
            "official_split": "test" if source == "kermany" and patient % 5 == 0 else "train",
            "acquisition_series": label,
            "acquisition_number": patient,
        }
        for source in ("kermany", "covid19")
        for label in LABELS
        for patient in range(patients)
        for _ in range(min(6, int(rng.geometric(0.5))))
    ]
    images = pd.DataFrame(rows)
    return images.assign(image_id=[f"{source}-{n:05d}" for n, source in enumerate(images["source"])])


def ids(table: pd.DataFrame, split: str) -> set[str]:
    return set(table.loc[table["split"] == split, "image_id"])


@settings(max_examples=15, deadline=None)
@given(data=SEEDS, seed=SEEDS, protocol=st.sampled_from(["patient", "cv"]), task=st.sampled_from(list(CLASSES)))
def test_subsampled_splits_meet_the_quotas_without_overlap(data: int, seed: int, protocol: str, task: str) -> None:
    images, chosen = cohort(data), params(protocol=protocol, task=task, seed=seed, subsample="paper_quotas")
    table = assign(images, NO_PAIRS, chosen)
    counts = count_images(table, chosen)
    for name in ("train", "validation", "test"):
        quota = getattr(chosen, f"paper_{name}")
        assert counts[name] == {label: quota[label] for label in CLASSES[chosen.task]}
    used = table[table["split"] != "unused"]
    assert used.groupby("patient_id")["split"].nunique().max() == 1
    assert patient_overlap(table).overlapping == 0
    assert leakage(table, chosen).startswith("Split by patient: 0 of")


@settings(max_examples=15, deadline=None)
@given(data=SEEDS, seed=SEEDS)
def test_paper_and_subsampled_patient_splits_have_the_same_numbers_of_images(data: int, seed: int) -> None:
    images = cohort(data)
    paper, patient = params(protocol="paper", seed=seed), params(subsample="paper_quotas", seed=seed)
    counts = [count_images(assign(images, NO_PAIRS, chosen), chosen) for chosen in (paper, patient)]
    assert counts[0] == counts[1]


@settings(max_examples=15, deadline=None)
@given(data=SEEDS, seed=SEEDS, protocol=PROTOCOLS, shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_a_smaller_share_of_the_training_images_is_part_of_a_larger_one(
    data: int, seed: int, protocol: str, shares: tuple[float, float]
) -> None:
    images = cohort(data)
    tables = [
        assign(images, NO_PAIRS, params(protocol=protocol, seed=seed, train_share=share)) for share in sorted(shares)
    ]
    whole = assign(images, NO_PAIRS, params(protocol=protocol, seed=seed))
    assert ids(tables[0], "train") <= ids(tables[1], "train") <= ids(whole, "train")
    for table, share in zip(tables, sorted(shares), strict=True):
        trained = table.loc[table["split"] == "train", "label"].value_counts()
        before = whole.loc[whole["split"] == "train", "label"].value_counts()
        assert all(trained[label] == max(1, round(before[label] * share)) for label in CLASSES["three_way"])


@settings(max_examples=15, deadline=None)
@given(data=SEEDS, seed=SEEDS, protocol=PROTOCOLS, share=st.floats(0.01, 1), source=st.sampled_from(["kermany", ""]))
def test_subsampling_of_training_images_keeps_validation_and_test(
    data: int, seed: int, protocol: str, share: float, source: str
) -> None:
    images, sources = cohort(data), [source] if source else []
    whole = assign(images, NO_PAIRS, params(protocol=protocol, seed=seed))
    chosen = params(protocol=protocol, seed=seed, train_share=share, train_sources=sources)
    remaining = whole[(whole["split"] == "train") & whole["image_id"].str.startswith(source)]
    if set(remaining["label"]) != set(CLASSES["three_way"]):  # the few images that `paper` draws may miss a source
        with pytest.raises(DataError, match="leaves no training images of class"):
            assign(images, NO_PAIRS, chosen)
        return
    subsampled = assign(images, NO_PAIRS, chosen)
    assert sha256_of_test_set(subsampled) == sha256_of_test_set(whole)
    assert ids(subsampled, "validation") == ids(whole, "validation")
    assert ids(subsampled, "train") <= ids(whole, "train")
    if source:
        assert all(image_id.startswith("kermany-") for image_id in ids(subsampled, "train"))


@pytest.mark.parametrize("changes", [{"subsample": "paper_quotas"}, {"train_share": 0.5}])
def test_the_order_of_rows_does_not_change_what_is_left_out(changes: dict[str, Any]) -> None:
    images = cohort(3)
    pd.testing.assert_frame_equal(
        assign(images, NO_PAIRS, params(**changes)),
        assign(images.sample(frac=1, random_state=5), NO_PAIRS, params(**changes)),
    )


def test_a_pair_of_classes_is_drawn_as_in_the_task_of_all_classes() -> None:
    images = cohort(4)
    whole = assign(images, NO_PAIRS, params(protocol="paper", task="four_way"))
    pair = assign(images, NO_PAIRS, params(protocol="paper", task="viral_bacterial"))
    chosen = pair[pair["label"].isin(["viral", "bacterial"])]
    assert chosen["split"].tolist() == whole.loc[chosen.index, "split"].tolist()
    assert set(pair.loc[~pair["label"].isin(["viral", "bacterial"]), "split"]) == {"unused"}


def test_classes_have_the_same_order_in_every_task() -> None:
    assert all(list(classes) == sorted(classes, key=LABELS.index) for classes in CLASSES.values())


def test_a_split_with_fewer_images_than_its_quota_is_named() -> None:
    chosen = params(subsample="paper_quotas", paper_test={"normal": 2, "viral": 999, "bacterial": 2})
    with pytest.raises(DataError) as raised:
        assign(cohort(1), NO_PAIRS, chosen)
    there = count_images(assign(cohort(1), NO_PAIRS, params()), params())["test"]["viral"]
    assert f"test has {there} viral and needs 999" in str(raised.value)


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(DataError) as raised:
        assign(cohort(1), NO_PAIRS, params(train_sources=["kermani"]))
    assert "kermani" in str(raised.value)
    assert "covid19, kermany" in str(raised.value)


def test_a_source_without_images_of_a_class_cannot_train_alone() -> None:
    images = cohort(1)
    images = images[(images["label"] != "covid") | (images["source"] == "covid19")]
    with pytest.raises(DataError) as raised:
        assign(images, NO_PAIRS, params(task="four_way", train_sources=["kermany"]))
    assert "covid" in str(raised.value)


def test_the_official_test_set_cannot_be_subsampled() -> None:
    with pytest.raises(ValueError, match="official test set"):
        params(protocol="official", subsample="paper_quotas")


def test_subsampling_needs_a_quota_for_each_class_of_the_task() -> None:
    with pytest.raises(ValueError, match="paper_test needs a quota of at least 1 for covid"):
        params(subsample="paper_quotas", task="four_way", paper_test={"normal": 1, "viral": 1, "bacterial": 1})
