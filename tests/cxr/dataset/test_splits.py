"""Splits: every image once, no overlap of patients, exact quotas, independent of the order of rows."""

import hashlib
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr.common.classes import CLASSES, LABELS
from cxr.common.errors import DataError
from cxr.dataset.manifest import sha256_of_test_set
from cxr.dataset.split_summary import (
    Withheld,
    count_images,
    images_without_order,
    leakage,
    patient_overlap,
    withheld,
)
from cxr.dataset.splits import SPLITS, assign, distribute, patient_groups, target_shares
from tests.support.projects.split_params import split_params as params

NO_PAIRS = pd.DataFrame({"image_id_a": [], "image_id_b": []}, dtype=str)


def manifest(images: list[tuple[str, str, str]]) -> pd.DataFrame:
    """Return a manifest of (label, patient, official part) rows."""
    return pd.DataFrame(
        [
            {
                "image_id": f"kermany-{number:05d}",
                "source": "kermany",
                "official_split": part,
                "label": label,
                "patient_id": f"kermany/{part}/{patient}",
                "acquisition_series": label,
                "acquisition_number": int(re.sub(r"\D", "", patient) or 0),
            }
            for number, (label, patient, part) in enumerate(images)
        ]
    )


def many_images(seed: int = 1, patients: int = 60, labels: tuple[str, ...] = LABELS) -> pd.DataFrame:
    """Return images as in the real set: most patients have few, some have up to 30, some have both pneumonias."""
    rng = np.random.default_rng(seed)
    images = []
    for label in labels:
        for patient in range(patients):
            person = f"n{patient}" if label in ("normal", "covid") else f"person{patient}"
            part = "test" if patient % 5 == 0 else "train"
            images += [(label, f"{label[0]}{person}" if label == "covid" else person, part)] * min(
                30, int(rng.geometric(0.4))
            )
    return manifest(images)


def pairs(table: pd.DataFrame, *rows: tuple[int, int]) -> pd.DataFrame:
    ids = table["image_id"].to_numpy()
    return pd.DataFrame({"image_id_a": [ids[a] for a, _ in rows], "image_id_b": [ids[b] for _, b in rows]}, dtype=str)


cohorts = st.builds(
    many_images, seed=st.integers(0, 10_000), patients=st.integers(25, 60), labels=st.sampled_from([LABELS, LABELS[:3]])
)
protocols = st.sampled_from(["paper", "patient", "official", "cv", "block"])
grouped = st.sampled_from(["patient", "official", "cv", "block"])


@settings(max_examples=20, deadline=None)
@given(images=cohorts, protocol=protocols, seed=st.integers(0, 2**31))
def test_every_image_is_assigned_once_and_other_classes_stay_unused(
    images: pd.DataFrame, protocol: str, seed: int
) -> None:
    table = assign(images, NO_PAIRS, params(protocol=protocol, seed=seed))
    assert table["image_id"].tolist() == sorted(images["image_id"])
    assert set(table["split"]) <= {*SPLITS, "unused"}
    assert set(table.loc[table["label"] == "covid", "split"]) <= {"unused"}
    label_of = images.set_index("image_id")["label"]
    assert table["label"].tolist() == label_of.loc[table["image_id"]].tolist()


@settings(max_examples=20, deadline=None)
@given(images=cohorts, protocol=grouped, seed=st.integers(0, 2**31), data=st.data())
def test_patients_and_near_duplicates_stay_in_one_split(
    images: pd.DataFrame, protocol: str, seed: int, data: st.DataObject
) -> None:
    rows = st.integers(0, len(images) - 1)
    alike = pairs(images, *data.draw(st.lists(st.tuples(rows, rows), max_size=8)))
    table = assign(images, alike, params(protocol=protocol, seed=seed))
    used = table[table["split"] != "unused"]
    assert used.groupby("patient_id")["split"].nunique().max() == 1
    split_of = dict(zip(used["image_id"], used["split"], strict=True))
    for a, b in zip(alike["image_id_a"], alike["image_id_b"], strict=True):
        assert split_of.get(a, split_of.get(b)) == split_of.get(b, split_of.get(a))
    assert patient_overlap(table).overlapping == 0


@settings(max_examples=15, deadline=None)
@given(images=cohorts, protocol=protocols, seed=st.integers(0, 2**31), shuffle=st.integers(0, 2**31))
def test_the_order_of_rows_does_not_change_the_split(
    images: pd.DataFrame, protocol: str, seed: int, shuffle: int
) -> None:
    alike = pairs(images, (0, 40), (3, 50))
    chosen = params(protocol=protocol, seed=seed)
    first = assign(images, alike, chosen)
    again = assign(images.sample(frac=1, random_state=shuffle), alike[::-1], chosen)
    pd.testing.assert_frame_equal(first, again)


@settings(max_examples=15, deadline=None)
@given(images=cohorts, seed=st.integers(0, 2**31))
def test_shares_hold_for_each_class_to_the_size_of_its_largest_patient(images: pd.DataFrame, seed: int) -> None:
    chosen = params(seed=seed)
    counts = count_images(assign(images, NO_PAIRS, chosen), chosen)
    for label in CLASSES["three_way"]:
        total = sum(counts[name][label] for name in SPLITS)
        largest = images[images["label"] == label].groupby("patient_id").size().max()
        for name, share in target_shares(chosen).items():
            assert counts[name][label] / total == pytest.approx(share, abs=largest / total)


@settings(max_examples=10, deadline=None)
@given(images=cohorts, seed=st.integers(0, 2**31))
def test_the_papers_quotas_hold_exactly(images: pd.DataFrame, seed: int) -> None:
    chosen = params(protocol="paper", seed=seed)
    counts = count_images(assign(images, NO_PAIRS, chosen), chosen)
    assert counts["train"] == chosen.paper_train
    assert counts["test"] == chosen.paper_test
    assert counts["validation"] == chosen.paper_validation


def test_the_seed_changes_the_split() -> None:
    images = many_images()
    for protocol in ("paper", "patient", "cv"):
        one, other = (assign(images, NO_PAIRS, params(protocol=protocol, seed=seed))["split"] for seed in (1, 2))
        assert (one != other).any()


def test_the_paper_protocol_reports_the_patients_that_leak() -> None:
    images = manifest([(label, f"{label}{n % 4}", "train") for label in CLASSES["three_way"] for n in range(12)])
    table = assign(images, NO_PAIRS, params(protocol="paper"))
    tested = set(table.loc[table["split"] == "test", "patient_id"])
    seen = set(table.loc[table["split"].isin(["train", "validation"]), "patient_id"])
    found = patient_overlap(table)
    assert found.overlapping == len(tested & seen) > 0
    assert f"{found.overlapping} of the {found.test_patients} patients" in leakage(table, params(protocol="paper"))


def test_a_split_by_patient_reports_no_overlap() -> None:
    table = assign(many_images(), NO_PAIRS, params())
    n = patient_overlap(table).test_patients
    assert leakage(table, params()).startswith(f"Split by patient: 0 of the {n} patients")


def test_folds_partition_the_images_and_do_not_depend_on_which_is_the_test_fold() -> None:
    images = many_images(labels=LABELS[:3])
    tables = [assign(images, NO_PAIRS, params(protocol="cv", fold=fold)) for fold in range(3)]
    for fold, table in enumerate(tables):
        assert table["fold"].tolist() == tables[0]["fold"].tolist()
        assert set(table.loc[table["split"] == "test", "fold"]) == {fold}
        assert set(table.loc[table["split"] != "test", "fold"]) == {0, 1, 2} - {fold}
        per_class = table[table["fold"] == fold]["label"].value_counts() / images["label"].value_counts()
        assert per_class.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_other_protocols_have_no_folds() -> None:
    assert set(assign(many_images(), NO_PAIRS, params())["fold"]) == {-1}


def test_official_uses_exactly_the_test_part_of_the_set() -> None:
    images = many_images(labels=LABELS[:3])
    other = images.head(20).assign(
        source="covid19", image_id=[f"covid19-{n}" for n in range(20)], official_split="test"
    )
    other["patient_id"] = [f"covid19/test/{n}" for n in range(20)]
    both = pd.concat([images, other])
    table = assign(both, NO_PAIRS, params(protocol="official")).merge(both[["image_id", "source", "official_split"]])
    own_test = (table["source"] == "kermany") & (table["official_split"] == "test")
    assert (table["split"] == "test").tolist() == own_test.tolist()
    assert set(table.loc[~own_test, "split"]) == {"train", "validation"}


def test_official_leaves_out_patients_with_near_duplicates_of_test_images() -> None:
    images = many_images(labels=LABELS[:3])
    tested = images.index[images["official_split"] == "test"][0]
    copied = images.index[images["official_split"] == "train"][0]
    table = assign(images, pairs(images, (tested, copied)), params(protocol="official")).set_index("image_id")
    same_person = images.loc[images["patient_id"] == images["patient_id"][copied], "image_id"]
    assert set(table.loc[same_person, "split"]) == {"unused"}
    assert table.loc[images["image_id"][tested], "split"] == "test"
    assert (table["split"] == "unused").sum() == len(same_person)


def test_images_left_out_around_the_official_test_part_are_counted() -> None:
    images = many_images(labels=LABELS[:3])
    first_test = images.index[images["official_split"] == "test"][0]
    copied = images.index[images["official_split"] == "train"][0]
    images.loc[copied, ["source", "patient_id"]] = ["covid19", "covid19/train/1"]
    images.loc[copied + 1, "patient_id"] = images.loc[first_test, "patient_id"]
    alike = pairs(images, (first_test, copied))
    chosen = params(protocol="official")
    table = assign(images, alike, chosen)
    assert withheld(table, images, alike, chosen) == Withheld(same_patient=1, near_duplicates=1, other_sources=1)


def test_test_images_that_quotas_leave_out_are_not_left_out_because_of_a_test_image() -> None:
    images = many_images(labels=LABELS[:3])
    quotas = dict.fromkeys(LABELS[:3], 2)
    few = {"subsample": "paper_quotas", "paper_train": quotas, "paper_test": quotas, "paper_validation": quotas}
    whole, less = (params(protocol="block", block=1, **changes) for changes in ({}, few))
    counts = [withheld(assign(images, NO_PAIRS, chosen), images, NO_PAIRS, chosen) for chosen in (whole, less)]
    assert counts[1].same_patient <= counts[0].same_patient


def test_each_block_is_the_test_set_once_and_holds_the_images_of_consecutive_numbers() -> None:
    images = many_images(labels=LABELS[:3])
    tested = []
    for block in range(3):
        table = assign(images, NO_PAIRS, params(protocol="block", block=block)).merge(images)
        test = table[table["split"] == "test"]
        assert set(test["fold"]) == {block}
        tested += test["image_id"].tolist()
        trained = table[table["split"].isin(["train", "validation"])]
        for series, numbers in test.groupby("acquisition_series")["acquisition_number"]:
            others = trained.loc[trained["acquisition_series"] == series, "acquisition_number"]
            assert not others.between(numbers.min(), numbers.max()).any()
            largest = images.groupby(["acquisition_series", "acquisition_number"]).size().max()
            assert len(numbers) == pytest.approx((images["label"] == series).sum() / 3, abs=int(largest))
    assert sorted(tested) == images["image_id"].tolist()


def test_images_without_an_order_only_train_with_all_of_their_group() -> None:
    images = many_images(labels=LABELS[:3])
    unordered = images.head(20).assign(source="other", acquisition_series=None, acquisition_number=None)
    unordered["image_id"] = [f"other-{n}" for n in range(20)]
    unordered["patient_id"] = [f"other/{n}" for n in range(20)]
    both = pd.concat([images, unordered], ignore_index=True)
    in_last_block = images.index[images["acquisition_number"] == images["acquisition_number"].max()][0]
    alike = pairs(both, (in_last_block, len(images)))
    table = assign(both, alike, params(protocol="block")).set_index("image_id")
    assert set(table.loc[unordered["image_id"], "split"]) == {"train"}
    assert table.loc[both.loc[in_last_block, "image_id"], "split"] == "train"
    assert images_without_order(table.reset_index(), both) == 20
    held_out = assign(both, alike, params(protocol="block", block=2)).set_index("image_id")
    assert held_out.loc["other-0", "split"] == "unused"


def test_a_set_without_an_order_has_no_blocks() -> None:
    images = many_images(labels=LABELS[:3]).assign(acquisition_series=None, acquisition_number=None)
    with pytest.raises(DataError, match=r"none of the .* images has one; .* add the column acquired to labels\.csv"):
        assign(images, NO_PAIRS, params(protocol="block"))
    by_class = images.assign(acquisition_series="x", acquisition_number=images["label"].map(LABELS.index))
    with pytest.raises(
        DataError, match=r"no images of class normal for split train, validation: .* reduce split\.blocks"
    ):
        assign(by_class, NO_PAIRS, params(protocol="block"))


def test_groups_join_patients_along_chains_of_near_duplicates() -> None:
    images = manifest([("normal", name, "train") for name in "aabbcd"])
    groups = patient_groups(images, pairs(images, (1, 2), (3, 4)))
    assert len(set(groups[:5])) == 1
    assert groups[5] != groups[0]


def test_near_duplicates_of_unused_images_are_ignored() -> None:
    images = manifest([("normal", "a", "train"), ("normal", "b", "train")])
    unknown = pd.DataFrame({"image_id_a": ["elsewhere"], "image_id_b": [images["image_id"][0]]})
    assert patient_groups(images, unknown).tolist() == [0, 1]


def test_large_groups_are_distributed_over_all_parts() -> None:
    counts = np.array([[30]] * 10 + [[1]] * 700)
    part = distribute(counts, [0.7, 0.1, 0.2], np.random.default_rng(0))
    assert [int((part[:10] == number).sum()) for number in range(3)] == [7, 1, 2]
    assert [int(counts[part == number].sum()) for number in range(3)] == [700, 100, 200]


def test_too_few_images_for_the_quotas_are_reported_by_class() -> None:
    images = manifest(
        [("normal", "a", "train")] * 5 + [("viral", "b", "train")] * 6 + [("bacterial", "c", "train")] * 9
    )
    with pytest.raises(DataError) as raised:
        assign(images, NO_PAIRS, params(protocol="paper"))
    assert "normal has 5 and needs 6" in str(raised.value)


def test_a_class_without_images_is_named() -> None:
    images = manifest([("normal", "a", "train"), ("bacterial", "c", "train")])
    with pytest.raises(DataError) as raised:
        assign(images, NO_PAIRS, params(task="four_way"))
    assert "viral, covid" in str(raised.value)


def test_an_absent_official_test_part_is_named() -> None:
    images = many_images(labels=LABELS[:3])
    images = images[images["official_split"] == "train"]
    with pytest.raises(DataError) as raised:
        assign(images, NO_PAIRS, params(protocol="official"))
    assert "kermany" in str(raised.value)
    assert "its parts here: train" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({}, "viral for split validation, test: its 9 images"), ({"protocol": "cv"}, "viral for fold 1, 2: its 9 images")],
)
def test_a_class_with_too_few_patients_for_every_split_is_named(changes: dict[str, Any], named: str) -> None:
    others = [(label, f"{label}{n}", "train") for label in ("normal", "bacterial") for n in range(30)]
    images = manifest([*others, *[("viral", "only", "train")] * 9])
    with pytest.raises(DataError, match=named):
        assign(images, NO_PAIRS, params(**changes))


def test_the_digest_of_the_test_set_is_that_of_its_sorted_lines() -> None:
    table = pd.DataFrame({"image_id": ["b", "a", "c"], "label": ["viral", "normal", "normal"], "split": "test"})
    table.loc[2, "split"] = "train"
    assert sha256_of_test_set(table) == hashlib.sha256(b"a,normal\nb,viral").hexdigest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_share": 0.0}, "must be above 0"),
        ({"validation_share": 0.5, "test_share": 0.5}, "leave images for training"),
        ({"protocol": "cv", "folds": 2, "validation_share": 0.5}, "leave images for training"),
        ({"protocol": "paper", "paper_test": {"normal": 1, "viral": 1}}, "paper_test"),
        ({"protocol": "paper", "task": "four_way"}, "paper_train .*covid"),
        ({"block": 3}, "block 3 does not exist; blocks are 0 to 2"),
        ({"protocol": "blocks"}, "'paper', 'patient', 'official', 'cv' or 'block'"),
    ],
)
def test_parameters_that_leave_a_split_empty_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        params(**changes)
