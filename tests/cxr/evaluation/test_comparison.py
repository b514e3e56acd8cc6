"""Comparison of models: paired intervals are narrower than unpaired ones, and unequal tables are rejected."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from cxr.common.errors import DataError
from cxr.evaluation.bootstrap import Interval, headline_scores, pair
from cxr.evaluation.comparison import (
    Comparison,
    compare,
    compare_over_seeds,
    compare_over_sets,
    difference_over_seeds,
    holm,
    interval_over_sets,
)

CLASSES = ("normal", "viral", "bacterial")


def predictions(*, images: int = 240, noise: float = 1.0, skill: float = 1.5, seed: int = 0) -> pd.DataFrame:
    """Return a table as predictions.csv: two images a patient, the same images and their difficulty for every model."""
    labels = np.random.default_rng(99).integers(3, size=images)
    hard = np.random.default_rng(98).normal(size=(images, 3))
    scores = skill * np.eye(3)[labels] + hard + noise * np.random.default_rng(seed).normal(size=(images, 3))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    table = pd.DataFrame(
        {
            "image_id": [f"image-{n:04d}" for n in range(images)],
            "patient_id": [f"patient-{n // 2}" for n in range(images)],
            "label": np.array(CLASSES)[labels],
        }
    )
    return table.assign(**{f"p_{name}": probabilities[:, c] for c, name in enumerate(CLASSES)})


def compared(first: pd.DataFrame, second: pd.DataFrame) -> Comparison:
    return compare(first, second, resamples=400, seed=1)


def probabilities_of(table: pd.DataFrame) -> np.ndarray:
    return table[[f"p_{name}" for name in CLASSES]].to_numpy()


def test_differences_equal_those_of_scikit_learn() -> None:
    a, b = predictions(noise=0.2, seed=1), predictions(noise=1.5, seed=2)
    found, labels = compared(a, b), [CLASSES.index(label) for label in a["label"]]
    p, q = probabilities_of(a), probabilities_of(b)
    for name, figure in (
        ("accuracy", lambda x: accuracy_score(labels, x.argmax(axis=1))),
        ("macro_f1", lambda x: f1_score(labels, x.argmax(axis=1), average="macro")),
        ("macro_auroc", lambda x: roc_auc_score(labels, x, multi_class="ovr")),
        ("nll", lambda x: log_loss(labels, x)),
    ):
        assert found.differences[name].value == pytest.approx(figure(p) - figure(q))
    assert (found.images, found.patients) == (240, 120)


def test_a_better_model_is_found_better_in_nearly_all_resamples() -> None:
    found = compared(predictions(skill=3.0, seed=1), predictions(skill=0.5, seed=2))
    for difference in (found.differences["accuracy"], found.differences["macro_f1"], found.differences["macro_auroc"]):
        assert difference.interval is not None
        assert difference.interval.low > 0
        assert difference.p_value == pytest.approx(2 / 401)  # no resample on the other side
    assert found.differences["nll"].interval is not None
    assert found.differences["nll"].interval.high < 0
    assert found.mcnemar.p_value < 0.001


def test_a_model_does_not_differ_from_itself() -> None:
    found = compared(predictions(), predictions())
    assert found.differences["accuracy"].value == 0
    assert found.differences["accuracy"].interval == Interval(0, 0)
    assert found.differences["accuracy"].p_value == 1
    assert (found.mcnemar.first_alone_right, found.mcnemar.second_alone_right, found.mcnemar.p_value) == (0, 0, 1)


def test_pairing_makes_the_interval_narrower_than_chance_between_images() -> None:
    a, b = predictions(noise=0.2, seed=1), predictions(noise=0.2, seed=2)
    paired = compared(a, b).differences["accuracy"].interval
    right = probabilities_of(a).argmax(axis=1) == [CLASSES.index(label) for label in a["label"]]
    unpaired_width = 2 * 1.96 * np.sqrt(2 * right.var() / len(right))
    assert paired is not None
    assert paired.high - paired.low < 0.7 * unpaired_width


def test_mcnemar_counts_the_images_that_one_model_alone_gets_right() -> None:
    a = predictions()
    b = a.copy()
    columns = [f"p_{name}" for name in CLASSES]
    right = np.flatnonzero(probabilities_of(a).argmax(axis=1) == [CLASSES.index(label) for label in a["label"]])
    for row in right[:5]:
        b.loc[row, columns] = np.roll(b.loc[row, columns].to_numpy(), 1)
    found = compared(a, b).mcnemar
    assert (found.first_alone_right, found.second_alone_right) == (5, 0)
    assert found.p_value == pytest.approx(2 * 0.5**5)


def test_the_order_of_rows_changes_nothing_and_the_seed_decides() -> None:
    a, b = predictions(seed=1), predictions(seed=2)
    assert compared(a, b) == compared(a.sample(frac=1, random_state=3), b[::-1])
    assert compared(a, b) != compare(a, b, resamples=400, seed=2)


def test_few_patients_give_a_difference_without_an_interval() -> None:
    found = compared(predictions(images=12, seed=1), predictions(images=12, seed=2))
    assert found.differences["accuracy"].interval is None
    assert found.differences["accuracy"].p_value is None


def test_two_and_four_classes_are_compared_too() -> None:
    rng = np.random.default_rng(0)
    for classes in (("normal", "covid"), ("normal", "viral", "bacterial", "covid")):
        labels = rng.integers(len(classes), size=80)
        tables = []
        for skill in (3.0, 0.1):
            scores = np.exp(skill * np.eye(len(classes))[labels] + rng.normal(size=(80, len(classes))))
            table = pd.DataFrame({"image_id": range(80), "patient_id": range(80), "label": np.array(classes)[labels]})
            p = scores / scores.sum(axis=1, keepdims=True)
            tables.append(table.assign(**{f"p_{name}": p[:, c] for c, name in enumerate(classes)}))
        assert compared(*tables).differences["macro_auroc"].value > 0.1


def changed(table: pd.DataFrame, fault: str) -> pd.DataFrame:
    table = table.copy()
    match fault:
        case "image":
            table.loc[0, "image_id"] = "elsewhere"
        case "twice":
            return pd.concat([table, table.tail(1)])
        case "label":
            table.loc[0, "label"] = next(name for name in CLASSES if name != table["label"][0])
        case "patient":
            table.loc[0, "patient_id"] = "another"
        case "class":
            return table.rename(columns={"p_viral": "p_covid"})
        case "column":
            return table.drop(columns="patient_id")
    return table


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("image", "image-0000"),
        ("twice", "twice"),
        ("label", "label.*image-0000"),
        ("patient", "patient_id"),
        ("class", "normal, covid, bacterial"),
        ("column", "needs image_id, patient_id"),
    ],
)
def test_tables_that_cannot_be_compared_are_rejected(fault: str, message: str) -> None:
    table = predictions()
    with pytest.raises(DataError, match=message):
        compared(table, changed(table, fault))


def test_over_seeds_the_difference_is_the_mean_of_the_pairs() -> None:
    pairs = [(predictions(skill=2, seed=n), predictions(skill=1, seed=n + 10)) for n in range(3)]
    found = compare_over_seeds(pairs, resamples=300, seed=1)
    singles = [compared(*pair) for pair in pairs]
    assert found["nll"].value == pytest.approx(np.mean([single.differences["nll"].value for single in singles]))
    assert found["macro_f1"].value == pytest.approx(
        np.mean([single.differences["macro_f1"].value for single in singles])
    )
    interval, widest = found["accuracy"].interval, singles[0].differences["accuracy"].interval
    assert interval is not None
    assert widest is not None
    assert interval.high - interval.low < widest.high - widest.low
    with pytest.raises(DataError, match="there is no pair"):
        compare_over_seeds([], resamples=300, seed=1)


def test_over_sets_each_counts_the_same_and_adds_its_own_spread() -> None:
    better = [(predictions(skill=3, seed=n), predictions(skill=1, seed=n + 10)) for n in range(2)]
    equal = [(predictions(skill=1, seed=5), predictions(skill=1, seed=5))]
    both = compare_over_sets([better, equal], resamples=300, seed=1)
    alone = compare_over_seeds(better, resamples=300, seed=1)
    for name, difference in both.items():
        assert difference.value == pytest.approx(alone[name].value / 2), name
    interval, wider = both["macro_f1"].interval, alone["macro_f1"].interval
    assert interval is not None
    assert wider is not None
    assert interval.high - interval.low == pytest.approx((wider.high - wider.low) / 2, rel=1e-6)
    two = compare_over_sets([better, better], resamples=300, seed=1)["macro_f1"].interval
    assert two is not None
    assert two.high - two.low < wider.high - wider.low  # other draws of each set
    with pytest.raises(DataError, match="there is no pair"):
        compare_over_sets([better, []], resamples=300, seed=1)


def test_the_interval_of_one_model_is_that_of_its_evaluation_and_of_many_seeds_narrower() -> None:
    tables = [predictions(seed=n) for n in range(4)]
    labels = np.array([CLASSES.index(label) for label in tables[0]["label"]])
    patients = tables[0]["patient_id"].tolist()
    alone = headline_scores(labels, probabilities_of(tables[0]), patients, CLASSES, resamples=300, seed=1)["ci95"]
    one = interval_over_sets([tables[:1]], resamples=300, seed=1)
    assert {name: pair(one[name]) for name in alone} == {name: pytest.approx(value) for name, value in alone.items()}
    many = interval_over_sets([tables], resamples=300, seed=1)["accuracy"]
    assert many is not None
    assert many.high - many.low < alone["accuracy"][1] - alone["accuracy"][0]
    assert interval_over_sets([[predictions(images=12)]], resamples=300, seed=1)["accuracy"] is None
    with pytest.raises(DataError, match="there are no predictions"):
        interval_over_sets([tables, []], resamples=300, seed=1)


def test_the_p_value_and_the_interval_agree_on_what_is_told_from_zero() -> None:
    for seed in range(20):
        found = compared(predictions(skill=1.3, seed=seed), predictions(skill=1, seed=seed + 100)).differences["nll"]
        assert found.interval is not None
        assert found.p_value is not None
        assert (found.p_value < 0.045) <= (found.interval.low > 0 or found.interval.high < 0) <= (found.p_value < 0.055)


def test_holms_correction_is_that_of_the_textbook() -> None:
    # Holm 1979 by hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, and the largest as large as the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_difference_over_seeds_is_welchs() -> None:
    found = difference_over_seeds([0.90, 0.92, 0.91], [0.85, 0.80, 0.84])
    assert found.value == pytest.approx(0.08)
    assert found.interval is not None
    # Standard error 0.01633 on 2.56 degrees of freedom, t(0.975) = 3.5154: by hand from Welch's formula.
    assert (found.interval.low, found.interval.high) == pytest.approx((0.0226, 0.1374), abs=1e-4)


def test_one_seed_or_values_that_do_not_vary_give_no_interval() -> None:
    assert difference_over_seeds([0.9], [0.8, 0.7]).interval is None
    assert difference_over_seeds([0.9, 0.9], [0.8, 0.8]).interval is None
    with pytest.raises(DataError, match="0 and 1"):
        difference_over_seeds([], [0.5])
